"""The events of contracts/exchange.vy; the steps are those of docs/protocols/exchange.md."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.ledger.event import Event
from consilia.values import Address, Digest


@dataclass(frozen=True, kw_only=True)
class ArtifactRegistered(Event):
    """Step 0: an artifact that others may ask for; `card` is canonical JSON, `kind` an ArtifactKind."""

    owner: Address
    root: Digest
    kind: int
    key_hash: Digest
    size: int
    recipient_key: bytes
    task_id: int
    round_index: int
    price_wei: int
    card: bytes


@dataclass(frozen=True, kw_only=True)
class ArtifactWithdrawn(Event):
    """The owner takes no more requests for it."""

    owner: Address
    root: Digest


@dataclass(frozen=True, kw_only=True)
class Attested(Event):
    """What somebody who holds the envelope's secret says of an artifact."""

    owner: Address
    root: Digest
    attester: Address
    key_hash: Digest
    verdict: int
    note: str


@dataclass(frozen=True, kw_only=True)
class Requested(Event):
    """Step 1: what the buyer signed, its signature, and the price in escrow."""

    deal_id: Digest
    owner: Address
    buyer: Address
    root: Digest
    key_hash: Digest
    task_id: int
    round_index: int
    arbiter: Address
    price_wei: int
    bond_wei: int
    recipient_key: bytes
    nonce: int
    deadline: int
    signature: bytes


@dataclass(frozen=True, kw_only=True)
class Offered(Event):
    """Step 2: the sealed s^, the address of t, the seller's signature; its bond is in escrow."""

    deal_id: Digest
    t_address: Address
    message: bytes
    signature: bytes
    deadline: int


@dataclass(frozen=True, kw_only=True)
class Confirmed(Event):
    """Step 3: the buyer found that t must give it the registered secret."""

    deal_id: Digest
    deadline: int


@dataclass(frozen=True, kw_only=True)
class Revealed(Event):
    """Step 4: t."""

    deal_id: Digest
    t: int
    deadline: int


@dataclass(frozen=True, kw_only=True)
class Disputed(Event):
    """Step 5: the buyer complains; `evidence` is s^, sealed to the arbiter."""

    deal_id: Digest
    evidence: bytes
    deadline: int


@dataclass(frozen=True, kw_only=True)
class DealClosed(Event):
    """The end of a deal: who was credited how much; `state` is PAID or REFUNDED."""

    deal_id: Digest
    state: int
    buyer_wei: int
    seller_wei: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class CreditPaid(Event):
    """A member fetched what was credited to it."""

    account: Address
    amount_wei: int


EXCHANGE_EVENTS: tuple[type[Event], ...] = (
    ArtifactRegistered,
    ArtifactWithdrawn,
    Attested,
    Requested,
    Offered,
    Confirmed,
    Revealed,
    Disputed,
    DealClosed,
    CreditPaid,
)
