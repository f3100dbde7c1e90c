"""exchange.vy: every revert beside its success, every timeout, every signature that must not pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import boa
import pytest
from eth.exceptions import Revert

from consilia.crypto.blinding import point_of
from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.crypto.typed_data import address_of_point, sign_with_secret
from consilia.protocols.exchange import DealState, Verdict, attestation_digest, exchange_domain
from consilia.values import ArtifactKind, Digest
from tests.contracts.conftest import VALID_TO, Contracts
from tests.contracts.dealing import (
    BOND_WEI,
    BUYER_KEY,
    CARD,
    CONFIRM_SECONDS,
    DAY,
    DISPUTE_SECONDS,
    KEY_HASH,
    MESSAGE,
    PRICE_WEI,
    REVEAL_SECONDS,
    ROOT,
    RULING_SECONDS,
    SERVER_KEY,
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


# Step 0


def test_an_owner_registers_an_artifact_once(dealing: Dealing) -> None:
    dealing.register()
    assert dealing.event() == {
        "event": "ArtifactRegistered",
        "owner": dealing.seller,
        "root": ROOT,
        "kind": ArtifactKind.DATASET,
        "key_hash": KEY_HASH,
        "size": 4096,
        "recipient_key": b"\x05" * 32,
        "task_id": 0,
        "round_index": 0,
        "price_wei": PRICE_WEI,
        "card": CARD,
    }
    assert tuple(dealing.exchange.artifact(dealing.seller, ROOT)) == (KEY_HASH, False)
    with boa.reverts("exchange: already registered"):
        dealing.register(key_hash=OTHER)
    dealing.register(sender=dealing.buyer)  # the same root of another owner is another artifact


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": ArtifactKind.MODEL}, "exchange: unknown kind"),
        ({"task_id": 1}, "exchange: kind and task differ"),
        ({"kind": ArtifactKind.UPDATE}, "exchange: kind and task differ"),
        ({"kind": ArtifactKind.UPDATE, "task_id": 1}, "exchange: kind and recipient differ"),
        ({"recipient_key": bytes(32)}, "exchange: kind and recipient differ"),
        ({"root": bytes(32)}, "exchange: empty root or key hash"),
        ({"key_hash": bytes(32)}, "exchange: empty root or key hash"),
    ],
)
def test_what_cannot_be_registered(dealing: Dealing, changes: dict[str, Any], reason: str) -> None:
    with boa.reverts(reason):
        dealing.register(**changes)


def test_only_hospitals_register(dealing: Dealing) -> None:
    for sender in (dealing.contracts.server, dealing.contracts.auditor, dealing.contracts.stranger):
        with boa.reverts("exchange: not an active hospital"):
            dealing.register(sender=sender)
    dealing.register()


def test_an_update_is_registered_only_by_who_handed_one_in(dealing: Dealing) -> None:
    task_id = dealing.contracts.training_task()
    update = {"kind": ArtifactKind.UPDATE, "recipient_key": bytes(32), "task_id": task_id}
    with boa.reverts("exchange: no update in this task"):
        dealing.register(**update)
    dealing.contracts.register(task_id, 0, dealing.seller)
    dealing.register(**update)
    with boa.reverts("exchange: no update in this task"):
        dealing.register(sender=dealing.buyer, **update)


def test_an_owner_withdraws_its_artifact_once(dealing: Dealing) -> None:
    with boa.reverts("exchange: not your artifact"):
        dealing.exchange.withdraw(ROOT, sender=dealing.seller)
    dealing.register()
    deal_id = dealing.request()
    with boa.reverts("exchange: not your artifact"):
        dealing.exchange.withdraw(ROOT, sender=dealing.buyer)
    dealing.exchange.withdraw(ROOT, sender=dealing.seller)
    assert dealing.event() == {"event": "ArtifactWithdrawn", "owner": dealing.seller, "root": ROOT}
    with boa.reverts("exchange: already withdrawn"):
        dealing.exchange.withdraw(ROOT, sender=dealing.seller)
    with boa.reverts("exchange: artifact withdrawn"):
        dealing.request()
    with boa.reverts("exchange: already registered"):
        dealing.register()
    dealing.offer(deal_id)  # what was open goes on


# Step 1


def test_a_request_puts_the_price_into_escrow(dealing: Dealing) -> None:
    dealing.register()
    wanted = dealing.wish()
    deal_id = dealing.request(wanted)
    said = dealing.event()
    assert deal_id == wanted.deal_id(dealing.domain) == said["deal_id"]
    assert said["event"] == "Requested" and said["buyer"] == dealing.buyer
    assert tuple(said[name] for name in wanted.__dataclass_fields__) == wanted.values()
    assert dealing.exchange.nonces(dealing.buyer) == 1
    record = dealing.exchange.deal(deal_id)
    assert record.state == DealState.OPEN and record.deadline == wanted.deadline
    assert (record.buyer, record.seller, record.arbiter) == (dealing.buyer, dealing.seller, dealing.arbiter)
    assert dealing.balance() == dealing.exchange.open_wei() == PRICE_WEI


def test_a_request_is_good_once(dealing: Dealing) -> None:
    dealing.register()
    wanted = dealing.wish()
    dealing.request(wanted)
    with boa.reverts("exchange: nonce already used"):
        dealing.request(wanted)
    with boa.reverts("exchange: nonce already used"):
        dealing.request(dealing.wish(nonce=2))
    dealing.request()


def test_a_request_is_good_on_one_chain_and_contract(dealing: Dealing) -> None:
    dealing.register()
    chain_id = boa.env.evm.patch.chain_id
    for elsewhere in (
        exchange_domain(chain_id + 1, dealing.exchange.address),
        exchange_domain(chain_id, dealing.contracts.training.address),
        replace(dealing.domain, name="Consilia registry"),
    ):
        with boa.reverts("exchange: not the buyer's signature"):
            dealing.request(domain=elsewhere)
    dealing.request()


def test_every_field_of_a_request_is_signed(dealing: Dealing) -> None:
    dealing.register()
    honest = dealing.wish()
    signature = sign_with_secret(honest.deal_id(dealing.domain), bytes(BUYER_KEY.key))
    for changes in (
        {"owner": dealing.third},
        {"root": OTHER},
        {"key_hash": OTHER},
        {"task_id": 1},
        {"round_index": 1},
        {"arbiter": dealing.contracts.server},
        {"price_wei": PRICE_WEI - 1},
        {"bond_wei": 0},
        {"recipient_key": b"\x08" * 32},
        {"deadline": honest.deadline + 1},
    ):
        with boa.reverts("exchange: not the buyer's signature"):
            dealing.request(replace(honest, **changes), signature=signature)
    dealing.request(honest, signature=signature)


def test_signatures_that_must_not_pass(dealing: Dealing) -> None:
    dealing.register()
    wanted = dealing.wish()
    good = sign_with_secret(wanted.deal_id(dealing.domain), bytes(BUYER_KEY.key))
    bad = [high_s(good), good[:64], good[:64] + b"\x1d", bytes(64) + b"\x1b", good[:63] + b"\x00" + good[64:]]
    for signature in bad:
        with boa.reverts("exchange: not the buyer's signature"):
            dealing.request(wanted, signature=signature)
    with boa.reverts("exchange: not the buyer's signature"):
        dealing.request(wanted, key=THIRD_KEY)
    with boa.reverts("exchange: not the buyer's signature"):  # what a failed recovery gives is nobody
        dealing.request(dealing.wish(nonce=0), buyer="0x" + "00" * 20, signature=bytes(64) + b"\x1b")
    dealing.request(wanted, signature=good)


def test_the_price_paid_is_the_price_signed(dealing: Dealing) -> None:
    dealing.register()
    for value in (0, PRICE_WEI - 1, PRICE_WEI + 1):
        with boa.reverts("exchange: not the price signed"):
            dealing.request(value=value)
    boa.env.set_balance(dealing.contracts.stranger, 2**130)
    with boa.reverts("exchange: too much money"):
        dealing.request(dealing.wish(price_wei=2**128))
    with boa.reverts("exchange: too much money"):
        dealing.request(dealing.wish(bond_wei=2**128))
    dealing.request(dealing.wish(price_wei=0))


def test_deadlines_of_requests(dealing: Dealing) -> None:
    dealing.register()
    with boa.reverts("exchange: request out of date"):
        dealing.request(dealing.wish(deadline=dealing.now))
    with boa.reverts("exchange: deadline too far"):
        dealing.request(dealing.wish(deadline=dealing.now + 30 * DAY + 1))
    dealing.request(dealing.wish(deadline=dealing.now + 1))
    dealing.request(dealing.wish(deadline=dealing.now + 30 * DAY))


def test_who_may_deal(dealing: Dealing) -> None:
    dealing.register()
    server = dealing.contracts.server
    with boa.reverts("exchange: not an active hospital"):
        dealing.request(buyer=server, key=SERVER_KEY)
    with boa.reverts("exchange: seller not active"):
        dealing.request(dealing.wish(owner=server))
    with boa.reverts("exchange: buyer is the owner"):
        dealing.request(dealing.wish(owner=dealing.buyer))
    with boa.reverts("exchange: empty recipient key"):
        dealing.request(dealing.wish(recipient_key=bytes(32)))
    for party in (dealing.buyer, dealing.seller):
        with boa.reverts("exchange: arbiter is a party"):
            dealing.request(dealing.wish(arbiter=party))
    for nobody in (dealing.third, dealing.contracts.stranger, "0x" + "00" * 20):
        with boa.reverts("exchange: no such arbiter"):
            dealing.request(dealing.wish(arbiter=nobody))
    dealing.request(dealing.wish(arbiter=server))


def test_only_what_is_registered_can_be_asked_for(dealing: Dealing) -> None:
    with boa.reverts("exchange: no such artifact"):
        dealing.request()
    dealing.register()
    with boa.reverts("exchange: another key hash is registered"):
        dealing.request(dealing.wish(key_hash=OTHER))
    dealing.request()


def test_an_update_that_training_took_can_be_asked_for(dealing: Dealing) -> None:
    task_id = dealing.contracts.training_task()
    with boa.reverts("exchange: no update in this task"):
        dealing.request(dealing.wish(task_id=task_id))
    dealing.contracts.register(task_id, 0, dealing.seller)
    deal_id = dealing.request(dealing.wish(task_id=task_id))
    assert dealing.state(deal_id) == DealState.OPEN


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


# Attestations


def test_who_holds_the_secret_attests(dealing: Dealing) -> None:
    dealing.register()
    dealing.attest()
    assert dealing.event() == {
        "event": "Attested",
        "owner": dealing.seller,
        "root": ROOT,
        "attester": dealing.third,
        "key_hash": KEY_HASH,
        "verdict": Verdict.AS_REGISTERED,
        "note": "fine",
    }
    dealing.attest(
        sender=dealing.contracts.server
    )  # whoever opened it: a server its updates, a buyer its data


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"secret": b"\x12" * 32}, "exchange: not the secret's signature"),
        ({"signature": bytes(65)}, "exchange: not the secret's signature"),
        ({"verdict": 0}, "exchange: unknown verdict"),
        ({"verdict": 4}, "exchange: unknown verdict"),
        ({"key_hash": OTHER}, "exchange: another key hash is registered"),
        ({"sender": "the owner"}, "exchange: the owner cannot attest"),
        ({"sender": "a stranger"}, "exchange: not an active member"),
        ({"signed_as": "another"}, "exchange: not the secret's signature"),
    ],
)
def test_attestations_that_must_not_pass(dealing: Dealing, changes: dict[str, Any], reason: str) -> None:
    dealing.register()
    names = {"the owner": dealing.seller, "a stranger": dealing.contracts.stranger, "another": dealing.buyer}
    changes = {k: names.get(v, v) if isinstance(v, str) else v for k, v in changes.items()}
    with boa.reverts(reason):
        dealing.attest(**changes)


def test_an_attestation_with_the_higher_s_is_none(dealing: Dealing) -> None:
    digest = attestation_digest(
        dealing.domain, dealing.third, dealing.seller, ROOT, KEY_HASH, Verdict.AS_REGISTERED, "fine"
    )
    with boa.reverts("exchange: not the secret's signature"):
        dealing.attest(signature=high_s(sign_with_secret(digest, SIGMA)))


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
