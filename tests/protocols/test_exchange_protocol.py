"""The equations and decisions of an exchange: what is checked before money moves, and what can never be believed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.crypto import hpke
from consilia.crypto.blinding import blind, derive_t, point_of, sum_of, unblind
from consilia.crypto.envelope import SECP256K1_ORDER, key_hash
from consilia.crypto.keys import Identity
from consilia.crypto.typed_data import address_of_point, sign_with_secret, signer
from consilia.errors import EnvelopeError, VerificationError
from consilia.protocols.card import Card, parse_card
from consilia.protocols.exchange import (
    REVEAL_MARGIN_SECONDS,
    Deal,
    DealState,
    Request,
    Step,
    check_offer,
    check_opened_offer,
    exchange_domain,
    make_offer,
    next_step,
    open_evidence,
    open_secret,
    require_secret_holder,
    require_signer,
    seal_evidence,
)
from consilia.values import Digest

N = SECP256K1_ORDER
NUMBERS = st.integers(1, N - 1).map(lambda value: value.to_bytes(32, "big"))
SIGMA, SECRET = b"\x11" * 32, b"\x33" * 32
DEAL = Digest.of(b"deal")
BUYER, SELLER, ARBITER = ("0x" + digit * 40 for digit in "123")
IDENTITY = Identity.generate()
DOMAIN = exchange_domain(1, SELLER)
REQUEST = Request(
    SELLER, Digest.of(b"root"), key_hash(SIGMA), 0, 0, ARBITER, 5, 1, IDENTITY.recipient, 0, 1000
)


@given(NUMBERS, NUMBERS)
def test_blinding_comes_undone_and_adds_up_on_the_curve(secret: bytes, t: bytes) -> None:
    blinded = blind(secret, t)
    assert unblind(blinded, t) == secret
    if int.from_bytes(secret, "big") + int.from_bytes(t, "big") != N:
        assert point_of(blinded) == sum_of(point_of(secret), point_of(t))


def test_points_that_cancel_out_are_refused() -> None:
    opposite = (N - int.from_bytes(SIGMA, "big")).to_bytes(32, "big")
    with pytest.raises(VerificationError):
        sum_of(point_of(SIGMA), point_of(opposite))
    for number in (bytes(32), N.to_bytes(32, "big"), b"\xff" * 32, b"\x01" * 31):
        with pytest.raises(VerificationError):
            point_of(number)
    with pytest.raises(VerificationError):
        sum_of(point_of(SIGMA), b"\x01" * 64)


def test_every_deal_has_its_own_t() -> None:
    deals = [Digest.of(bytes([number])) for number in range(200)]
    numbers = {derive_t(SECRET, deal) for deal in deals}
    assert len(numbers) == len(deals)
    assert derive_t(SECRET, deals[0]) == derive_t(SECRET, deals[0]) != derive_t(b"\x34" * 32, deals[0])


def test_an_honest_offer_gives_the_registered_secret() -> None:
    offer = make_offer(SECRET, SIGMA, DEAL, IDENTITY.recipient)
    blinded = check_offer(offer.message, IDENTITY, DEAL, REQUEST, offer.t_address)
    t = int.from_bytes(derive_t(SECRET, DEAL), "big")
    assert open_secret(blinded, t, REQUEST.key_hash) == SIGMA
    with pytest.raises(VerificationError):
        open_secret(blinded, t + 1, REQUEST.key_hash)


def test_an_offer_opens_for_its_buyer_in_its_deal_alone() -> None:
    offer = make_offer(SECRET, SIGMA, DEAL, IDENTITY.recipient)
    with pytest.raises(EnvelopeError):
        check_offer(offer.message, IDENTITY, Digest.of(b"other"), REQUEST, offer.t_address)
    stranger = Identity.generate()
    for request in (REQUEST, replace(REQUEST, recipient_key=stranger.recipient)):
        with pytest.raises(EnvelopeError):
            check_offer(offer.message, stranger, DEAL, request, offer.t_address)
    for at in range(0, len(offer.message), 16):
        damaged = bytearray(offer.message)
        damaged[at] ^= 1
        with pytest.raises(EnvelopeError):
            check_offer(bytes(damaged), IDENTITY, DEAL, REQUEST, offer.t_address)


def test_false_offers_are_seen_before_the_money_moves() -> None:
    t, other = derive_t(SECRET, DEAL), b"\x44" * 32
    t_address = address_of_point(point_of(t))
    honest = [blind(SIGMA, t), point_of(SIGMA), point_of(t)]
    assert check_opened_offer(b"".join(honest), t_address, REQUEST.key_hash) == honest[0]
    false = [
        [blind(other, t), point_of(SIGMA), point_of(t)],  # garbage for s^
        [blind(other, t), point_of(other), point_of(t)],  # another secret, consistent in itself
        [blind(SIGMA, other), point_of(SIGMA), point_of(other)],  # another t than on the ledger
        [bytes(32), point_of(SIGMA), point_of(t)],
        [honest[0], b"\x00" * 64, point_of(t)],
        honest[:2],
    ]
    for parts in false:
        with pytest.raises(VerificationError):
            check_opened_offer(b"".join(parts), t_address, REQUEST.key_hash)


def test_evidence_opens_for_the_arbiter_alone() -> None:
    arbiter = Identity.generate()
    t = derive_t(SECRET, DEAL)
    evidence = seal_evidence(arbiter.recipient, blind(SIGMA, t), DEAL)
    number = int.from_bytes(t, "big")
    assert open_evidence(evidence, arbiter, DEAL, number, REQUEST.key_hash) == SIGMA
    with pytest.raises(EnvelopeError):
        open_evidence(evidence, IDENTITY, DEAL, number, REQUEST.key_hash)
    false = seal_evidence(arbiter.recipient, blind(b"\x44" * 32, t), DEAL)
    with pytest.raises(VerificationError):
        open_evidence(false, arbiter, DEAL, number, REQUEST.key_hash)


def test_signatures_are_of_one_spelling() -> None:
    digest = REQUEST.deal_id(DOMAIN)
    signature = sign_with_secret(digest, SIGMA)
    account = address_of_point(point_of(SIGMA))
    assert signer(digest, signature) == account
    require_signer(digest, signature, account, "it")
    require_secret_holder(digest, signature, key_hash(SIGMA))
    high = N - int.from_bytes(signature[32:64], "big")
    malleated = signature[:32] + high.to_bytes(32, "big") + bytes((55 - signature[64],))
    for bad in (malleated, signature[:64], signature[:64] + b"\x00", bytes(65), b""):
        with pytest.raises(VerificationError):
            signer(digest, bad)
    with pytest.raises(VerificationError):
        require_signer(digest, signature, BUYER, "it")
    with pytest.raises(VerificationError):
        require_secret_holder(digest, sign_with_secret(digest, b"\x12" * 32), key_hash(SIGMA))


def test_a_request_is_kept_as_it_was_signed() -> None:
    assert Request.from_text(REQUEST.to_text()) == REQUEST
    elsewhere = [replace(DOMAIN, chain_id=2), replace(DOMAIN, contract=BUYER), replace(DOMAIN, name="x")]
    assert len({REQUEST.deal_id(domain) for domain in [DOMAIN, *elsewhere]}) == 4


STEPS = {
    (DealState.OPEN, SELLER, 0): Step.CONSIDER,
    (DealState.OPEN, BUYER, 0): Step.WAIT,
    (DealState.OFFERED, BUYER, 0): Step.CHECK_OFFER,
    (DealState.OFFERED, SELLER, 0): Step.WAIT,
    (DealState.CONFIRMED, SELLER, 0): Step.REVEAL,
    (DealState.CONFIRMED, SELLER, 5000 - REVEAL_MARGIN_SECONDS): Step.WAIT,
    (DealState.CONFIRMED, BUYER, 0): Step.WAIT,
    (DealState.REVEALED, BUYER, 0): Step.OPEN,
    (DealState.REVEALED, BUYER, 5000): Step.OPEN,
    (DealState.REVEALED, SELLER, 4999): Step.WAIT,
    (DealState.REVEALED, SELLER, 5000): Step.SETTLE,
    (DealState.DISPUTED, SELLER, 4999): Step.WAIT,
    (DealState.DISPUTED, SELLER, 5000): Step.SETTLE,
    (DealState.OPEN, BUYER, 5000): Step.REFUND,
    (DealState.OFFERED, SELLER, 5000): Step.REFUND,
    (DealState.CONFIRMED, BUYER, 5000): Step.REFUND,
    (DealState.CONFIRMED, SELLER, 5000): Step.REFUND,
    (DealState.PAID, BUYER, 9999): Step.WAIT,
    (DealState.REFUNDED, SELLER, 9999): Step.WAIT,
    (DealState.CONFIRMED, ARBITER, 0): Step.WAIT,
}


@pytest.mark.parametrize("account", [BUYER, SELLER])
@pytest.mark.parametrize("state", DealState)
def test_a_deal_of_a_suspended_party_ends_unless_t_is_out(state: DealState, account: str) -> None:
    deal = Deal(DEAL, REQUEST, BUYER, b"", state, 5000)
    step = next_step(deal, account, 0, both_bound=False)
    assert step is (Step.REFUND if state < DealState.REVEALED else next_step(deal, account, 0))


@pytest.mark.parametrize(("state", "account", "now"), STEPS)
def test_whose_turn_it_is(state: DealState, account: str, now: int) -> None:
    deal = Deal(DEAL, REQUEST, BUYER, b"", state, 5000)
    assert next_step(deal, account, now) is STEPS[state, account, now]


def test_nothing_but_a_canonical_card_is_read() -> None:
    card = Card(title="CT heads", description="from one scanner")
    assert parse_card(card.to_bytes()) == card
    spaced = card.to_bytes().replace(b",", b", ", 1)
    for bad in (spaced, b"{}", b"\xff", b"[" * 8000, card.to_bytes().replace(b'"title"', b'"titel"')):
        with pytest.raises(VerificationError):
            parse_card(bad)


def test_sealed_offers_differ_though_t_does_not() -> None:
    """Why an offer is kept: made again after a crash it would be another message under the same t."""
    first, second = (make_offer(SECRET, SIGMA, DEAL, IDENTITY.recipient) for _ in range(2))
    assert first.t_address == second.t_address and first.message != second.message
    assert len(first.message) == 32 + 160 + 16
    with pytest.raises(EnvelopeError):
        hpke.seal(bytes(32), b"", b"")
