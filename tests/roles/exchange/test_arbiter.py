"""An arbiter judges each dispute by itself: one that nobody can judge holds up no other."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.errors import TransactionRevertedError, VerificationError
from consilia.protocols.exchange import DealState
from consilia.values import Digest
from tests.consortium import consortium
from tests.roles.trading import Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer and an arbiter."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


def two_disputes(trade: Trade, days_between: float = 0) -> tuple[Digest, Digest, Digest]:
    """Two open disputes of one arbiter, and the artifact of the first."""
    root = trade.register()
    first = trade.deal_in(DealState.DISPUTED, root)
    trade.let_pass(days_between)
    return root, first, trade.deal_in(DealState.DISPUTED, trade.register("chests", seed=8))


def not_ruled(trade: Trade) -> list[dict[str, object]]:
    return trade.town.steps["server"].named("not ruled")


def test_a_lost_object_keeps_nobody_else_waiting(trade: Trade) -> None:
    """Else a seller blocks all rulings by losing one object, and is paid for it after 14 days."""
    root, first, second = two_disputes(trade)
    path = trade.town.object_path(root)
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(VerificationError, match="1 of 2 disputes"):
        trade.arbiter.advance()
    assert trade.deal(second).reason == "it opens as registered"
    assert trade.deal(first).state is DealState.DISPUTED
    assert [said["deal"] for said in not_ruled(trade)] == [str(first)]
    path.write_bytes(kept)
    assert [deal.deal_id for deal in trade.arbiter.advance()] == [first]


def test_a_dispute_whose_time_is_over_keeps_nobody_else_waiting(trade: Trade) -> None:
    _, first, second = two_disputes(trade, days_between=10)
    trade.let_pass(5)
    with pytest.raises(VerificationError, match="1 of 2 disputes"):
        trade.arbiter.advance()
    assert trade.deal(first).state is DealState.DISPUTED and trade.deal(second).state is DealState.PAID
    assert "time to rule is over" in str(not_ruled(trade)[0]["reason"])


def test_a_ruling_that_the_contract_refuses_keeps_nobody_else_waiting(
    trade: Trade, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, first, second = two_disputes(trade)
    honest = trade.arbiter.contract.rule

    def rule(key: str, deal_id: Digest, for_buyer: bool, reason: str) -> None:
        if deal_id == first:  # as when the seller's settlement is a block earlier
            raise TransactionRevertedError("refused", "exchange: not disputed")
        honest(key, deal_id, for_buyer, reason)

    monkeypatch.setattr(trade.arbiter.contract, "rule", rule)
    with pytest.raises(VerificationError, match="1 of 2 disputes"):
        trade.arbiter.advance()
    assert trade.deal(second).state is DealState.PAID
    assert not_ruled(trade)[0]["reason"] == "exchange: not disputed"
