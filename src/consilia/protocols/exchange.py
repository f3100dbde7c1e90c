"""Fair exchange, as values and decisions (PROTOCOLS section 5, docs/protocols/exchange.md); `roles` does the rest.

Steps: 0 register, 1 request, 2 offer, 3 confirm, 4 reveal, 5 open and settle, or dispute.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import astuple, dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from eth_hash.auto import keccak

from consilia.crypto import hpke
from consilia.crypto.blinding import blind, derive_t, point_of, sum_of, unblind
from consilia.crypto.custody import Opener
from consilia.crypto.typed_data import Domain, address_of_point, signer, signer_point
from consilia.errors import EnvelopeError, VerificationError
from consilia.values import Address, ArtifactKind, Digest, canonical_json, parse_json

DOMAIN_NAME = "Consilia exchange"
REQUEST_TYPE = (
    "Request(address owner,bytes32 root,bytes32 keyHash,uint256 taskId,uint256 roundIndex,address arbiter,"
    "uint256 priceWei,uint256 bondWei,bytes32 recipientKey,uint256 nonce,uint256 deadline)"
)
OFFER_TYPE = "Offer(bytes32 dealId,address tAddress,bytes32 messageDigest)"
ATTESTATION_TYPE = (
    "Attestation(address attester,address owner,bytes32 root,bytes32 keyHash,"
    "uint8 verdict,bytes32 noteDigest)"
)

MAX_WEI = 2**128
"""The contract takes less than that as a price or a bond."""

REVEAL_MARGIN_SECONDS = 600
"""A t that is published and comes too late is a gift: with less time than this left, the seller keeps it."""


class DealState(IntEnum):
    """Where a deal stands; the numbers are those of contracts/exchange.vy."""

    OPEN = 1
    OFFERED = 2
    CONFIRMED = 3
    REVEALED = 4
    DISPUTED = 5
    PAID = 6
    REFUNDED = 7

    @property
    def over(self) -> bool:
        """Whether nothing can happen any more."""
        return self in (DealState.PAID, DealState.REFUNDED)


class Verdict(IntEnum):
    """What somebody says who has opened an artifact; the numbers go onto the ledger."""

    AS_REGISTERED = 1
    """It opens, and encrypted again it has the registered root; what is inside fits the card."""
    NOT_AS_DESCRIBED = 2
    """It opens to what was registered, but that is not what the card says."""
    DOES_NOT_OPEN = 3
    """The registered secret does not open the registered envelope."""


@dataclass(frozen=True)
class Request:
    """Step 1: what the buyer signs. The digest of it names the deal."""

    owner: Address
    root: Digest
    key_hash: Digest
    task_id: int
    """0 for what is registered at the exchange; else the task that took the update in `round_index`."""
    round_index: int
    arbiter: Address
    price_wei: int
    bond_wei: int
    """What each side puts at stake: the seller with its offer, the buyer with a dispute."""
    recipient_key: bytes
    """The buyer's long-term key, to which s^ is sealed: task keys are known to the server."""
    nonce: int
    deadline: int
    """Unix seconds by which an offer must have come."""

    def values(self) -> tuple[object, ...]:
        """The fields as the contract takes them."""
        return astuple(self)

    def to_text(self) -> str:
        """As a home keeps it: canonical JSON."""
        plain = {
            name: value.hex() if isinstance(value, bytes) else value for name, value in vars(self).items()
        }
        return canonical_json(plain).decode()

    @classmethod
    def from_text(cls, text: str) -> Request:
        """What `to_text` wrote."""
        plain = parse_json(text.encode())
        plain |= {name: Digest.from_hex(plain[name]) for name in ("root", "key_hash")}
        return cls(**plain | {"recipient_key": bytes.fromhex(plain["recipient_key"])})

    def deal_id(self, domain: Domain) -> Digest:
        """What is signed, and the deal's name: of this chain, contract and nonce alone."""
        return domain.digest(REQUEST_TYPE, self.values())


def exchange_domain(chain_id: int, contract: Address) -> Domain:
    """Where the statements of an exchange hold."""
    return Domain(DOMAIN_NAME, chain_id, contract)


def offer_digest(domain: Domain, deal_id: Digest, t_address: Address, message: bytes) -> Digest:
    """Step 2: what the seller signs of its offer."""
    return domain.digest(OFFER_TYPE, (deal_id, t_address, Digest.of(message)))


def attestation_digest(
    domain: Domain,
    attester: Address,
    owner: Address,
    root: Digest,
    key_hash: Digest,
    verdict: Verdict,
    note: str,
) -> Digest:
    """What an attester signs with the envelope's secret."""
    values = (attester, owner, root, key_hash, int(verdict), keccak(note.encode()))
    return domain.digest(ATTESTATION_TYPE, values)


@dataclass(frozen=True)
class SealedOffer:
    """Step 2: what the seller posts; made once a deal, because sealing is random and t must stay the same."""

    t_address: Address
    message: bytes


def make_offer(exchange_secret: bytes, secret: bytes, deal_id: Digest, recipient_key: bytes) -> SealedOffer:
    """Step 2: blind an envelope's secret with the deal's t, and seal s^, S and T to the buyer.

    Args:
        exchange_secret: 32 bytes that this seller keeps for all its deals.
        secret: the envelope's sigma.

    Raises:
        EnvelopeError: the recipient key is malformed or of low order.
    """
    t = derive_t(exchange_secret, deal_id)
    points = point_of(secret), point_of(t)
    message = hpke.seal(recipient_key, b"".join((blind(secret, t), *points)), _offer_info(deal_id))
    return SealedOffer(address_of_point(points[1]), message)


def check_offer(
    message: bytes, opener: Opener, deal_id: Digest, request: Request, t_address: Address
) -> bytes:
    """Step 3: open an offer, and check that its t must give the registered secret. Returns s^.

    Raises:
        EnvelopeError: it does not open with this key, or belongs to another deal.
        VerificationError: it is false: confirmed, the deal would pay for nothing.
    """
    opened = _open_sealed(message, opener, request.recipient_key, _offer_info(deal_id))
    return check_opened_offer(opened, t_address, request.key_hash)


def check_opened_offer(opened: bytes, t_address: Address, key_hash: Digest) -> bytes:
    """The equations of step 3 on an opened message. Returns s^; raises VerificationError."""
    if len(opened) != 160:
        raise VerificationError(f"an offer holds 160 bytes, this one {len(opened)}: decline it")
    blinded, secret_point, t_point = opened[:32], opened[32:96], opened[96:]
    if keccak(secret_point) != key_hash:
        raise VerificationError("an offer is about another secret than the registered one: decline it")
    if address_of_point(t_point) != t_address:
        raise VerificationError("an offer's T is not the one on the ledger: decline it")
    if point_of(blinded) != sum_of(secret_point, t_point):
        raise VerificationError("an offer's s^ is not the sum of the secret and t: decline it")
    return blinded


def open_secret(blinded: bytes, t: int, key_hash: Digest) -> bytes:
    """Step 5: sigma = s^ - t.

    Raises:
        VerificationError: it is not the registered secret. After `check_offer` that cannot be.
    """
    secret = unblind(blinded, t.to_bytes(32, "big"))
    if keccak(point_of(secret)) != key_hash:
        raise VerificationError("s^ and t do not give the registered secret")
    return secret


def seal_evidence(arbiter_key: bytes, blinded: bytes, deal_id: Digest) -> bytes:
    """Step 5: s^ for the arbiter alone; with the t on the ledger it can open what the buyer could."""
    return hpke.seal(arbiter_key, blinded, _evidence_info(deal_id))


def open_evidence(evidence: bytes, opener: Opener, deal_id: Digest, t: int, key_hash: Digest) -> bytes:
    """Step 5: the registered secret out of a complaint.

    Raises:
        EnvelopeError: it does not open with the arbiter's key.
        VerificationError: it is not the s^ of this deal: the complaint has no ground.
    """
    for recipient in opener.recipients:  # the key may have been rotated since the complaint
        try:
            blinded = hpke.open_sealed(evidence, opener, recipient, _evidence_info(deal_id))
        except EnvelopeError:
            continue
        return open_secret(blinded, t, key_hash)
    raise EnvelopeError("the evidence opens with none of the arbiter's keys")


def require_signer(digest: Digest, signature: bytes, account: Address, what: str) -> None:
    """Check a signature.

    Raises:
        VerificationError: it is not this account's over this digest, or not canonical.
    """
    found = signer(digest, signature)
    if found != account:
        raise VerificationError(f"{what} should be signed by {account}, the signature leads to {found}")


def require_secret_holder(digest: Digest, signature: bytes, key_hash: Digest) -> None:
    """Check that a signature was made with the very secret of an envelope.

    Raises:
        VerificationError: it was not.
    """
    if keccak(signer_point(digest, signature)) != key_hash:
        raise VerificationError("expected a signature by the envelope's secret: the signer does not hold it")


def _open_sealed(message: bytes, opener: Opener, recipient: bytes, info: bytes) -> bytes:
    if recipient not in opener.recipients:
        raise EnvelopeError(f"this party does not hold the key {recipient.hex()}")
    return hpke.open_sealed(message, opener, recipient, info)


def _offer_info(deal_id: Digest) -> bytes:
    return b"consilia/exchange/offer/v1" + deal_id


def _evidence_info(deal_id: Digest) -> bytes:
    return b"consilia/exchange/evidence/v1" + deal_id


# Decisions


@dataclass(frozen=True)
class Deal:
    """A deal as the ledger tells it."""

    deal_id: Digest
    request: Request
    buyer: Address
    request_signature: bytes = field(repr=False)
    state: DealState
    deadline: int
    """Unix seconds; the first at which the step that the deal waits for is too late."""
    t_address: Address = ""
    message: bytes = field(default=b"", repr=False)
    offer_signature: bytes = field(default=b"", repr=False)
    t: int = 0
    evidence: bytes = field(default=b"", repr=False)
    buyer_wei: int = 0
    seller_wei: int = 0
    reason: str = ""

    @property
    def seller(self) -> Address:
        """The owner of the artifact."""
        return self.request.owner


class Step(Enum):
    """What a party does about a deal now."""

    WAIT = "wait"
    CONSIDER = "consider"
    CHECK_OFFER = "check offer"
    REVEAL = "reveal"
    OPEN = "open"
    SETTLE = "settle"
    REFUND = "refund"


def next_step(deal: Deal, account: Address, now: float, both_bound: bool = True) -> Step:
    """What is up to an account in a deal, by the ledger alone; whether it has done it already, `roles` knows.

    Args:
        now: Unix seconds.
        both_bound: whether buyer and seller are hospitals in good standing, or the seller left while it owes its t.
            Until t is out a deal ends without that.
    """
    late = now >= deal.deadline
    if deal.state in (DealState.OPEN, DealState.OFFERED, DealState.CONFIRMED) and (late or not both_bound):
        return Step.REFUND
    if deal.state is DealState.DISPUTED and late:
        return Step.SETTLE
    if account == deal.buyer:
        return {DealState.OFFERED: Step.CHECK_OFFER, DealState.REVEALED: Step.OPEN}.get(deal.state, Step.WAIT)
    if account != deal.seller:
        return Step.WAIT
    return _sellers_step(deal, now, late)


def _sellers_step(deal: Deal, now: float, late: bool) -> Step:
    if deal.state is DealState.OPEN:
        return Step.CONSIDER
    if deal.state is DealState.CONFIRMED:
        return Step.REVEAL if now < deal.deadline - REVEAL_MARGIN_SECONDS else Step.WAIT
    return Step.SETTLE if deal.state is DealState.REVEALED and late else Step.WAIT


class ExchangePolicy(Protocol):
    """What an owner's settings say about requests."""

    @property
    def decide(self) -> str:
        """ "person": nothing is granted without one; "policy": the rules below decide."""

    @property
    def kinds(self) -> Collection[str]:
        """What may be given away: "dataset", "update"."""

    @property
    def buyers(self) -> Collection[Address]:
        """To whom; empty: to every active hospital."""

    @property
    def arbiters(self) -> Collection[Address]:
        """Who may judge; empty: whom the buyer names."""

    @property
    def minimum_price_wei(self) -> int:
        """Below that nothing is given, even where the registration asks less."""

    @property
    def minimum_bond_wei(self) -> int | None:
        """What a false complaint must cost the buyer; None: a tenth of the price."""

    @property
    def maximum_bond_wei(self) -> int:
        """More is not put at stake."""


def objections(request: Request, buyer: Address, listed_price_wei: int, policy: ExchangePolicy) -> list[str]:
    """All that a policy has against a request; none: it may be granted.

    Args:
        listed_price_wei: what the registration asks; 0 where there is none.
    """
    kind = kind_of(request)
    price_wei = max(policy.minimum_price_wei, listed_price_wei)
    found = []
    if kind not in policy.kinds:
        found.append(f"a {kind} is not given away")
    if policy.buyers and buyer not in policy.buyers:
        found.append("the buyer is not on the list")
    if policy.arbiters and request.arbiter not in policy.arbiters:
        found.append("the arbiter is not on the list")
    if request.price_wei < price_wei:
        found.append(f"the price is {price_wei} wei, {request.price_wei} are offered")
    bond_wei = price_wei // 10 if policy.minimum_bond_wei is None else policy.minimum_bond_wei
    if request.bond_wei < bond_wei:
        found.append(f"the bond is {bond_wei} wei at least, {request.bond_wei} are asked for")
    if request.bond_wei > policy.maximum_bond_wei:
        found.append(f"the bond is at most {policy.maximum_bond_wei} wei, {request.bond_wei} are asked for")
    return found


def kind_of(request: Request) -> str:
    """The kind of artifact that is asked for, in a word."""
    return (ArtifactKind.UPDATE if request.task_id else ArtifactKind.DATASET).name.lower()
