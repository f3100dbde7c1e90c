"""A receipt by itself, of a deal that no ledger has: what it proves, and its one spelling."""

from __future__ import annotations

import json
from typing import Any

import pytest
from eth_hash.auto import keccak

from consilia.crypto.blinding import point_of
from consilia.crypto.typed_data import address_of_point, sign_with_secret
from consilia.errors import VerificationError
from consilia.protocols.exchange import Deal, DealState, Request, Verdict, exchange_domain, offer_digest
from consilia.protocols.receipt import verify_receipt, write_receipt
from consilia.values import Address, Digest, canonical_json

BUYER, OWNER, SIGMA, T = (bytes([number]) * 32 for number in (0x21, 0x22, 0x23, 0x24))
MESSAGE = b"sealed to the buyer"


def address(secret: bytes) -> Address:
    return address_of_point(point_of(secret))


ARBITER = address(b"\x25" * 32)
DOMAIN = exchange_domain(4711, address(b"\x26" * 32))


def receipt() -> bytes:
    key_hash = Digest(keccak(point_of(SIGMA)))
    request = Request(
        address(OWNER), Digest.of(b"root"), key_hash, 0, 0, ARBITER, 1000, 100, b"\x27" * 32, 3, 9999
    )
    deal_id = request.deal_id(DOMAIN)
    offered = offer_digest(DOMAIN, deal_id, address(T), MESSAGE)
    deal = Deal(
        deal_id,
        request,
        address(BUYER),
        sign_with_secret(deal_id, BUYER),
        DealState.REVEALED,
        9999,
        t_address=address(T),
        message=MESSAGE,
        offer_signature=sign_with_secret(offered, OWNER),
        t=int.from_bytes(T, "big"),
    )
    made = write_receipt(
        DOMAIN, deal, 4096, Verdict.AS_REGISTERED, SIGMA, lambda digest: sign_with_secret(digest, BUYER)
    )
    return made.to_bytes()


def spelt(change: dict[str, Any], part: str | None) -> bytes:
    value = json.loads(receipt())
    (value[part] if part else value).update(change)
    return canonical_json(value) + b"\n"


def test_a_receipt_of_known_bytes_holds() -> None:
    proven = verify_receipt(receipt())
    assert (proven.buyer, proven.owner, proven.price_wei) == (address(BUYER), address(OWNER), 1000)
    assert SIGMA.hex().encode() not in receipt()


@pytest.mark.parametrize(
    ("part", "name"),
    [
        (None, "exchange"),
        ("request", "owner"),
        ("request", "buyer"),
        ("request", "arbiter"),
        ("offer", "t_address"),
    ],
)
def test_an_account_in_another_spelling_is_refused(part: str | None, name: str) -> None:
    """Case is not signed: two files would tell of one deal, and a list of digests would not know the second."""
    value = json.loads(receipt())
    account = (value[part] if part else value)[name]
    for other in (account.lower(), "0x" + account[2:].upper(), account[2:]):
        with pytest.raises(VerificationError, match="expected a receipt"):
            verify_receipt(spelt({name: other}, part))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("request", {"price_wei": 1001}),
        ("request", {"price_wei": "1000"}),
        ("request", {"price_wei": 1000.0}),
        ("request", {"task_id": False}),
        ("request", {"arbiter": address(BUYER)}),
        ("offer", {"message": "00"}),
        ("delivery", {"t": "24" * 31 + "25"}),
        ("delivery", {"size": 4097}),
        ("delivery", {"verdict": 2}),
        (None, {"chain_id": 4712}),
        (None, {"format": "consilia/receipt/v2"}),
        (None, {"more": 1}),
    ],
)
def test_whatever_is_changed_the_receipt_fails(part: str | None, change: dict[str, Any]) -> None:
    with pytest.raises(VerificationError):
        verify_receipt(spelt(change, part))


def test_another_spelling_of_the_json_is_refused() -> None:
    for data in (receipt()[:-1], receipt() + b"\n", json.dumps(json.loads(receipt())).encode() + b"\n"):
        with pytest.raises(VerificationError, match="another spelling"):
            verify_receipt(data)
