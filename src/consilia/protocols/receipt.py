"""A buyer's receipt: a file by which anybody, offline, sees who asked for what and what was handed over.

It holds no secret. That the buyer has the registered secret is shown by a signature made with it: a key hash is
the keccak-256 of its public key, and what it signs, nobody else can.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from eth_utils.address import to_checksum_address
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from consilia.crypto.blinding import point_of
from consilia.crypto.typed_data import Domain, address_of_point, sign_with_secret
from consilia.errors import VerificationError
from consilia.protocols.exchange import (
    Deal,
    Request,
    Verdict,
    exchange_domain,
    offer_digest,
    require_secret_holder,
    require_signer,
)
from consilia.values import Address, Digest, canonical_json, parse_json

DELIVERY_TYPE = "Delivery(bytes32 dealId,uint256 t,uint256 size,uint8 verdict)"


def _checksummed(account: str) -> str:
    if account != to_checksum_address(account):
        raise ValueError("an account has one spelling, that of EIP-55")
    return account


Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Signature = Annotated[str, Field(pattern="^[0-9a-f]{130}$")]
Account = Annotated[str, Field(pattern="^0x[0-9a-fA-F]{40}$"), AfterValidator(_checksummed)]
Whole = Annotated[int, Field(ge=0, lt=2**256)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SignedRequest(_Part):
    """Step 1, as the buyer signed it."""

    owner: Account
    root: Hex32
    key_hash: Hex32
    task_id: Whole
    round_index: Whole
    arbiter: Account
    price_wei: Whole
    bond_wei: Whole
    recipient_key: Hex32
    nonce: Whole
    deadline: Whole
    buyer: Account
    signature: Signature

    def request(self) -> Request:
        """As the protocol has it."""
        return Request(
            self.owner,
            Digest.from_hex(self.root),
            Digest.from_hex(self.key_hash),
            self.task_id,
            self.round_index,
            self.arbiter,
            self.price_wei,
            self.bond_wei,
            bytes.fromhex(self.recipient_key),
            self.nonce,
            self.deadline,
        )


class SignedOffer(_Part):
    """Step 2, as the owner signed it."""

    t_address: Account
    message: Annotated[str, Field(pattern="^([0-9a-f]{2}){1,256}$")]
    signature: Signature


class Delivery(_Part):
    """Steps 4 and 5: t, and what the buyer found."""

    t: Hex32
    size: Whole
    verdict: Annotated[int, Field(ge=1, le=3)]
    signature: Signature
    """The buyer's."""
    secret_signature: Signature
    """The envelope's secret's."""


class Receipt(_Part):
    """All that a third party needs."""

    format: Literal["consilia/receipt/v1"] = "consilia/receipt/v1"
    chain_id: Whole
    exchange: Account
    request: SignedRequest
    offer: SignedOffer
    delivery: Delivery

    def to_bytes(self) -> bytes:
        """Canonical JSON and a line's end."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"


@dataclass(frozen=True)
class Proven:
    """What a good receipt says."""

    deal_id: Digest
    buyer: Address
    owner: Address
    root: Digest
    key_hash: Digest
    price_wei: int
    verdict: Verdict


def write_receipt(
    domain: Domain, deal: Deal, size: int, verdict: Verdict, secret: bytes, sign: Callable[[Digest], bytes]
) -> Receipt:
    """The receipt of a deal whose t is known.

    Args:
        size: bytes of the whole envelope.
        secret: the envelope's, which the buyer now has; it signs and stays here.
        sign: the buyer's account over a digest: r, s, v, 65 bytes.
    """
    statement = delivery_digest(domain, deal.deal_id, deal.t, size, verdict)
    wanted = deal.request
    return Receipt(
        chain_id=domain.chain_id,
        exchange=domain.contract,
        request=SignedRequest(
            owner=wanted.owner,
            root=str(wanted.root),
            key_hash=str(wanted.key_hash),
            task_id=wanted.task_id,
            round_index=wanted.round_index,
            arbiter=wanted.arbiter,
            price_wei=wanted.price_wei,
            bond_wei=wanted.bond_wei,
            recipient_key=wanted.recipient_key.hex(),
            nonce=wanted.nonce,
            deadline=wanted.deadline,
            buyer=deal.buyer,
            signature=deal.request_signature.hex(),
        ),
        offer=SignedOffer(
            t_address=deal.t_address, message=deal.message.hex(), signature=deal.offer_signature.hex()
        ),
        delivery=Delivery(
            t=f"{deal.t:064x}",
            size=size,
            verdict=int(verdict),
            signature=sign(statement).hex(),
            secret_signature=sign_with_secret(statement, secret).hex(),
        ),
    )


def delivery_digest(domain: Domain, deal_id: Digest, t: int, size: int, verdict: Verdict) -> Digest:
    """What the buyer and the secret sign of a delivery."""
    return domain.digest(DELIVERY_TYPE, (deal_id, t, size, int(verdict)))


def verify_receipt(data: bytes) -> Proven:
    """Check a receipt with nothing else at hand.

    It proves: the buyer asked the owner for this root at this price; the owner offered it and its t came out;
    the holder of the receipt's signatures has the very secret that was registered. That the accounts are those of
    these hospitals the registry says; what the buyer found inside is the buyer's word.

    Raises:
        VerificationError: it is no receipt, or a part of it does not fit the others.
    """
    receipt = _parse(data)
    domain = exchange_domain(receipt.chain_id, receipt.exchange)
    wanted, offer, delivery = receipt.request, receipt.offer, receipt.delivery
    request = wanted.request()
    deal_id = request.deal_id(domain)
    require_signer(deal_id, bytes.fromhex(wanted.signature), wanted.buyer, "the request")
    offered = offer_digest(domain, deal_id, offer.t_address, bytes.fromhex(offer.message))
    require_signer(offered, bytes.fromhex(offer.signature), wanted.owner, "the offer")
    if address_of_point(point_of(bytes.fromhex(delivery.t))) != offer.t_address:
        raise VerificationError("the receipt's t is not the one that was offered")
    verdict = Verdict(delivery.verdict)
    statement = delivery_digest(domain, deal_id, int(delivery.t, 16), delivery.size, verdict)
    require_signer(statement, bytes.fromhex(delivery.signature), wanted.buyer, "the delivery")
    require_secret_holder(statement, bytes.fromhex(delivery.secret_signature), request.key_hash)
    return Proven(
        deal_id, wanted.buyer, wanted.owner, request.root, request.key_hash, request.price_wei, verdict
    )


def _parse(data: bytes) -> Receipt:
    try:
        receipt = Receipt.model_validate(parse_json(data))
    except (ValueError, ValidationError) as error:
        raise VerificationError(f"expected a receipt of Consilia; {error}") from error
    if receipt.to_bytes() != data:
        raise VerificationError("expected a receipt in canonical form, got another spelling of one")
    return receipt
