"""What the contracts' views answer, as values."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from consilia.values import Address, Digest, Role

FOR_GOOD = 2**256 - 1


class Phase(IntEnum):
    """Where a task stands; the numbers are those of contracts/training.vy."""

    ENROLLING = 1
    TRAINING = 2
    FINISHED = 3
    DEAD = 4


@dataclass(frozen=True)
class Member:
    """A member of the consortium; `valid_from` (included) and `valid_to` (not included) are Unix seconds."""

    account: Address
    recipient_key: bytes
    role: Role
    certificate_digest: Digest
    valid_from: int
    valid_to: int
    is_listed: bool
    suspended_until: int
    """Unix seconds; 0 never was, FOR_GOOD until it is lifted."""

    def in_good_standing(self, at_seconds: int) -> bool:
        """Whether the registry lets it act at a Unix time; the contract's `in_good_standing` says the same."""
        return self.is_trusted(at_seconds) and self.valid_from <= at_seconds < self.valid_to

    def is_trusted(self, at_seconds: int) -> bool:
        """Whether it belongs to the consortium and is not suspended, be its validity what it may."""
        return self.is_listed and self.suspended_until <= at_seconds

    def standing(self, at_seconds: int) -> str:
        """How it stands at a Unix time, in a word for people."""
        if not self.is_listed:
            return "gone"
        if self.suspended_until > at_seconds:
            return "suspended"
        if at_seconds < self.valid_from:
            return "not yet valid"
        return "active" if at_seconds < self.valid_to else "lapsed"

    @classmethod
    def of(cls, record: dict[str, Any]) -> Member:
        """From registry.vy's Member."""
        return cls(
            record["account"],
            record["recipient_key"],
            Role(record["role"]),
            Digest(record["certificate_digest"]),
            record["valid_from"],
            record["valid_to"],
            record["status"] == 1,
            record["suspended_until"],
        )


@dataclass(frozen=True)
class TaskState:
    """A task in training.vy; `deadline` (Unix seconds) ends enrolment, the open round, or settlement."""

    server: Address
    phase: Phase
    spec_digest: Digest
    rounds: int
    quorum: int
    max_hospitals: int
    round_seconds: int
    reward_wei: int
    enrolled: int
    keyed: int
    round_index: int
    registered: int
    updates: int
    deadline: int
    earned_wei: int

    @classmethod
    def of(cls, record: dict[str, Any]) -> TaskState:
        """From training.vy's Task."""
        return cls(
            **{**record, "phase": Phase(record["phase"]), "spec_digest": Digest(record["spec_digest"])}
        )


@dataclass(frozen=True)
class Enrolment:
    """A hospital's part in a task; `position` is its index + 1, or 0 if it is not enrolled."""

    position: int
    keyed: bool
    next_round: int
    updates: int


@dataclass(frozen=True)
class Pool:
    """Where the wei of a task are; `claim_deadline` in Unix seconds."""

    funder: Address
    unshared_wei: int
    refundable_wei: int
    unclaimed_wei: int
    claim_deadline: int
