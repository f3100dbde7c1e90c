"""What the store must keep for exchanges and second opinions: whose check fails when it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.protocols.exchange import DealState
from consilia.roles.exchange.deals import Terms
from consilia.roles.storekeeping import Claim, Condition, examine, read_claims
from consilia.store.directory import DirectoryStore
from consilia.values import Address, ArtifactKind, Digest
from tests.consortium import consortium
from tests.roles.asking import Clinic
from tests.roles.trading import Trade


@pytest.fixture
def trade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trade]:
    """A seller, a buyer, an arbiter, and a hospital that has nothing to do with it."""
    with consortium(tmp_path, monkeypatch, 3) as town:
        yield Trade(town)


def claim_on(trade: Trade, root: Digest, account: Address) -> Claim:
    claims = read_claims(trade.town.server_settings().ledger, account)
    return next(claim for claim in claims if claim.root == root)


def missed_by(trade: Trade, root: Digest) -> list[bool]:
    """Whose check fails: the seller's, the buyer's, the arbiter's, the stranger's."""
    seller, buyer, stranger = trade.town.addresses
    accounts = (seller, buyer, trade.town.server_address, stranger)
    store = DirectoryStore(trade.town.home / "store")
    return [examine(store, claim_on(trade, root, account), ()).is_failure for account in accounts]


def test_a_lost_data_set_is_missed_by_its_owner_and_by_those_who_deal_in_it(trade: Trade) -> None:
    root = trade.register()
    assert missed_by(trade, root) == [False] * 4
    kept = trade.town.object_path(root).read_bytes()
    trade.town.object_path(root).unlink()
    assert missed_by(trade, root) == [True, False, False, False]
    trade.request(root)
    assert missed_by(trade, root) == [True, True, True, False]
    trade.town.object_path(root).write_bytes(kept)
    deal_id = trade.deal_in(DealState.CONFIRMED, root)
    trade.town.object_path(root).unlink()
    assert missed_by(trade, root) == [True] * 4
    trade.run(deal_id)  # the buyer has its own copy
    assert missed_by(trade, root) == [True, False, False, False]
    trade.seller.contract.withdraw("no more", root)
    assert missed_by(trade, root) == [False] * 4


def test_a_liar_makes_nobody_elses_check_fail_and_nothing_honest_deleted(trade: Trade) -> None:
    """It registers a root that no store knows, and an honest root with a wrong size."""
    root, nowhere = trade.register(), Digest.of(b"nowhere")
    for name, registered in (("a lie", nowhere), ("another", root)):
        trade.buyer.contract.register(
            name,
            kind=ArtifactKind.DATASET,
            root=registered,
            key_hash=Digest.of(b"k"),
            size=7,
            recipient_key=bytes([9]) * 32,
            task_id=0,
            round_index=0,
            price_wei=0,
            card=b"",
        )
    listing = trade.seller.log().listings[trade.town.addresses[1], nowhere]
    trade.seller.request(listing, Terms(0, 0, trade.town.server_address))
    stranger = trade.town.addresses[2]
    store = DirectoryStore(trade.town.home / "store")
    assert not examine(store, claim_on(trade, nowhere, stranger), ()).is_failure
    assert examine(store, claim_on(trade, nowhere, trade.town.addresses[0]), ()).is_failure  # it asked for it
    assert examine(store, claim_on(trade, root, stranger), ()).condition is Condition.GOOD
    own = examine(store, claim_on(trade, nowhere, trade.town.addresses[1]), ())
    assert own.condition is Condition.MISSING and own.is_failure


def test_what_an_open_query_is_about_is_missed_by_its_parties(trade: Trade) -> None:
    clinic = Clinic(trade.town)
    query = clinic.query(clinic.ask())
    trade.town.object_path(query.root).unlink()
    assert missed_by(trade, query.root) == [True, False, True, False]
