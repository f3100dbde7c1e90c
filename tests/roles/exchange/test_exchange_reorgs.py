"""Every step of an exchange is lost in a re-org once, and taken again: same deal, same offer, same t, paid once."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.crypto.keys import load_account
from consilia.ledger.embedded.local import LocalNode
from consilia.ledger.embedded.node_key import NodeKey
from consilia.protocols.exchange import Deal, DealState
from consilia.protocols.receipt import verify_receipt
from consilia.values import Digest
from tests.consortium import PASSWORD, PAST_SECONDS, Consortium, consortium
from tests.roles.trading import BOND_WEI, PRICE_WEI, Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer and an arbiter."""
    with consortium(tmp_path, monkeypatch, 2) as town:
        yield Trade(town)


class OtherSide:
    """The other half of a network that splits now: it hears of nothing, and its chain wins when they meet again."""

    def __init__(self, town: Consortium, name: str) -> None:
        self._node = town.node
        home = town.home / "hospital-1"
        copy = town.home / f"other-side-{name}.sqlite"
        with (
            closing(sqlite3.connect(home / "node" / "chain.sqlite")) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        key = NodeKey(bytes(load_account(home / "keys" / "account.json", PASSWORD).key))
        self._other = LocalNode(copy, town.genesis, key)
        self._other.advance(-PAST_SECONDS)

    def wins(self, forgotten: bool) -> None:
        """The networks meet; with `forgotten` no pool has kept a transaction of the blocks that lost."""
        first = self._other.chain.head.header.number
        with closing(self._other):
            self._other.mine(self._node.chain.head.header.number - first + 3)
            blocks = [self._other.chain.block_by_number(first)]
            while (stored := blocks[-1]) is not None:
                self._node.chain.import_block(stored.block)
                blocks.append(self._other.chain.block_by_number(stored.block.header.number + 1))
            assert self._node.chain.head.header.hash == self._other.chain.head.header.hash
        if forgotten:
            self._node.pool.drop(tuple(self._node.pool.executable()))
        assert forgotten == (not self._node.pool.executable())


def told(deal: Deal) -> Deal:
    """What of a deal may not change when its steps are taken again; deadlines are the new blocks' affair."""
    return replace(deal, deadline=0)


@pytest.mark.parametrize("forgotten", [False, True], ids=["in the pool", "forgotten"])
@pytest.mark.parametrize("disputed", [False, True], ids=["accepted", "disputed"])
def test_each_step_that_a_reorg_takes_back_is_taken_again(
    trade: Trade, disputed: bool, forgotten: bool
) -> None:
    root = trade.register()
    asked: list[Digest] = []

    def ask() -> None:
        asked.append(trade.request(root))

    def deal() -> Deal | None:
        return trade.buyer.log().deals.get(asked[-1]) if asked else None

    steps: list[tuple[Callable[[], object], DealState]] = [
        (ask, DealState.OPEN),
        (trade.seller.advance, DealState.OFFERED),
        (trade.buyer.advance, DealState.CONFIRMED),
        (trade.seller.advance, DealState.REVEALED),
    ]
    if disputed:
        steps.append((lambda: trade.buyer.dispute(trade.deal(asked[0])), DealState.DISPUTED))
    steps.append((trade.arbiter.advance if disputed else trade.buyer.advance, DealState.PAID))
    for act, reached in steps:
        before, other = deal(), OtherSide(trade.town, reached.name)
        act()
        first = trade.deal(asked[0])
        assert first.state is reached
        other.wins(forgotten)
        assert deal() == before  # nobody goes on from what was lost
        act()
        assert told(trade.deal(asked[0])) == told(first)
    done = trade.run(asked[0])
    assert (done.buyer_wei, done.seller_wei) == (0, PRICE_WEI + BOND_WEI * (2 if disputed else 1))
    assert set(asked) == set(trade.buyer.log().deals) and trade.seller.contract.open_wei() == 0
    trade.conserved()
    if not disputed:  # this dispute was raised before anything was opened
        assert verify_receipt(trade.buyer.receipt_file(done).read_bytes()).deal_id == done.deal_id
