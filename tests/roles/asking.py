"""A hospital and a server with a model that sees bright rectangles; methods read like what happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from consilia.errors import DatasetError, TransactionRevertedError
from consilia.protocols.assurance import STANDARD, Assurance
from consilia.protocols.consultation import OfferCard, Query
from consilia.protocols.diagnosis import (
    ImageFormat,
    ImageRole,
    QueryImage,
    QueryState,
    label_commitment,
    label_hash,
)
from consilia.protocols.findings import Finding
from consilia.roles.diagnosis.answering import Answering, Diagnoser, OfferedModel
from consilia.roles.diagnosis.consultation import Consultation, Opinion
from consilia.values import Digest
from tests.consortium import Consortium

PRICE_WEI, BOND_WEI = 10**15, 10**14
SIZE = 24
FORMAT = ImageFormat(24, 24)
LESION, OTHER = 40_007, 40_009
"""Finding codes, so large that a ledger has no other reason to hold them as a word."""
MODEL, CODE_BOOK = Digest.of(b"weights"), Digest.of(b"code book")


def picture(number: int, healthy: bool = False) -> tuple[bytes, tuple[Finding, ...]]:
    """Dark noise with a bright rectangle, the same for the same number, and what there is to find."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (SIZE, SIZE), dtype=np.uint8)
    if healthy:
        return pixels.tobytes(), ()
    left, top = (int(item) for item in rng.integers(1, SIZE // 2, 2))
    pixels[top : top + 6, left : left + 8] = 230
    return pixels.tobytes(), (Finding(LESION, (left, top, left + 8, top + 6)),)


def known(number: int) -> QueryImage:
    """A case of the archive whose diagnosis is known; one in four is healthy."""
    pixels, truth = picture(number, healthy=number % 4 == 0)
    return QueryImage(f"known-{number}", ImageRole.AUDIT, pixels, truth)


def case(assurance: Assurance = STANDARD, seed: int = 1000) -> list[QueryImage]:
    """A real case with audit and cover images."""
    audits = [known(seed + number) for number in range(assurance.audits)]
    covers = [
        QueryImage(f"cover-{number}", ImageRole.COVER, picture(seed + 500 + number)[0])
        for number in range(assurance.covers)
    ]
    return [QueryImage("the patient", ImageRole.REAL, picture(seed + 900)[0]), *audits, *covers]


@dataclass
class Seer:
    """Sees every rectangle; `spoil` says what becomes of the finding of the image at a place of the batch."""

    spoil: Callable[[int, tuple[Finding, ...]], tuple[Finding, ...]] = lambda place, found: found
    image_format: ImageFormat = FORMAT
    calls: int = 0
    seen: tuple[bytes, ...] = ()

    def diagnose(self, images: Sequence[bytes]) -> list[tuple[Finding, ...]]:
        self.calls += 1
        self.seen = tuple(images)
        return [self.spoil(place, self._see(data)) for place, data in enumerate(images)]

    def _see(self, data: bytes) -> tuple[Finding, ...]:
        if not any(data):
            raise DatasetError("an image of this query is corrupt: it is black")
        rows, columns = np.nonzero(np.frombuffer(data, np.uint8).reshape(SIZE, SIZE) > 200)
        if not len(rows):
            return ()
        box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        return (Finding(LESION, box, 0.9),)


def wrong_half(place: int, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Accuracy .5: every other image gets another diagnosis."""
    return found if place % 2 else (Finding(OTHER, (1, 1, 9, 9), 0.9),)


def wrong_place(place: int, found: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """The right code in the wrong corner."""
    return tuple(Finding(item.code, (0, 0, 2, 2), item.score) for item in found)


@dataclass(frozen=True)
class Silence:
    """In which state somebody falls silent, how long it takes to show, and who has what in the end."""

    state: QueryState
    days: float
    reason: str
    hospital_wei: int
    server_wei: int


SILENCES = (
    Silence(QueryState.ASKED, 1.1, "no answer", PRICE_WEI, 0),
    Silence(QueryState.ANSWERED, 1.1, "audit not opened", 0, PRICE_WEI + BOND_WEI),
    Silence(QueryState.OPENED, 1.1, "no score", PRICE_WEI + BOND_WEI, 0),
    Silence(QueryState.PASSED, 2.1, "no release", PRICE_WEI + BOND_WEI, 0),
    Silence(QueryState.ACCEPTED, 1.1, "no release", PRICE_WEI + BOND_WEI, 0),
)


class Clinic:
    """Hospital 1 asks, the server answers."""

    def __init__(
        self,
        town: Consortium,
        seer: Seer | None = None,
        answer_seconds: float = 0.0,
        bond_wei: int = BOND_WEI,
        load: Callable[[], Diagnoser] | None = None,
    ) -> None:
        self.town = town
        self.seer = seer or Seer()
        self.answer_seconds = answer_seconds
        self.bond_wei = bond_wei
        self.load: Callable[[], Diagnoser] = load or (lambda: self.seer)
        self.hospital: Consultation = town.hospitals[0].consultation
        self.server = self.new_server()
        self.server.offer()

    def new_server(self) -> Answering:
        card = OfferCard("rectangles", FORMAT)
        model = OfferedModel(MODEL, CODE_BOOK, card, PRICE_WEI, self.bond_wei, lambda: self.load())
        return Answering(self.town.server, [model], self.answer_seconds)

    def restart(self) -> None:
        """As after kill -9 of both."""
        self.hospital = self.town.restart_hospital(0).consultation
        self.town.server = self.town.new_server()
        self.server = self.new_server()

    def ask(self, images: Sequence[QueryImage] | None = None, required: int = STANDARD.required) -> Digest:
        (offer,) = self.hospital.offers()
        return self.hospital.ask(offer.offer_id, images or case(), required)

    def query(self, query_id: Digest) -> Query:
        return self.hospital.log().queries[query_id]

    def query_in(self, state: QueryState, images: Sequence[QueryImage] | None = None) -> Digest:
        """A query that has gone as far as a state by honest steps."""
        query_id = self.ask(images)
        for reached, party in enumerate(
            (self.server, self.hospital, self.server, self.hospital, self.server), 2
        ):
            if reached <= state:
                party.advance()
        assert self.query(query_id).state is state
        return query_id

    def run(self, query_id: Digest) -> Opinion:
        """Both take their steps until nothing moves any more."""
        while True:
            before = self.query(query_id)
            self.server.advance()
            self.hospital.advance()
            if self.query(query_id) == before:
                return self.hospital.opinion(before)

    def fall_silent(self, silence: Silence, images: Sequence[QueryImage] | None = None) -> None:
        """A query gets so far, then one side does nothing: it ends as the protocol says, and costs whom it says."""
        query_id = self.query_in(silence.state, images)
        self.town.let_pass(silence.days * 86_400)
        (self.server if silence.state is QueryState.ANSWERED else self.hospital).advance()
        query = self.query(query_id)
        assert query.state is QueryState.STOPPED and query.ended_in is silence.state
        assert query.reason == silence.reason
        assert (query.hospital_wei, query.server_wei) == (silence.hospital_wei, silence.server_wei)
        self.settled()

    def open_falsely(self, images: Sequence[QueryImage] | None = None) -> None:
        """The hospital opens other labels than it asked with, in every way: refused, and its silence then pays."""
        query_id = self.query_in(QueryState.ANSWERED, images)
        own = self.hospital.own(self.query(query_id))
        first = own.audits[0]
        false = label_hash(query_id, first, own.secrets.label_secret(first), (OTHER,))
        labels, xs = own.commitments(), [own.label(j) for j in own.audits]
        fitting = label_commitment(own.mark(first), false)
        forged = [fitting if j == first else label for j, label in enumerate(labels)]
        swapped = [own.label(j) for j in (own.audits[1], own.audits[0], *own.audits[2:])]
        lies = (
            (labels, [false, *xs[1:]], "another label than asked"),
            (forged, [false, *xs[1:]], "other labels than asked"),
            (labels, swapped, "another label than asked"),
            (labels, xs[1:], "not every audit image"),
        )
        for number, (said, opened, reason) in enumerate(lies):
            with pytest.raises(TransactionRevertedError, match=reason):
                self.hospital.contract.open_audit(
                    f"lie/{number}",
                    query_id,
                    roles=own.bitmap,
                    salt=own.secrets.roles_salt(),
                    labels=said,
                    marks=[own.mark(j) for j in own.audits],
                    xs=opened,
                )
        self.town.let_pass(86_401)
        self.server.advance()
        query = self.query(query_id)
        assert query.state is QueryState.STOPPED and query.reason == "audit not opened"
        assert (query.hospital_wei, query.server_wei) == (0, PRICE_WEI + BOND_WEI)
        assert not query.hidden_openings and self.hospital.opinion(query).failed
        self.settled()

    def said(self, name: str, step: str) -> list[dict[str, object]]:
        """What a party reported under a name."""
        return self.town.steps[name].named(step)

    def settled(self) -> None:
        """Everybody has fetched its own, and the contract holds no wei."""
        for _ in range(2):
            self.server.advance()
            self.hospital.advance()
        ledger = self.town.server.ledger
        assert self.server.contract.open_wei() == self.hospital.log().open_wei == 0
        assert ledger.balance_wei(ledger.deployment.diagnosis) == 0
