"""The summary on a terminal and in a log, and how figures are written."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from consilia.cli.report import report as r
from consilia.cli.report.terminal import print_summary, summary_lines
from consilia.cli.report.words import bytes_text, ether_text, seconds_text
from tests.cli.sample_report import HOSPITALS, sample_report


def _printed(report: r.Report, *, terminal: bool, width: int = 100) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    print_summary(report, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_log_gets_one_fact_a_line_however_narrow_it_is() -> None:
    report = sample_report(images=0)
    printed = _printed(report, terminal=False, width=20)
    assert printed.splitlines() == list(summary_lines(report))
    assert "\x1b" not in printed and "│" not in printed


def test_a_terminal_gets_every_hospital_and_every_model() -> None:
    printed = _printed(sample_report(images=0), terminal=True)
    for words in ("Federated", "Pooled", *(f"{name} alone" for name in HOSPITALS), "0.842", "1 rejected"):
        assert words in printed


@pytest.mark.parametrize("terminal", [True, False])
def test_the_audit_is_reported_with_its_finding(terminal: bool) -> None:
    audit = r.Audit(command="consilia audit verify --home h", exit_code=5, message="object 12ab: damaged")
    printed = _printed(sample_report(images=0).model_copy(update={"audit": audit}), terminal=terminal)
    assert "exit code 5: object 12ab: damaged" in printed


def test_a_hospital_name_is_never_taken_for_markup() -> None:
    report = sample_report(images=0)
    reward = report.rewards[0].model_copy(update={"hospital": "[bold]evil[/bold]"})
    report = report.model_copy(update={"rewards": (reward,)})
    assert "[bold]evil[/bold]" in _printed(report, terminal=False)
    assert "[bold]evil[/bold]" in _printed(report, terminal=True, width=160)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.00 s"),
        (9.994, "9.99 s"),
        (12.34, "12.3 s"),
        (59.97, "1 min 0 s"),
        (252, "4 min 12 s"),
        (3785, "1 h 3 min"),
    ],
)
def test_seconds_are_written_as_people_say_them(seconds: float, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (37_240_000, "37.2 MB"), (1_200_000_000, "1.20 GB")],
)
def test_bytes_are_written_in_decimal_units(count: int, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("wei", "text"),
    [
        (0, "0"),
        (10**18, "1"),
        (2_500_000 * 10**12, "2.5"),
        (1, "1 wei"),
        (1_234 * 10**18 + 1, "1,234.000000…"),
    ],
)
def test_money_is_never_rounded_without_saying_so(wei: int, text: str) -> None:
    assert ether_text(wei) == text
