"""What a hospital reads of a second opinion: the same on the terminal, on the page and in the JSON; ERROR above all."""

from __future__ import annotations

import stat

import pytest

from consilia.cli.report.consultation import CaseShown, ConsultationReport
from consilia.cli.report.consultation_words import opinion, plain_lines
from consilia.cli.report.page import render_consultation, render_html, write_consultation
from consilia.cli.report.report import Report
from consilia.cli.report.terminal import summary_lines
from consilia.errors import InputError
from tests.cli.sample_consultation import sample_consultation
from tests.cli.sample_report import sample_report

ERRORS = ("failed", "stopped", "spoilt")


@pytest.mark.parametrize("outcome", ["answer", "failed", "stopped", "spoilt", "waiting"])
def test_json_reads_back(outcome):
    shown = sample_consultation(outcome)
    assert ConsultationReport.from_json(shown.to_json()) == shown
    with pytest.raises(InputError, match="outcome"):
        ConsultationReport.from_json(shown.to_json().replace(f'"{outcome}"', '"perhaps"'))


def test_an_answer_says_what_it_is_worth():
    told = "\n".join(plain_lines(sample_consultation()))
    for part in (
        "intracranial haemorrhage (code 1), score 0.93 at 40, 50, 72, 84",
        "18 of 20 matched",
        "T = 0.80",
    ):
        assert part in told
    assert "at least 71.7%" in told and "verified by nobody" in told and "c4" * 32 in told
    assert told.count("transaction 0x") == 7


def test_no_finding_is_said():
    case = sample_consultation("failed").cases[0]  # its case has no finding
    shown = sample_consultation(cases=(case,))
    assert opinion(shown).headline.en == "The model found nothing."
    assert "slice-07.dcm: no finding" in "\n".join(plain_lines(shown))


@pytest.mark.parametrize("outcome", ERRORS)
def test_an_error_is_an_error_in_both_languages(outcome):
    shown = sample_consultation(outcome)
    told = opinion(shown)
    assert told.headline.en.startswith("ERROR") and told.headline.zh.startswith("ERROR")
    text, page = "\n".join(plain_lines(shown)), render_consultation(shown)
    assert "no finding" not in text and "no finding" not in page  # silence must not pass for health
    for line in (told.detail, *told.to_do):
        assert line.en in text
        assert line.zh in page
    assert ("came back" in text) == (outcome != "spoilt")


def test_a_failed_audit_says_what_failed_and_what_was_refunded():
    told = "\n".join(plain_lines(sample_consultation("failed")))
    assert "11 of 20 known cases were answered rightly, 16 were needed" in told
    assert "Your fee of 0.01 ether came back." in told


def test_boxes_elsewhere_are_why_fewer_count_than_had_the_right_codes():
    told = opinion(sample_consultation("failed", matches=15, boxes_apart=5)).detail
    assert "15 of 20" in told.en and "codes were right in 20; in 5 of them" in told.en
    assert "编码正确 20 例" in told.zh and "5 例" in told.zh


def test_silence_says_whose_and_what_it_cost():
    by_server = "\n".join(plain_lines(sample_consultation("stopped")))
    assert "the server did not take its step in time (score)" in by_server
    assert "came back, and the server's bond of 0.01 ether" in by_server
    own = sample_consultation(
        "stopped", hospital_wei=0, server_wei=10**16, ended_in="answered", reason="audit not opened"
    )
    told = "\n".join(plain_lines(own))
    assert "this hospital did not take its step in time (open the audit images)" in told
    assert "The server was paid 0.01 ether, its bond included." in told and "came back" not in told


@pytest.mark.parametrize(
    ("ended_in", "reason", "said"),
    [
        ("asked", "no answer", "the server did not take its step in time (answer)"),
        ("asked", "an image is corrupt", "the server refused it"),
        ("answered", "the reports are not there", "this hospital declined the answer"),
        ("opened", "party not active", "one of the two is suspended"),
        ("accepted", "no release", "the server did not take its step in time (release the diagnosis)"),
    ],
)
def test_a_stopped_query_says_who_stopped_it(ended_in, reason, said):
    # of an offer without a price no money came back either: the money does not tell who it was
    shown = sample_consultation("stopped", ended_in=ended_in, reason=reason, price_wei=0, hospital_wei=0)
    assert said in opinion(shown).detail.en
    assert reason in render_consultation(shown)


def test_small_amounts_have_one_unit():
    told = "\n".join(plain_lines(sample_consultation("failed", price_wei=1000, hospital_wei=1000)))
    assert "Your fee of 1,000 wei came back." in told


def test_a_case_whose_report_is_garbled_is_no_healthy_one():
    # of a batch: one case can be read, the other cannot
    first = sample_consultation().cases[0]
    garbled = first.model_copy(update={"name": "other.dcm", "findings": (), "readable": False})
    shown = sample_consultation(cases=(first, garbled))
    text, page = "\n".join(plain_lines(shown)), render_consultation(shown)
    assert "other.dcm: ERROR, no diagnosis" in text and "no finding" not in text
    assert "cannot be read" in page and "no finding" not in page


def test_names_from_outside_are_escaped():
    case = sample_consultation().cases[0]
    evil = CaseShown.model_validate(case.model_dump() | {"name": "<script>x</script>"})
    page = render_consultation(sample_consultation(cases=(evil,)))
    assert "<script" not in page and "&lt;script&gt;" in page


def test_the_files_are_for_the_hospital_alone(tmp_path):
    paths = write_consultation(sample_consultation(), tmp_path / "consultations" / "5f5f")
    for path in (paths.json, paths.html):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(paths.json.parent.stat().st_mode) == 0o700


def test_the_demo_s_report_shows_it():
    report = sample_report().model_copy(update={"consultation": sample_consultation("failed")})
    assert Report.from_json(report.to_json()) == report
    assert "ERROR" in render_html(report) and "11 / 20" in render_html(report)
    assert "second opinion: ERROR: no diagnosis." in list(summary_lines(report))
    # and a report of before is read as before
    assert Report.from_json(sample_report().to_json()).consultation is None


def test_a_bound_below_one_is_never_shown_as_one():
    shown = sample_consultation("answer", matches=20, audits=20, low=0.861, high=0.9974)
    text = "\n".join(plain_lines(shown))
    assert "at most 99.7%" in text and "0.861 – 0.997" in render_consultation(shown)
