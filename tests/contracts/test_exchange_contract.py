"""exchange.vy: every revert beside its success, every timeout, every signature that must not pass."""

from __future__ import annotations

from collections.abc import Callable

import boa
import pytest
from eth.exceptions import Revert

from consilia.crypto.blinding import point_of
from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.crypto.typed_data import address_of_point
from consilia.protocols.exchange import DealState, exchange_domain
from consilia.values import Digest
from tests.contracts.conftest import VALID_TO, Contracts
from tests.contracts.dealing import (
    BOND_WEI,
    CONFIRM_SECONDS,
    DAY,
    DISPUTE_SECONDS,
    MESSAGE,
    PRICE_WEI,
    REVEAL_SECONDS,
    RULING_SECONDS,
    SIGMA,
    THIRD_KEY,
    Dealing,
    T,
    high_s,
    number,
)

OTHER = Digest.of(b"another")
ALL_STATES = list(DealState)


@pytest.fixture
def dealing(contracts: Contracts) -> Dealing:
    """Fresh contracts with a seller, a buyer and an arbiter."""
    return Dealing(contracts)


# Step 2


def test_a_seller_offers(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.OPEN)
    dealing.offer(deal_id)
    said = dealing.event()
    assert said["event"] == "Offered" and said["message"] == MESSAGE and len(said["signature"]) == 65
    assert said["t_address"] == address_of_point(point_of(T)) == dealing.exchange.deal(deal_id).t_address
    assert said["deadline"] == dealing.now + CONFIRM_SECONDS == dealing.exchange.deal(deal_id).deadline
    assert dealing.state(deal_id) == DealState.OFFERED
    assert dealing.balance() == dealing.exchange.open_wei() == PRICE_WEI + BOND_WEI


def test_offers_that_must_not_pass(dealing: Dealing) -> None:
    deal_id, other = dealing.deal_in(DealState.OPEN), dealing.deal_in(DealState.OPEN)
    with boa.reverts("exchange: not the seller"):
        dealing.offer(deal_id, sender=dealing.third, key=THIRD_KEY)
    for value in (0, BOND_WEI + 1):
        with boa.reverts("exchange: not the bond signed"):
            dealing.offer(deal_id, value=value)
    with boa.reverts("exchange: no t"):
        dealing.offer(deal_id, t_address="0x" + "00" * 20)
    with boa.reverts("exchange: not the seller's signature"):
        dealing.offer(deal_id, key=THIRD_KEY)
    with boa.reverts("exchange: not the seller's signature"):
        dealing.offer(deal_id, domain=exchange_domain(1, dealing.contracts.training.address))
    dealing.offer(other)
    replayed = dealing.event()["signature"]
    with boa.reverts("exchange: not the seller's signature"):  # the offer of one deal is none in another
        dealing.offer(deal_id, signature=replayed)
    with boa.reverts("exchange: not the seller's signature"):
        dealing.offer(deal_id, signature=high_s(replayed))
    dealing.offer(deal_id)


def test_a_seller_denies(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.OPEN)
    with boa.reverts("exchange: not the seller"):
        dealing.exchange.deny(deal_id, "no", sender=dealing.buyer)
    dealing.exchange.deny(deal_id, "not to you", sender=dealing.seller)
    closed(dealing, deal_id, DealState.REFUNDED, PRICE_WEI, 0, "not to you")


# Steps 3 and 4


def test_a_buyer_confirms(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.OFFERED)
    with boa.reverts("exchange: not the buyer"):
        dealing.confirm(deal_id, sender=dealing.seller)
    dealing.confirm(deal_id)
    deadline = dealing.now + REVEAL_SECONDS
    assert dealing.event() == {"event": "Confirmed", "deal_id": deal_id, "deadline": deadline}


def test_a_buyer_declines(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.OFFERED)
    with boa.reverts("exchange: not the buyer"):
        dealing.exchange.decline(deal_id, "no", sender=dealing.seller)
    dealing.exchange.decline(deal_id, "false offer", sender=dealing.buyer)
    closed(dealing, deal_id, DealState.REFUNDED, PRICE_WEI, BOND_WEI, "false offer")


def test_only_the_t_of_the_offer_passes(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.CONFIRMED)
    with boa.reverts("exchange: not the seller"):
        dealing.reveal(deal_id, sender=dealing.third)
    for t in (0, SECP256K1_ORDER, SECP256K1_ORDER + 1, 2**256 - 1):
        with boa.reverts("exchange: t out of range"):
            dealing.reveal(deal_id, t)
    for t in (1, number(T) - 1, number(T) + 1, SECP256K1_ORDER - number(T), number(SIGMA)):
        with boa.reverts("exchange: another t was offered"):
            dealing.reveal(deal_id, t)
    dealing.reveal(deal_id)
    deadline = dealing.now + DISPUTE_SECONDS
    assert dealing.event() == {"event": "Revealed", "deal_id": deal_id, "t": number(T), "deadline": deadline}


def test_a_t_beyond_the_order_is_refused_though_it_leads_to_the_same_point(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.OPEN)
    dealing.offer(deal_id, t_address=address_of_point(point_of((5).to_bytes(32, "big"))))
    dealing.confirm(deal_id)
    with boa.reverts("exchange: t out of range"):
        dealing.reveal(deal_id, SECP256K1_ORDER + 5)
    dealing.reveal(deal_id, 5)


@pytest.mark.parametrize("t", [1, 2, SECP256K1_ORDER - 1, SECP256K1_ORDER // 2 + 1, 2**255 + 19])
def test_the_curve_says_yes_to_any_t_of_its_own_address(dealing: Dealing, t: int) -> None:
    deal_id = dealing.deal_in(DealState.OPEN)
    dealing.offer(deal_id, t_address=address_of_point(point_of(t.to_bytes(32, "big"))))
    dealing.confirm(deal_id)
    dealing.reveal(deal_id, t)
    assert dealing.state(deal_id) == DealState.REVEALED


# Step 5


def test_a_buyer_settles_at_once(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    for sender in (dealing.seller, dealing.contracts.stranger):
        with boa.reverts("exchange: the buyer may still dispute"):
            dealing.exchange.settle(deal_id, sender=sender)
    dealing.exchange.settle(deal_id, sender=dealing.buyer)
    closed(dealing, deal_id, DealState.PAID, 0, PRICE_WEI + BOND_WEI, "")


def test_anybody_settles_when_the_time_to_dispute_is_over(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.let_pass(DISPUTE_SECONDS - 1)
    with boa.reverts("exchange: the buyer may still dispute"):
        dealing.exchange.settle(deal_id, sender=dealing.seller)
    dealing.let_pass(1)
    dealing.exchange.settle(deal_id, sender=dealing.contracts.stranger)
    closed(dealing, deal_id, DealState.PAID, 0, PRICE_WEI + BOND_WEI, "")


def test_a_dispute_costs_a_bond(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    with boa.reverts("exchange: not the buyer"):
        dealing.dispute(deal_id, sender=dealing.third)
    for value in (0, BOND_WEI - 1, BOND_WEI + 1):
        with boa.reverts("exchange: not the bond signed"):
            dealing.dispute(deal_id, value=value)
    dealing.dispute(deal_id)
    said = dealing.event()
    assert said["event"] == "Disputed" and said["evidence"] == b"\x0b" * 80
    assert said["deadline"] == dealing.now + RULING_SECONDS
    assert dealing.balance() == dealing.exchange.open_wei() == PRICE_WEI + 2 * BOND_WEI


@pytest.mark.parametrize("for_buyer", [True, False])
def test_who_is_wrong_loses_its_bond_to_the_other(dealing: Dealing, for_buyer: bool) -> None:
    deal_id = dealing.deal_in(DealState.DISPUTED)
    for sender in (dealing.buyer, dealing.seller, dealing.contracts.server):
        with boa.reverts("exchange: not the arbiter"):
            dealing.rule(deal_id, for_buyer, sender=sender)
    dealing.rule(deal_id, for_buyer)
    everything = PRICE_WEI + 2 * BOND_WEI
    if for_buyer:
        closed(dealing, deal_id, DealState.REFUNDED, everything, 0, "looked")
    else:
        closed(dealing, deal_id, DealState.PAID, 0, everything, "looked")


def test_an_arbiter_out_of_standing_does_not_rule(dealing: Dealing) -> None:
    with boa.env.anchor():
        boa.env.evm.patch.timestamp = VALID_TO - 2 * DAY
        deal_id = dealing.deal_in(DealState.DISPUTED)
        dealing.let_pass(2 * DAY)
        with boa.reverts("exchange: not an active member"):
            dealing.rule(deal_id, True)
        with boa.reverts("exchange: not an active hospital"):
            dealing.register(root=OTHER)


def test_a_silent_arbiter_costs_neither_side_its_bond(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.DISPUTED)
    dealing.let_pass(RULING_SECONDS - 1)
    with boa.reverts("exchange: the arbiter may still rule"):
        dealing.exchange.settle(deal_id, sender=dealing.seller)
    dealing.let_pass(1)
    with boa.reverts("exchange: too late"):
        dealing.rule(deal_id, True)
    dealing.exchange.settle(deal_id, sender=dealing.contracts.stranger)
    closed(dealing, deal_id, DealState.PAID, BOND_WEI, PRICE_WEI + BOND_WEI, "no ruling")


# Timeouts


@pytest.mark.parametrize(
    ("state", "seconds", "buyer_wei", "seller_wei", "reason"),
    [
        (DealState.OPEN, DAY, PRICE_WEI, 0, "no offer"),
        (DealState.OFFERED, CONFIRM_SECONDS, PRICE_WEI, BOND_WEI, "no confirmation"),
        (DealState.CONFIRMED, REVEAL_SECONDS, PRICE_WEI + BOND_WEI, 0, "no reveal"),
    ],
)
def test_whoever_stops_in_the_middle(
    dealing: Dealing, state: DealState, seconds: int, buyer_wei: int, seller_wei: int, reason: str
) -> None:
    deal_id = dealing.deal_in(state)
    next_steps: dict[DealState, Callable[[Digest], None]] = {
        DealState.OPEN: dealing.offer,
        DealState.OFFERED: dealing.confirm,
        DealState.CONFIRMED: dealing.reveal,
    }
    dealing.let_pass(seconds - 1)
    with boa.reverts("exchange: still in time"):
        dealing.exchange.refund(deal_id, sender=dealing.buyer)
    dealing.let_pass(1)
    with boa.reverts("exchange: too late"):
        next_steps[state](deal_id)
    dealing.exchange.refund(deal_id, sender=dealing.contracts.stranger)
    closed(dealing, deal_id, DealState.REFUNDED, buyer_wei, seller_wei, reason)


def test_a_late_dispute_is_none(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.let_pass(DISPUTE_SECONDS)
    with boa.reverts("exchange: too late"):
        dealing.dispute(deal_id)


CALLS: dict[str, tuple[Callable[[Dealing, Digest], None], set[DealState], str]] = {
    "deny": (lambda d, i: d.exchange.deny(i, "", sender=d.seller), {DealState.OPEN}, "exchange: not open"),
    "offer": (lambda d, i: d.offer(i), {DealState.OPEN}, "exchange: not open"),
    "decline": (
        lambda d, i: d.exchange.decline(i, "", sender=d.buyer),
        {DealState.OFFERED},
        "exchange: not offered",
    ),
    "confirm": (lambda d, i: d.confirm(i), {DealState.OFFERED}, "exchange: not offered"),
    "reveal": (lambda d, i: d.reveal(i), {DealState.CONFIRMED}, "exchange: not confirmed"),
    "dispute": (lambda d, i: d.dispute(i), {DealState.REVEALED}, "exchange: not revealed"),
    "rule": (lambda d, i: d.rule(i, True), {DealState.DISPUTED}, "exchange: not disputed"),
    "settle": (
        lambda d, i: d.exchange.settle(i, sender=d.buyer),
        {DealState.REVEALED},
        "exchange: nothing to settle",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_early_and_repeated_calls_change_nothing(dealing: Dealing, name: str) -> None:
    call, lawful, reason = CALLS[name]
    for state in ALL_STATES:
        deal_id = dealing.deal_in(min(state, DealState.DISPUTED))
        if state is DealState.PAID:
            dealing.rule(deal_id, False)
        elif state is DealState.REFUNDED:
            dealing.rule(deal_id, True)
        before = tuple(dealing.exchange.deal(deal_id)), dealing.credits(), dealing.balance()
        if state in lawful:
            call(dealing, deal_id)
            continue
        late = name == "settle" and state is DealState.DISPUTED
        with boa.reverts("exchange: the arbiter may still rule" if late else reason):
            call(dealing, deal_id)
        assert (tuple(dealing.exchange.deal(deal_id)), dealing.credits(), dealing.balance()) == before


def test_nobody_refunds_what_was_revealed(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.let_pass(100 * DAY)
    with boa.reverts("exchange: nothing to refund"):
        dealing.exchange.refund(deal_id)
    dealing.exchange.settle(deal_id)
    with boa.reverts("exchange: nothing to refund"):
        dealing.exchange.refund(deal_id)
    with boa.reverts("exchange: nothing to refund"):
        dealing.exchange.refund(OTHER)


# Money


def test_credits_are_fetched_once(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.exchange.settle(deal_id, sender=dealing.buyer)
    before = boa.env.get_balance(dealing.seller)
    with boa.reverts("exchange: nothing to claim"):
        dealing.exchange.claim(sender=dealing.buyer)
    dealing.exchange.claim(sender=dealing.seller)
    assert dealing.event() == {
        "event": "CreditPaid",
        "account": dealing.seller,
        "amount_wei": PRICE_WEI + BOND_WEI,
    }
    assert boa.env.get_balance(dealing.seller) == before + PRICE_WEI + BOND_WEI
    with boa.reverts("exchange: nothing to claim"):
        dealing.exchange.claim(sender=dealing.seller)
    assert dealing.balance() == dealing.exchange.open_wei() == 0


def test_credits_wait_while_their_member_is_not_active(dealing: Dealing) -> None:
    deal_id = dealing.deal_in(DealState.REVEALED)
    dealing.exchange.settle(deal_id, sender=dealing.buyer)
    with boa.env.anchor():
        boa.env.evm.patch.timestamp = VALID_TO
        with boa.reverts("exchange: not an active member"):
            dealing.exchange.claim(sender=dealing.seller)
    dealing.exchange.claim(sender=dealing.seller)


def test_wei_do_not_come_in_by_another_door(dealing: Dealing) -> None:
    with pytest.raises(Revert):
        boa.env.raw_call(dealing.exchange.address, sender=dealing.buyer, value=1)
    assert dealing.balance() == 0
    deal_id = dealing.deal_in(DealState.OFFERED)
    with boa.reverts():
        dealing.exchange.confirm(deal_id, sender=dealing.buyer, value=1)


def closed(
    dealing: Dealing, deal_id: Digest, state: DealState, buyer_wei: int, seller_wei: int, reason: str
) -> None:
    """The deal ended so, and the money is where it belongs."""
    assert dealing.event() == {
        "event": "DealClosed",
        "deal_id": deal_id,
        "state": state,
        "buyer_wei": buyer_wei,
        "seller_wei": seller_wei,
        "reason": reason,
    }
    assert dealing.state(deal_id) == state
    assert dealing.credits() == (buyer_wei, seller_wei)
    assert dealing.balance() == dealing.exchange.open_wei() == buyer_wei + seller_wei
