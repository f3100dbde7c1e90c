"""The events of contracts/diagnosis.vy; the steps are those of docs/protocols/diagnosis.md."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.ledger.event import Event
from consilia.values import Address, Digest


@dataclass(frozen=True, kw_only=True)
class ModelOffered(Event):
    """Step 0: a server answers for a model; `card` is canonical JSON."""

    offer_id: int
    server: Address
    model_digest: Digest
    code_book: Digest
    price_wei: int
    bond_wei: int
    recipient_key: bytes
    card: bytes


@dataclass(frozen=True, kw_only=True)
class OfferWithdrawn(Event):
    """The server takes no more queries for it."""

    offer_id: int


@dataclass(frozen=True, kw_only=True)
class Asked(Event):
    """Step 1: a hospital's sealed images, bound to its truth; the fee is in escrow."""

    query_id: Digest
    hospital: Address
    offer_id: int
    images: int
    audits: int
    threshold: int
    root: Digest
    key_hash: Digest
    size: int
    recipient_key: bytes
    deadline: int


@dataclass(frozen=True, kw_only=True)
class Answered(Event):
    """Step 2: the server is bound to its answers; W is `reports`, and their envelope has the root; bond in escrow."""

    query_id: Digest
    reports: Digest
    root: Digest
    key_hash: Digest
    size: int
    deadline: int


@dataclass(frozen=True, kw_only=True)
class AuditOpened(Event):
    """Step 3: which are audit images (bitmap), and x_j of each."""

    query_id: Digest
    roles: int
    xs: tuple[bytes, ...]
    deadline: int


@dataclass(frozen=True, kw_only=True)
class Scored(Event):
    """Step 4: how many answers match, which (bitmap); all A_j; u_j and y_j of the audit images."""

    query_id: Digest
    matches: int
    matched: int
    answers: tuple[bytes, ...]
    us: tuple[bytes, ...]
    ys: tuple[bytes, ...]
    deadline: int


@dataclass(frozen=True, kw_only=True)
class Challenged(Event):
    """Step 4: the boxes of one audit image do not agree; `matches` are left."""

    query_id: Digest
    position: int
    matches: int


@dataclass(frozen=True, kw_only=True)
class Accepted(Event):
    """Step 4: the hospital does not challenge."""

    query_id: Digest
    deadline: int


@dataclass(frozen=True, kw_only=True)
class AnswersReleased(Event):
    """Step 5: u_j and y_j of the hidden images."""

    query_id: Digest
    us: tuple[bytes, ...]
    ys: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True)
class QueryClosed(Event):
    """The end of a query: who was credited how much; `state` is RELEASED, FAILED or STOPPED."""

    query_id: Digest
    state: int
    hospital_wei: int
    server_wei: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class DiagnosisCreditPaid(Event):
    """A member fetched what was credited to it."""

    account: Address
    amount_wei: int


DIAGNOSIS_EVENTS: tuple[type[Event], ...] = (
    ModelOffered,
    OfferWithdrawn,
    Asked,
    Answered,
    AuditOpened,
    Scored,
    Challenged,
    Accepted,
    AnswersReleased,
    QueryClosed,
    DiagnosisCreditPaid,
)
