"""A server that commits to a report which is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consilia.protocols.answer import OwnAnswer
from consilia.protocols.diagnosis import encrypt_report
from consilia.protocols.findings import Finding
from consilia.protocols.query import OwnQuery
from consilia.values import Digest


@dataclass(frozen=True)
class Garbled(OwnAnswer):
    """The codes are answered well; what is encrypted at one position is a word of the cheat's own."""

    position: int = 0
    words: tuple[int, ...] = ()

    def sealed_reports(self) -> list[bytes]:
        sealed = super().sealed_reports()
        secret = self.answer_secret(self.position)
        sealed[self.position] = encrypt_report(self.query_id, self.position, secret, self.words)
        return sealed


def garbled(
    query_id: Digest, query: OwnQuery, reports: Sequence[tuple[Finding, ...]], position: int, word: int
) -> Garbled:
    secrets = tuple(query.secrets.label_secret(j) for j in range(len(query.images)))
    return Garbled(query_id, b"\x05" * 32, secrets, tuple(reports), position, (word, *[0] * 7))
