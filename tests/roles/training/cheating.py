"""A server that would answer only the audit images well, if it could tell them before it has to commit."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from consilia.protocols.answer import OwnAnswer
from consilia.protocols.diagnosis import Place, QueryImage
from consilia.protocols.findings import Finding
from consilia.protocols.query import make_query
from consilia.roles.diagnosis.answering import Diagnoser
from tests.roles.asking import OTHER

BADLY = (Finding(OTHER, (1, 1, 5, 5)),)

SIGNALS: dict[str, Callable[[int, bytes, tuple[Finding, ...]], float]] = {
    "place": lambda place, data, found: place,
    "brightness": lambda place, data, found: sum(data),
    "score": lambda place, data, found: found[0].score if found else 0.0,
    "box": lambda place, data, found: found[0].box_xyxy[0] if found else -1.0,
}
"""What a server could order images by when it has to commit: all that it holds of them, and what its model says."""


class Cheat:
    """Answers the 20 images as its model does that it takes for audit images, and the others badly."""

    def __init__(self, honest: Diagnoser, signal: str) -> None:
        self.honest = honest
        self.image_format = honest.image_format
        self.signal = SIGNALS[signal]

    def diagnose(self, images: Sequence[bytes]) -> list[tuple[Finding, ...]]:
        found = self.honest.diagnose(images)
        told = [
            self.signal(place, data, item)
            for place, (data, item) in enumerate(zip(images, found, strict=True))
        ]
        badly = sorted(range(len(images)), key=told.__getitem__)[20:]
        return [BADLY if place in badly else item for place, item in enumerate(found)]


def check_guessing(
    cheat: Cheat, dealt: Callable[[], Sequence[QueryImage]], chance: random.Random, queries: int
) -> None:
    """Its 12 bad answers fall on audit images as often as if it had drawn lots, so that its queries fail."""
    place = Place(1, "0x" + "11" * 20)
    caught = passed = 0
    for _ in range(queries):
        query = make_query(place, "0x" + "22" * 20, dealt(), 16, chance.randbytes(32))
        reports = cheat.diagnose([image.pixels for image in query.images])
        secrets = tuple(query.secrets.label_secret(j) for j in range(32))
        answer = OwnAnswer(query.query_id, bytes(32), secrets, tuple(reports))
        missed = {j for j in query.audits if answer.answer(j) != query.label(j)}
        caught += sum(reports[j] == BADLY for j in missed)
        passed += len(missed) <= 4
    # hypergeometric: 12 of 32 badly, 20 of them audits: 7.5 on average, variance 1.815; at most 4: .012
    assert abs(caught / queries - 7.5) < 4 * (1.815 / queries) ** 0.5
    assert passed <= queries / 10
