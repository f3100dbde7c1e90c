"""A hospital, a server and a query of a few images, for the tests of diagnosis.vy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import boa

from consilia.ledger.registry import Kind
from consilia.protocols.answer import OwnAnswer
from consilia.protocols.diagnosis import (
    ImageRole,
    Place,
    QueryImage,
    QueryState,
    list_digest,
    report_digests,
    reports_digest,
    sealed_words,
)
from consilia.protocols.findings import Finding
from consilia.protocols.query import OwnQuery, make_query
from consilia.values import Digest
from tests.contracts.conftest import Contracts

DAY = 86_400
PRICE_WEI, BOND_WEI = 1_000, 100
ROOT, KEY_HASH, SERVER_KEY, OWN_KEY = (Digest.of(bytes([i])) for i in range(4))
MODEL, CODE_BOOK = Digest.of(b"model"), Digest.of(b"code book")
HERE, THERE = (10, 10, 30, 30), (60, 60, 90, 90)
"""Two boxes that do not touch."""


def truth_of(number: int) -> tuple[Finding, ...]:
    """One audit image in three is healthy."""
    return () if number % 3 == 2 else (Finding(7 + number % 3, HERE),)


def images(audits: int, hidden: int) -> list[QueryImage]:
    known = [QueryImage(f"a{n}", ImageRole.AUDIT, bytes([n] * 4), truth_of(n)) for n in range(audits)]
    covers = [QueryImage(f"c{n}", ImageRole.COVER, bytes([n, 1, 1, 1])) for n in range(hidden - 1)]
    return [QueryImage("real", ImageRole.REAL, b"\x09" * 4), *known, *covers]


@dataclass
class Asking:
    """The contract, and the steps of a query as methods; each has the lawful caller unless told otherwise."""

    contracts: Contracts
    audits: int = 4
    hidden: int = 3
    threshold: int = 3
    asked: dict[Digest, OwnQuery] = field(default_factory=dict)
    answers: dict[Digest, OwnAnswer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.diagnosis = self.contracts.diagnosis
        self.hospital, self.other = self.contracts.hospitals[:2]
        self.server = self.contracts.server
        self.gas: dict[str, int] = {}

    @property
    def now(self) -> int:
        return int(boa.env.evm.patch.timestamp)

    @property
    def place(self) -> Place:
        return Place(boa.env.evm.patch.chain_id, self.diagnosis.address)

    def let_pass(self, seconds: int) -> None:
        boa.env.evm.patch.timestamp += seconds

    def suspend(self, subject: str) -> None:
        """The other members put one out."""
        registry, members = self.contracts.registry, [self.server, *self.contracts.hospitals]
        voters = [member for member in members if member != subject]
        proposal_id = registry.propose(int(Kind.SUSPENSION), subject, sender=voters[0])
        for voter in voters[1:]:
            if not registry.proposal(proposal_id).enacted:
                registry.vote(proposal_id, sender=voter)
        assert not registry.in_good_standing(subject)

    def offer(self, sender: str | None = None, **changes: Any) -> int:
        record: dict[str, Any] = {"model_digest": MODEL, "code_book": CODE_BOOK, "price_wei": PRICE_WEI}
        record |= {"bond_wei": BOND_WEI, "recipient_key": SERVER_KEY, "card": b"{}"}
        return int(self.diagnosis.offer(*(record | changes).values(), sender=sender or self.server))

    def make(self, seed: int = 1, hospital: str | None = None) -> OwnQuery:
        pictures = images(self.audits, self.hidden)
        return make_query(
            self.place, hospital or self.hospital, pictures, self.threshold, seed.to_bytes(32, "big")
        )

    def ask(self, query: OwnQuery | None = None, offer_id: int = 1, **changes: Any) -> Digest:
        query = query or self.make(len(self.asked) + 1)
        options = {"sender": self.hospital, "value": PRICE_WEI}
        options |= {name: changes.pop(name) for name in ("sender", "value") if name in changes}
        terms = {"images": len(query.images), "audits": len(query.audits), "threshold": query.threshold}
        terms |= {name: changes.pop(name) for name in list(terms) if name in changes}
        rest: dict[str, Any] = {
            "salt": query.secrets.salt(),
            "labels": list_digest(query.commitments()),
            "roles": query.roles_commitment(),
            "root": ROOT,
            "key_hash": KEY_HASH,
            "size": 4096,
            "recipient_key": OWN_KEY,
        }
        rest |= changes
        query_id = Digest(self.diagnosis.ask((offer_id, *terms.values()), *rest.values(), **options))
        self.asked[query_id] = query
        return query_id

    def reports(self, query: OwnQuery, wrong: int = 0, misplaced: int = 0) -> list[tuple[Finding, ...]]:
        """The truth for audit images, but the first `wrong` have another code, the next `misplaced` another box."""
        found: list[tuple[Finding, ...]] = []
        for image in query.images:
            report = image.truth if image.truth is not None else (Finding(7, HERE, 0.8),)
            if image.truth is not None and wrong > 0:
                report, wrong = (Finding(999, HERE, 0.8),), wrong - 1
            elif image.truth and misplaced > 0:
                report, misplaced = (replace(image.truth[0], box_xyxy=THERE),), misplaced - 1
            found.append(report)
        return found

    def answer(self, query_id: Digest, wrong: int = 0, misplaced: int = 0, **options: Any) -> None:
        query = self.asked[query_id]
        secrets = tuple(query.secrets.label_secret(j) for j in range(len(query.images)))
        reports = options.pop("reports", None) or self.reports(query, wrong, misplaced)
        answer = OwnAnswer(query_id, b"\x05" * 32, secrets, tuple(reports))
        call = {"sender": self.server, "value": BOND_WEI} | options
        digests = (list_digest(answer.commitments()), reports_digest(answer.sealed_reports()))
        self.diagnosis.answer(query_id, *digests, call.pop("root", ROOT), KEY_HASH, 99, **call)
        self.answers[query_id] = answer

    def open_audit(self, query_id: Digest, **changes: Any) -> None:
        query = self.asked[query_id]
        sender = changes.pop("sender", self.hospital)
        opening: dict[str, Any] = {
            "roles": query.bitmap,
            "salt": query.secrets.roles_salt(),
            "labels": query.commitments(),
            "marks": [query.mark(j) for j in query.audits],
            "xs": [query.label(j) for j in query.audits],
        }
        self.diagnosis.open_audit(query_id, *(opening | changes).values(), sender=sender)

    def score(self, query_id: Digest, **changes: Any) -> None:
        query, answer = self.asked[query_id], self.answers[query_id]
        sender = changes.pop("sender", self.server)
        us, ys = answer.opening(query.audits)
        opening: dict[str, Any] = {
            "answers": answer.commitments(),
            "reports": reports_digest(answer.sealed_reports()),
            "us": us,
            "ys": ys,
            "xs": [query.label(j) for j in query.audits],
        }
        self.diagnosis.score(query_id, *(opening | changes).values(), sender=sender)

    def accept(self, query_id: Digest, sender: str | None = None) -> None:
        self.diagnosis.accept(query_id, sender=sender or self.hospital)

    def challenge(self, query_id: Digest, position: int, **changes: Any) -> None:
        query, answer = self.asked[query_id], self.answers[query_id]
        sender = changes.pop("sender", self.hospital)
        sealed = answer.sealed_reports()
        opening: dict[str, Any] = {
            "position": position,
            "label_secret": query.secrets.label_secret(position),
            "truth_salt": query.secrets.truth_salt(position),
            "truth": query.truth_words(position),
            "u": answer.answer_secret(position),
            "report": sealed_words(sealed[position]),
            "labels": query.commitments(),
            "answers": answer.commitments(),
            "digests": report_digests(sealed),
        }
        self.diagnosis.challenge(query_id, *(opening | changes).values(), sender=sender)

    def release(self, query_id: Digest, **changes: Any) -> None:
        query, answer = self.asked[query_id], self.answers[query_id]
        sender = changes.pop("sender", self.server)
        hidden = [j for j in range(len(query.images)) if j not in query.audits]
        us, ys = answer.opening(hidden)
        opening: dict[str, Any] = {
            "answers": answer.commitments(),
            "reports": reports_digest(answer.sealed_reports()),
            "us": us,
            "ys": ys,
        }
        self.diagnosis.release(query_id, *(opening | changes).values(), sender=sender)

    def query_in(self, state: QueryState, **answering: Any) -> Digest:
        """A query that has gone as far as a state; the offer is made where there is none."""
        if self.diagnosis.offer_count() == 0:
            self.offer()
        query_id = self.ask()
        if state >= QueryState.ANSWERED:
            self.answer(query_id, **answering)
        for reached, step in enumerate((self.open_audit, self.score, self.accept, self.release), start=3):
            if reached <= state <= QueryState.RELEASED:
                step(query_id)
        return query_id

    def events(self) -> list[dict[str, Any]]:
        """The events of the last call, with their names."""
        return [
            {"event": type(event).__name__}
            | {name: getattr(event, name) for name in event._fields if name != "address"}
            for event in self.diagnosis.get_logs()
        ]

    def credits(self) -> tuple[int, int]:
        """What hospital and server can claim."""
        return self.diagnosis.credit_wei(self.hospital), self.diagnosis.credit_wei(self.server)

    def record(self, query_id: Digest) -> Any:
        return self.diagnosis.query(query_id)

    def state(self, query_id: Digest) -> int:
        return int(self.record(query_id).state)

    def balance(self) -> int:
        return int(boa.env.get_balance(self.diagnosis.address))
