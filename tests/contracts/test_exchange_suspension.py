"""A party that the members suspend while a deal is open: no data to it, no money lost by it or stuck."""

from __future__ import annotations

from collections.abc import Callable

import boa
import pytest

from consilia.ledger.registry import Kind
from consilia.protocols.exchange import DealState
from consilia.values import Digest
from tests.contracts.conftest import Contracts
from tests.contracts.dealing import BOND_WEI, DAY, DISPUTE_SECONDS, PRICE_WEI, REVEAL_SECONDS, Dealing

NOT_ACTIVE = "exchange: a party is not an active hospital"
PARTIES = ("seller", "buyer")


@pytest.fixture
def dealing(contracts: Contracts) -> Dealing:
    return Dealing(contracts)


def next_step(dealing: Dealing, state: DealState) -> Callable[[Digest], None]:
    return {
        DealState.OPEN: dealing.offer,
        DealState.OFFERED: dealing.confirm,
        DealState.CONFIRMED: dealing.reveal,
    }[state]


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("state", [DealState.OPEN, DealState.OFFERED, DealState.CONFIRMED])
def test_a_deal_of_a_suspended_hospital_goes_no_further(
    dealing: Dealing, party: str, state: DealState
) -> None:
    """From the next block on: neither does data go to it, nor is anything taken from it."""
    deal_id = dealing.deal_in(state)
    dealing.decide(Kind.SUSPENSION, getattr(dealing, party))
    with boa.reverts(NOT_ACTIVE):
        next_step(dealing, state)(deal_id)
    assert dealing.state(deal_id) == state
    dealing.exchange.refund(deal_id, sender=dealing.contracts.stranger)  # at once, by anybody
    bond_wei = 0 if state is DealState.OPEN else BOND_WEI
    assert dealing.event() == {
        "event": "DealClosed",
        "deal_id": deal_id,
        "state": DealState.REFUNDED,
        "buyer_wei": PRICE_WEI,
        "seller_wei": bond_wei,
        "reason": "party not active",
    }
    other = "buyer" if party == "seller" else "seller"
    if dealing.exchange.credit_wei(getattr(dealing, other)):
        dealing.exchange.claim(sender=getattr(dealing, other))
    if dealing.exchange.credit_wei(getattr(dealing, party)):
        with boa.reverts("exchange: not an active member"):
            dealing.exchange.claim(sender=getattr(dealing, party))
        dealing.decide(Kind.LIFTING, getattr(dealing, party))
        dealing.exchange.claim(sender=getattr(dealing, party))
    assert dealing.balance() == dealing.exchange.open_wei() == 0


@pytest.mark.parametrize("party", PARTIES)
@pytest.mark.parametrize("state", [DealState.OPEN, DealState.OFFERED, DealState.CONFIRMED])
def test_a_deal_goes_on_when_the_suspension_is_lifted_in_time(
    dealing: Dealing, party: str, state: DealState
) -> None:
    deal_id = dealing.deal_in(state)
    dealing.decide(Kind.SUSPENSION, getattr(dealing, party))
    dealing.decide(Kind.LIFTING, getattr(dealing, party))
    with boa.reverts("exchange: still in time"):
        dealing.exchange.refund(deal_id)
    next_step(dealing, state)(deal_id)
    assert dealing.state(deal_id) == state + 1


def test_an_emergency_does_not_cost_a_seller_its_bond(dealing: Dealing) -> None:
    """A buyer and a friend could else suspend a seller for the day in which it has to reveal."""
    deal_id = dealing.deal_in(DealState.CONFIRMED)
    registry = dealing.contracts.registry
    proposal_id = registry.propose(int(Kind.EMERGENCY), dealing.seller, sender=dealing.buyer)
    registry.vote(proposal_id, sender=dealing.third)
    assert not registry.in_good_standing(dealing.seller)
    dealing.let_pass(REVEAL_SECONDS)
    dealing.exchange.refund(deal_id, sender=dealing.buyer)
    assert dealing.credits() == (PRICE_WEI, BOND_WEI)


def test_a_seller_that_leaves_while_it_owes_its_t_has_fallen_silent(dealing: Dealing) -> None:
    """Leaving needs nobody's vote: it must not be a way out of a deal that the buyer has confirmed."""
    deal_id = dealing.deal_in(DealState.CONFIRMED)
    dealing.contracts.registry.leave(sender=dealing.seller)
    with boa.reverts(NOT_ACTIVE):
        dealing.reveal(deal_id)
    with boa.reverts("exchange: still in time"):
        dealing.exchange.refund(deal_id, sender=dealing.buyer)
    dealing.let_pass(REVEAL_SECONDS)
    dealing.exchange.refund(deal_id, sender=dealing.buyer)
    assert dealing.event()["reason"] == "no reveal"
    assert dealing.credits() == (PRICE_WEI + BOND_WEI, 0)


@pytest.mark.parametrize("state", [DealState.OPEN, DealState.OFFERED])
@pytest.mark.parametrize("leaver", PARTIES)
def test_who_leaves_before_it_owes_anything_loses_nothing(
    dealing: Dealing, leaver: str, state: DealState
) -> None:
    deal_id = dealing.deal_in(state)
    dealing.contracts.registry.leave(sender=getattr(dealing, leaver))
    dealing.exchange.refund(deal_id)
    assert dealing.credits() == (PRICE_WEI, 0 if state is DealState.OPEN else BOND_WEI)


@pytest.mark.parametrize("out", ["suspended seller", "suspended buyer", "buyer that leaves"])
def test_a_seller_that_could_not_have_revealed_keeps_its_bond(dealing: Dealing, out: str) -> None:
    """It was put out before it left, or there was no buyer any more to reveal to."""
    deal_id = dealing.deal_in(DealState.CONFIRMED)
    if out == "buyer that leaves":
        dealing.contracts.registry.leave(sender=dealing.buyer)
    else:
        dealing.decide(Kind.SUSPENSION, getattr(dealing, out.split()[1]))
        dealing.contracts.registry.leave(sender=dealing.seller)
    dealing.exchange.refund(deal_id)
    assert dealing.event()["reason"] == "party not active"
    assert dealing.credits() == (PRICE_WEI, BOND_WEI)


def test_a_suspended_buyer_can_still_complain_of_what_it_paid_for(dealing: Dealing) -> None:
    """A seller and a friend could else suspend a buyer for the days in which it has to complain, and be paid."""
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.decide(Kind.SUSPENSION, dealing.buyer)
    with boa.reverts("exchange: nothing to refund"):
        dealing.exchange.refund(deal_id)
    dealing.dispute(deal_id)
    dealing.rule(deal_id, True)
    assert dealing.credits() == (PRICE_WEI + 2 * BOND_WEI, 0)
    with boa.reverts("exchange: not an active member"):
        dealing.exchange.claim(sender=dealing.buyer)


@pytest.mark.parametrize("party", PARTIES)
def test_a_revealed_deal_is_settled_whoever_is_suspended(dealing: Dealing, party: str) -> None:
    """The data have gone; what is left is money, and it must not be stuck."""
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.decide(Kind.SUSPENSION, getattr(dealing, party))
    dealing.let_pass(DISPUTE_SECONDS)
    dealing.exchange.settle(deal_id, sender=dealing.contracts.stranger)
    assert dealing.credits() == (0, PRICE_WEI + BOND_WEI)


@pytest.mark.parametrize("party", PARTIES)
def test_nobody_starts_anything_with_a_suspended_hospital(dealing: Dealing, party: str) -> None:
    dealing.register()
    wanted = dealing.wish(deadline=dealing.now + DAY)
    dealing.decide(Kind.SUSPENSION, getattr(dealing, party))
    with boa.reverts(
        "exchange: seller not active" if party == "seller" else "exchange: not an active hospital"
    ):
        dealing.request(wanted)
    if party == "seller":
        with boa.reverts("exchange: not an active hospital"):
            dealing.register(root=Digest.of(b"another"))
