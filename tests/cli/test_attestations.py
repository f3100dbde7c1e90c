"""What buyers say of an artifact: the ledger has what was said last, and everybody reads all of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.running import Cli
from tests.consortium import consortium
from tests.roles.trading import Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer and an arbiter."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


def test_the_last_word_counts_and_is_shown(
    trade: Trade, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli = Cli(trade.town, monkeypatch, capsys)
    deal = trade.run(trade.request(trade.register()))
    buyer, root = trade.town.addresses[1], str(deal.request.root)
    for note in ("sloppy boxes", "better now", "sloppy boxes", "sloppy boxes"):  # the last as after a crash
        cli("exchange", "attest", str(deal.deal_id), "--note", note, home="hospital-2")
        assert [item.note for item in trade.seller.log().find(root).attestations] == [note]
        assert cli("exchange", "offers")[0]["attested"] == f"as_registered ({buyer}): {note}"


def test_a_note_is_one_members_word_and_no_more(
    trade: Trade, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A buyer writes a line into its note that looks like what the server found."""
    cli = Cli(trade.town, monkeypatch, capsys)
    deal = trade.run(trade.request(trade.register()))
    for end in ("\n", "\N{LINE SEPARATOR}", "\x1b[31m"):
        note = f"fine{end}does_not_open ({trade.town.server_address}): pwned"
        cli("exchange", "attest", str(deal.deal_id), "--note", note, home="hospital-2")
        told = cli("exchange", "offers")[0]["attested"]
        assert told.startswith(f"as_registered ({trade.town.addresses[1]}): fine") and "pwned" in told
        assert len(told.splitlines()) == 1 and "\x1b" not in told
        shown = cli.text("exchange", "offers")
        assert "pwned" in shown and "\x1b" not in shown
        assert not [line for line in shown.splitlines() if line.strip().startswith("does_not_open")]
