"""A query as the ledger tells it, and whose turn it is (docs/protocols/diagnosis.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from consilia.errors import VerificationError
from consilia.protocols.diagnosis import ImageFormat, QueryState, positions_of
from consilia.values import Address, Digest, canonical_json, parse_json

STEP_SECONDS = 86_400
"""How long the contract waits for each step (contracts/diagnosis.vy has the same number)."""

RELEASE_MARGIN_SECONDS = 600
"""Answers that are published and come too late are a gift: with less time than this left, the server keeps them."""


@dataclass(frozen=True)
class OfferCard:
    """What a server says of a model that it offers; canonical JSON on the ledger."""

    title: str
    image_format: ImageFormat
    modality: str = "CT"
    remarks: str = ""

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(
            {
                "version": 1,
                "title": self.title,
                "height": self.image_format.height,
                "width": self.image_format.width,
                "modality": self.modality,
                "remarks": self.remarks,
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> OfferCard:
        """Read a card.

        Raises:
            VerificationError: it is not what `to_bytes` writes.
        """
        try:
            plain: Mapping[str, Any] = parse_json(data)
            card = cls(
                plain["title"],
                ImageFormat(plain["height"], plain["width"]),
                plain["modality"],
                plain["remarks"],
            )
            sizes = (card.image_format.height, card.image_format.width)
            good = card.to_bytes() == data and all(type(size) is int and 0 < size < 65_536 for size in sizes)
        except (ValueError, TypeError, KeyError) as error:
            raise VerificationError(f"a model's card is malformed: {error}; ask another server") from error
        if not good:
            raise VerificationError(
                "a model's card is not canonical, or has no image size; ask another server"
            )
        return card


@dataclass(frozen=True)
class Offer:
    """Step 0 as the ledger tells it."""

    offer_id: int
    server: Address
    model_digest: Digest
    code_book: Digest
    price_wei: int
    bond_wei: int
    recipient_key: bytes
    """What queries are sealed to, besides the hospital's own key."""
    card: bytes = field(repr=False)
    withdrawn: bool = False

    @property
    def described(self) -> OfferCard:
        """The card; raises as `OfferCard.from_bytes`."""
        return OfferCard.from_bytes(self.card)


@dataclass(frozen=True)
class Query:
    """A query as the ledger tells it."""

    query_id: Digest
    hospital: Address
    offer: Offer
    images: int
    audits: int
    threshold: int
    root: Digest
    size: int
    recipient_key: bytes
    """What the reports are sealed to, besides the server's own key."""
    state: QueryState
    deadline: int
    """Unix seconds; the first at which the step that the query waits for is too late."""
    reports: Digest | None = None
    reports_root: Digest | None = None
    reports_size: int = 0
    roles: int = 0
    """Bitmap of the audit images, from step 3."""
    xs: tuple[Digest, ...] = ()
    scored_matches: int = 0
    """m, as the contract counted codes in step 4."""
    matches: int = 0
    """The same after challenges."""
    matched: int = 0
    challenged: int = 0
    answers: tuple[Digest, ...] = field(default=(), repr=False)
    audit_openings: tuple[tuple[bytes, Digest], ...] = field(default=(), repr=False)
    """u_j and y_j, in the order of positions."""
    hidden_openings: tuple[tuple[bytes, Digest], ...] = field(default=(), repr=False)
    ended_in: QueryState | None = None
    """The state in which it was closed: STOPPED in OPENED means that the server did not let itself be scored."""
    hospital_wei: int = 0
    server_wei: int = 0
    reason: str = ""

    @property
    def server(self) -> Address:
        """Who answers."""
        return self.offer.server

    @property
    def asked_at(self) -> int:
        """Unix seconds of the block that it was asked in, while it waits for an answer."""
        return self.deadline - STEP_SECONDS

    def openings(self) -> dict[int, tuple[bytes, Digest]]:
        """u_j and y_j of every position that is opened."""
        audits = positions_of(self.roles, self.images, audits=True)
        hidden = positions_of(self.roles, self.images, audits=False)
        found = dict(zip(audits, self.audit_openings, strict=False))
        return found | dict(zip(hidden, self.hidden_openings, strict=False))


class Step(Enum):
    """What a party does about a query now."""

    WAIT = "wait"
    ANSWER = "answer"
    OPEN_AUDIT = "open audit"
    SCORE = "score"
    JUDGE = "judge"
    RELEASE = "release"
    RECOVER = "recover"
    EXPIRE = "expire"


def next_step(query: Query, account: Address, now: float, both_bound: bool = True) -> Step:
    """What is up to an account in a query, by the ledger alone; whether it has done it already, `roles` knows.

    Args:
        now: Unix seconds.
        both_bound: neither party was put out by others; else the query ends without loss to either.
    """
    if account not in (query.hospital, query.server):
        return Step.WAIT
    late = now >= query.deadline
    if not both_bound and not query.state.over:
        return Step.EXPIRE
    if query.state is QueryState.PASSED:
        return _step_after_score(query, account, now, late)
    if late and not query.state.over:  # who gets the money ends it
        gains = query.server if query.state is QueryState.ANSWERED else query.hospital
        return Step.EXPIRE if account == gains else Step.WAIT
    if query.state is QueryState.ACCEPTED and account == query.server:
        return _release(now, query.deadline)
    steps = {
        (QueryState.ASKED, query.server): Step.ANSWER,
        (QueryState.ANSWERED, query.hospital): Step.OPEN_AUDIT,
        (QueryState.OPENED, query.server): Step.SCORE,
        (QueryState.RELEASED, query.hospital): Step.RECOVER,
    }
    return steps.get((query.state, account), Step.WAIT)


def _step_after_score(query: Query, account: Address, now: float, late: bool) -> Step:
    if now >= query.deadline + STEP_SECONDS:
        return Step.EXPIRE if account == query.hospital else Step.WAIT
    if account == query.hospital:
        return Step.WAIT if late else Step.JUDGE
    return _release(now, query.deadline + STEP_SECONDS) if late else Step.WAIT


def _release(now: float, deadline: int) -> Step:
    return Step.RELEASE if now < deadline - RELEASE_MARGIN_SECONDS else Step.WAIT
