"""Joint training, as values and decisions (PROTOCOLS section 3, docs/protocols/training.md); `roles` does the rest.

Steps: 0 publish, 1 enrol and task keys, 2 round, 3 aggregate, 4 audit, 5 reward.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any, TypeVar

from pydantic import TypeAdapter

from consilia.errors import VerificationError
from consilia.protocols.task_spec import TaskSpec
from consilia.values import Address, ArtifactContext, ArtifactKind, Digest, canonical_json, parse_json

METRICS_KEY = "consilia.metrics"
"""Where an update's weights file carries its LocalMetrics, as canonical JSON."""

BITMAP_WORDS = 2
"""The contract takes the included updates as two words of 256 bits, by position of registration."""


@dataclass(frozen=True)
class TaskContexts:
    """The contexts of a task's artifacts: each envelope is bound to one, and opens under no other."""

    chain_id: int
    contract: Address
    task_id: int
    server: Address

    def key_string(self) -> ArtifactContext:
        """Step 1: the sealed task keys."""
        return self._of(ArtifactKind.KEY_STRING, 0, self.server)

    def model(self, round_index: int) -> ArtifactContext:
        """Step 2: the global model that opens a round; the last one, at index `rounds`, is the result."""
        return self._of(ArtifactKind.MODEL, round_index, self.server)

    def update(self, round_index: int, hospital: Address) -> ArtifactContext:
        """Step 2: what a hospital hands in."""
        return self._of(ArtifactKind.UPDATE, round_index, hospital)

    def round_report(self, round_index: int) -> ArtifactContext:
        """Step 3: which updates were included, and why the others were not."""
        return self._of(ArtifactKind.ROUND_REPORT, round_index, self.server)

    def _of(self, kind: ArtifactKind, round_index: int, owner: Address) -> ArtifactContext:
        return ArtifactContext(self.chain_id, self.contract, self.task_id, round_index, owner, kind)


@dataclass(frozen=True)
class SkippedStudy:
    """Something that could not be used: its number at the hospital, never a file's or a patient's name; and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class LocalMetrics:
    """What a hospital says of its round; sealed with its update, and by digest on the ledger."""

    loss: float
    steps: int
    seconds: float
    studies_used: int
    studies_skipped: tuple[SkippedStudy, ...] = ()

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(_plain(self))

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes."""
        return Digest.of(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> LocalMetrics:
        """Read what `to_bytes` wrote. Raises VerificationError for anything else."""
        return _parsed(cls, data, "local metrics")


class Outcome(StrEnum):
    """What became of a hospital's update in a round."""

    INCLUDED = "included"
    REJECTED = "rejected"
    LATE = "late"
    MISSING = "missing"


@dataclass(frozen=True)
class UpdateOutcome:
    """One enrolled hospital's line in a round report."""

    hospital: Address
    outcome: Outcome
    reason: str = ""
    position: int | None = None
    num_examples: int = 0
    size: int = 0
    metrics: LocalMetrics | None = None


@dataclass(frozen=True)
class RoundReport:
    """The server's account of one round: every enrolled hospital, in the order of enrolment."""

    task_id: int
    round_index: int
    updates: tuple[UpdateOutcome, ...]

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        return canonical_json(_plain(self))

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical bytes; the contract records it."""
        return Digest.of(self.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> RoundReport:
        """Read what `to_bytes` wrote. Raises VerificationError for anything else."""
        return _parsed(cls, data, "a round report")

    @property
    def included(self) -> tuple[UpdateOutcome, ...]:
        """The updates that entered the average."""
        return tuple(update for update in self.updates if update.outcome is Outcome.INCLUDED)


class Decision(Enum):
    """What the server does about an open round."""

    WAIT = "wait"
    AGGREGATE = "aggregate"
    GIVE_UP = "give up"


@dataclass(frozen=True)
class RoundClock:
    """When a round opened, when its quorum was reached, when it must end; seconds of one clock."""

    deadline: float
    quorum_since: float | None


def decide_round(
    spec: TaskSpec, enrolled: int, usable: int, refused: int, clock: RoundClock, now: float
) -> Decision:
    """Step 3: aggregate when everybody is in, when the grace after the quorum is over, or at the deadline.

    Args:
        enrolled: hospitals in the task.
        usable: updates that may enter the average.
        refused: updates that came and were rejected; nobody waits for those hospitals.
    """
    everybody = usable + refused >= enrolled
    if usable < spec.terms.quorum:
        return Decision.GIVE_UP if everybody or now >= clock.deadline else Decision.WAIT
    patient_until = (clock.quorum_since if clock.quorum_since is not None else now) + spec.terms.grace_seconds
    return Decision.AGGREGATE if everybody or now >= min(clock.deadline, patient_until) else Decision.WAIT


def to_bitmap(positions: Iterable[int]) -> tuple[int, int]:
    """The included updates as the contract takes them: bit i of word i // 256 for position i."""
    words = [0] * BITMAP_WORDS
    for position in positions:
        words[position // 256] |= 1 << (position % 256)
    return words[0], words[1]


def from_bitmap(words: Sequence[int]) -> tuple[int, ...]:
    """The positions in a bitmap, rising."""
    return tuple(256 * w + bit for w, word in enumerate(words) for bit in range(256) if word >> bit & 1)


Message = TypeVar("Message", LocalMetrics, RoundReport)


def _plain(value: object) -> Any:
    return TypeAdapter(type(value)).dump_python(value, mode="json")


def _parsed(kind: type[Message], data: bytes, what: str) -> Message:
    try:
        value: Message = TypeAdapter(kind).validate_python(parse_json(data), extra="forbid")
    except ValueError as error:  # pydantic's ValidationError is one
        raise VerificationError(f"expected {what} as canonical JSON; {error}") from error
    if value.to_bytes() != data:
        raise VerificationError(f"expected {what} in canonical form, got another spelling of it")
    return value
