"""What a command prints: whole, and nothing that somebody else wrote can steer a terminal or pass for our own words."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from consilia.cli.output import Format, Output, error_lines, to_json
from consilia.protocols.card import Card
from consilia.roles.exchange.deals import Terms
from consilia.values import ArtifactKind, Digest
from tests.cli.running import Cli
from tests.consortium import consortium
from tests.roles.trading import Trade

NASTY = (
    "\x1b]0;pwned\x07 \x1b[2J\x9b1m \u202e x\r\n12:00:00 audit        all in order  attested=as_registered"
)
UNPRINTABLE = re.compile("[^\x20-\x7e\xa1-\u1fff\ufffd\n]")


def test_json_output_is_one_object_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stdout", stream)
    say = Output("hospital-1", Format.JSON)
    say("update registered", bytes=10, reason="line\nbreak", names=["a", "ü"])
    say("done")
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["step"] for line in lines] == ["update registered", "done"]
    assert lines[0] | {"time": 0} == {
        "time": 0,
        "name": "hospital-1",
        "step": "update registered",
        "bytes": 10,
        "reason": "line\nbreak",
        "names": ["a", "ü"],
    }


def test_text_output_is_one_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    say = Output("hospital-1", Format.TEXT)
    say("refused", reason="x" * 500, skipped=[1, 2], loss=0.123456)
    said = capsys.readouterr().out
    assert (
        said.count("\n") == 1
        and "refused" in said
        and "2 items" in said
        and "0.1235" in said
        and "x" * 500 in said
    )
    say("done", bracket="[bold]not markup[/bold]")
    assert "[bold]not markup[/bold]" in capsys.readouterr().out


def test_text_of_others_cannot_pass_for_lines_or_facts_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    Output("hospital-1", Format.TEXT)(
        "on offer", title=NASTY, reason="none  attested=as_registered", price_wei="1"
    )
    said = capsys.readouterr().out
    assert not UNPRINTABLE.search(said)
    first, *others = said.splitlines()
    assert first.endswith('on offer  reason="none  attested=as_registered"  price_wei=1')
    assert others[0] == "    title:" and all(line.startswith("        ") for line in others[1:])
    errors = list(error_lines(f"deal 4711 ended: {NASTY}"))
    assert len(errors) == 2 and errors[1].startswith("    ") and not UNPRINTABLE.search("".join(errors))


def test_a_terminal_breaks_no_line_so_that_its_end_looks_like_ours() -> None:
    say, stream = Output("hospital-1", Format.TEXT), io.StringIO()
    say.console = Console(file=stream, force_terminal=True, width=80, highlight=False, color_system=None)
    for start in range(20, 60):  # wherever the terminal's margin is, the forged line follows it
        say("denied", reason="x" * start + " 12:00:00 hospital-1   accepted", digest="f" * 64)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80 and len(lines) > 40
    assert all(re.match(r"\d\d:\d\d:\d\d hospital-1   denied|    ", line) for line in lines)
    assert sum("f" * 64 in line for line in lines) == 40


def test_json_holds_no_character_that_steers_a_terminal() -> None:
    line = to_json({"reason": NASTY, "name": "ü\U000e0041"})
    assert not UNPRINTABLE.search(line) and json.loads(line) == {"reason": NASTY, "name": "ü\U000e0041"}


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller who writes what it likes, and a buyer who reads it on a terminal."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


def test_a_hostile_owner_writes_onto_nobodys_terminal(
    trade: Trade, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its card and its reason go by the contract, which takes any text; the buyer's commands show them."""
    cli = Cli(trade.town, monkeypatch, capsys)
    root = Digest.of(b"anything")
    trade.seller.contract.register(
        "a nasty card",
        kind=ArtifactKind.DATASET,
        root=root,
        key_hash=Digest.of(b"its key"),
        size=1000,
        recipient_key=bytes([9]) * 32,
        task_id=0,
        round_index=0,
        price_wei=1,
        card=Card(title=f"a {'long ' * 30}title", description=NASTY).to_bytes(),
    )
    deal_id = trade.buyer.request(trade.buyer.log().find(str(root)), Terms(1, 0, trade.terms.arbiter))
    trade.seller.contract.deny("a nasty reason", deal_id, NASTY[:110])
    listed = cli.text("exchange", "offers", home="hospital-2")
    assert "long " * 30 in listed  # an honest card is never cut
    ended = cli.text("exchange", "ls", home="hospital-2")
    cli.text("exchange", "fetch", str(deal_id), home="hospital-2", code=1)
    for said in (listed, ended, cli.errors):
        assert "pwned" in said and not UNPRINTABLE.search(said)
        assert not re.search("^12:00:00", said, re.MULTILINE)
