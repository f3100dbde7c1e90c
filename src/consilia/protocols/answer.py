"""Steps 2 to 5 of a second opinion: what a server answers, and what the hospital recovers of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from consilia.errors import VerificationError
from consilia.protocols.diagnosis import (
    answer_commitment,
    encrypt_report,
    label_hash,
    report_words,
    reports_digest,
)
from consilia.protocols.findings import Codes, Finding, codes_of, from_words, to_words
from consilia.values import Digest


@dataclass(frozen=True)
class OwnAnswer:
    """An answer as its server knows it: one report for each position, and the secret that all u_j come from."""

    query_id: Digest
    secret: bytes = field(repr=False)
    """32 bytes that this server keeps for all its answers."""
    label_secrets: tuple[bytes, ...] = field(repr=False)
    reports: tuple[tuple[Finding, ...], ...] = field(repr=False)

    def answer_secret(self, position: int) -> bytes:
        """u_j."""
        info = b"consilia/diagnosis/u/v1" + self.query_id + position.to_bytes(2, "big")
        return HKDFExpand(SHA256(), 32, info).derive(self.secret)

    def answer(self, position: int) -> Digest:
        """y_j."""
        codes = codes_of(self.reports[position])
        return label_hash(self.query_id, position, self.label_secrets[position], codes)

    def commitments(self) -> list[Digest]:
        """A_j of every position."""
        return [answer_commitment(self.answer_secret(j), self.answer(j)) for j in range(len(self.reports))]

    def sealed_reports(self) -> list[bytes]:
        """c_j of every position, 256 bytes each."""
        return [
            encrypt_report(self.query_id, j, self.answer_secret(j), to_words(report))
            for j, report in enumerate(self.reports)
        ]

    def opening(self, positions: Sequence[int]) -> tuple[list[bytes], list[Digest]]:
        """u_j and y_j of some positions."""
        return [self.answer_secret(j) for j in positions], [self.answer(j) for j in positions]


REPORT_BYTES = 256
REPORTS_MAGIC = b"CSLARPT1"


def write_reports(answer: OwnAnswer) -> bytes:
    """The plaintext of the reports' envelope: every c_j."""
    return REPORTS_MAGIC + answer.query_id + b"".join(answer.sealed_reports())


def read_reports(data: bytes, query_id: Digest, count: int, digest: Digest) -> list[bytes]:
    """Step 3: every c_j, which must be those that the ledger's W names.

    Raises:
        VerificationError: they are not.
    """
    body = data[40:]
    if data[:8] != REPORTS_MAGIC or data[8:40] != query_id or len(body) != REPORT_BYTES * count:
        raise VerificationError(f"expected {count} reports of this query: decline the answer")
    sealed = [body[at : at + REPORT_BYTES] for at in range(0, len(body), REPORT_BYTES)]
    if reports_digest(sealed) != digest:
        raise VerificationError("the reports in the store are not those of the ledger: decline the answer")
    return sealed


@dataclass(frozen=True)
class Diagnosis:
    """What the server found on one image: what the ledger's y_j says, with boxes and scores."""

    position: int
    findings: tuple[Finding, ...]

    @property
    def codes(self) -> Codes:
        """D'."""
        return codes_of(self.findings)


def recover(
    query_id: Digest, position: int, label_secret: bytes, answer_secret: bytes, answer: Digest, sealed: bytes
) -> Diagnosis:
    """Open a report with its u_j, and check that its codes are those of y_j.

    Raises:
        VerificationError: garbled, or another diagnosis than the server answered with.
    """
    findings = from_words(report_words(query_id, position, answer_secret, sealed))
    if label_hash(query_id, position, label_secret, codes_of(findings)) != answer:
        raise VerificationError("a report has other codes than the answer on the ledger: the server cheated")
    return Diagnosis(position, findings)


def codes_behind(
    query_id: Digest, position: int, label_secret: bytes, hashed: Digest, candidates: Iterable[Codes]
) -> Codes | None:
    """The diagnosis behind an x_j or y_j, by trying; only who has r_j can. None: no candidate.

    For a server it shows what an audit image was said to be; for a hospital, what a spoilt report was about.
    """
    tried = (codes for codes in candidates if label_hash(query_id, position, label_secret, codes) == hashed)
    return next(tried, None)
