"""The diagnosis contract for a member: each step of docs/protocols/diagnosis.md is a typed call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from consilia.ledger.client import Ledger, Receipt
from consilia.protocols.diagnosis import QueryState
from consilia.values import Address, Digest

# Gas limits: at least twice what benchmarks/opinion_gas.py measures (docs/contracts.md, section 7).
OFFER_GAS, CARD_BYTE_GAS = 400_000, 60
WITHDRAW_GAS = 120_000
ASK_GAS = 450_000
ANSWER_GAS = 250_000
STEP_GAS = 150_000
CLOSE_GAS = 300_000
IMAGE_GAS = 6_000
"""What an image adds to opening, scoring, releasing or challenging."""
CHALLENGE_GAS = 400_000
CLAIM_GAS = 150_000


@dataclass(frozen=True)
class QueryRecord:
    """A query in diagnosis.vy; `deadline` (Unix seconds) ends the step that it waits for, 0 once it is over."""

    hospital: Address
    offer_id: int
    images: int
    audits: int
    threshold: int
    state: QueryState
    matches: int
    deadline: int


@dataclass(frozen=True)
class ArtifactName:
    """What the ledger keeps of an envelope."""

    root: Digest
    key_hash: Digest
    size: int


class DiagnosisContract:
    """Reads and writes of diagnosis.vy. A write's `key` and what it raises are as in `Ledger`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def offer(
        self,
        key: str,
        *,
        model_digest: Digest,
        code_book: Digest,
        price_wei: int,
        bond_wei: int,
        recipient_key: bytes,
        card: bytes,
    ) -> Receipt:
        """Step 0: name a model that one answers for."""
        arguments = (model_digest, code_book, price_wei, bond_wei, recipient_key, card)
        return self._write(key, "offer", arguments, OFFER_GAS + CARD_BYTE_GAS * len(card))

    def withdraw(self, key: str, offer_id: int) -> Receipt:
        """Take no more queries for a model, for good."""
        return self._write(key, "withdraw", (offer_id,), WITHDRAW_GAS)

    def ask(
        self,
        key: str,
        *,
        offer_id: int,
        images: int,
        audits: int,
        threshold: int,
        salt: bytes,
        labels: Digest,
        roles: Digest,
        artifact: ArtifactName,
        recipient_key: bytes,
        price_wei: int,
    ) -> Receipt:
        """Step 1: ask about sealed images, with the fee."""
        terms = (offer_id, images, audits, threshold)
        sealed = (artifact.root, artifact.key_hash, artifact.size)
        arguments = (terms, salt, labels, roles, *sealed, recipient_key)
        return self._write(key, "ask", arguments, ASK_GAS, price_wei)

    def refuse(self, key: str, query_id: Digest, reason: str) -> Receipt:
        """Step 2: the server does not answer."""
        return self._write(key, "refuse", (query_id, reason), CLOSE_GAS)

    def answer(
        self,
        key: str,
        query_id: Digest,
        *,
        answers: Digest,
        reports: Digest,
        artifact: ArtifactName,
        bond_wei: int,
    ) -> Receipt:
        """Step 2: the server is bound to its answers."""
        sealed = (artifact.root, artifact.key_hash, artifact.size)
        return self._write(key, "answer", (query_id, answers, reports, *sealed), ANSWER_GAS, bond_wei)

    def decline(self, key: str, query_id: Digest, reason: str) -> Receipt:
        """Step 3: the hospital steps back from an answer whose reports it cannot read."""
        return self._write(key, "decline", (query_id, reason), CLOSE_GAS)

    def open_audit(
        self,
        key: str,
        query_id: Digest,
        *,
        roles: int,
        salt: bytes,
        labels: Sequence[bytes],
        marks: Sequence[bytes],
        xs: Sequence[bytes],
    ) -> Receipt:
        """Step 3: which are audit images, and their hashed labels."""
        arguments = (query_id, roles, salt, list(labels), list(marks), list(xs))
        return self._write(key, "open_audit", arguments, CLOSE_GAS + IMAGE_GAS * len(labels))

    def score(
        self,
        key: str,
        query_id: Digest,
        *,
        answers: Sequence[bytes],
        reports: Digest,
        us: Sequence[bytes],
        ys: Sequence[bytes],
        xs: Sequence[bytes],
    ) -> Receipt:
        """Step 4: open the answers of audit images; the contract counts."""
        arguments = (query_id, list(answers), reports, list(us), list(ys), list(xs))
        return self._write(key, "score", arguments, CLOSE_GAS + IMAGE_GAS * len(answers))

    def accept(self, key: str, query_id: Digest) -> Receipt:
        """Step 4: the hospital does not challenge."""
        return self._write(key, "accept", (query_id,), STEP_GAS)

    def challenge(
        self,
        key: str,
        query_id: Digest,
        position: int,
        *,
        label_secret: bytes,
        truth_salt: bytes,
        truth: Sequence[int],
        answer_secret: bytes,
        report: Sequence[int],
        labels: Sequence[bytes],
        answers: Sequence[bytes],
        digests: Sequence[bytes],
    ) -> Receipt:
        """Step 4: show that the boxes of one audit image do not agree."""
        opening = (label_secret, truth_salt, list(truth), answer_secret, list(report))
        arguments = (query_id, position, *opening, list(labels), list(answers), list(digests))
        return self._write(key, "challenge", arguments, CHALLENGE_GAS + IMAGE_GAS * len(labels))

    def release(
        self,
        key: str,
        query_id: Digest,
        *,
        answers: Sequence[bytes],
        reports: Digest,
        us: Sequence[bytes],
        ys: Sequence[bytes],
    ) -> Receipt:
        """Step 5: open the answers of the hidden images, and be paid."""
        arguments = (query_id, list(answers), reports, list(us), list(ys))
        return self._write(key, "release", arguments, CLOSE_GAS + IMAGE_GAS * len(answers))

    def expire(self, key: str, query_id: Digest) -> Receipt:
        """End a query that went no further in time."""
        return self._write(key, "expire", (query_id,), CLOSE_GAS)

    def claim(self, key: str) -> Receipt:
        """Fetch all that is credited to one."""
        return self._write(key, "claim", (), CLAIM_GAS)

    def query(self, query_id: Digest) -> QueryRecord | None:
        """A query at the head; None if there is none of this id."""
        record = self._ledger.read("diagnosis", "query", query_id)
        if record["state"] == 0:
            return None
        return QueryRecord(**{**record, "state": QueryState(record["state"])})

    def credit_wei(self, account: Address) -> int:
        """What an account can claim now."""
        return int(self._ledger.read("diagnosis", "credit_wei", account))

    def open_wei(self) -> int:
        """What the contract owes altogether; its balance."""
        return int(self._ledger.read("diagnosis", "open_wei"))

    def _write(
        self, key: str, function: str, arguments: tuple[Any, ...], gas: int, value_wei: int = 0
    ) -> Receipt:
        return self._ledger.write(key, "diagnosis", function, arguments, gas, value_wei)
