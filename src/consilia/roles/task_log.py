"""A task as the ledger tells it: the confirmed events, folded into what both roles act on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from consilia.ledger.events import (
    Claimed,
    Enrolled,
    Event,
    RoundClosed,
    RoundOpened,
    SharesSettled,
    TaskDied,
    TaskFinished,
    TaskKeyIssued,
    TaskPublished,
    TaskStarted,
    UpdateRegistered,
)
from consilia.protocols.task_spec import TaskSpec, parse_bytes
from consilia.values import Address


@dataclass
class RoundLog:
    """One round: how it opened, what was registered, how it closed."""

    opened: RoundOpened
    updates: list[UpdateRegistered] = field(default_factory=list)
    closed: RoundClosed | None = None

    def update_of(self, hospital: Address) -> UpdateRegistered | None:
        """What a hospital registered in this round."""
        return next((update for update in self.updates if update.hospital == hospital), None)


@dataclass
class TaskLog:
    """One task: everything that the ledger says of it, in the order in which it happened."""

    published: TaskPublished
    enrolled: list[Address] = field(default_factory=list)
    task_keys: dict[Address, bytes] = field(default_factory=dict)
    started: TaskStarted | None = None
    rounds: list[RoundLog] = field(default_factory=list)
    finished: TaskFinished | None = None
    died: TaskDied | None = None
    shares_wei: dict[Address, int] = field(default_factory=dict)
    claimed: set[Address] = field(default_factory=set)

    @property
    def task_id(self) -> int:
        """The task's number in its contract."""
        return self.published.task_id

    @property
    def spec(self) -> TaskSpec:
        """The published TaskSpec. Raises SpecError when the ledger holds a malformed one."""
        return parse_bytes(self.published.spec)

    @property
    def open_round(self) -> RoundLog | None:
        """The round that takes updates now."""
        if self.finished or self.died or not self.rounds or self.rounds[-1].closed:
            return None
        return self.rounds[-1]


def fold(events: Iterable[Event]) -> dict[int, TaskLog]:
    """The tasks in a list of events, by task id. The contract keeps the order lawful; this only collects."""
    tasks: dict[int, TaskLog] = {}
    for event in events:
        if isinstance(event, TaskPublished):
            tasks[event.task_id] = TaskLog(event)
        elif (task := tasks.get(getattr(event, "task_id", -1))) is not None:
            _apply(task, event)
    return tasks


def _apply(task: TaskLog, event: Event) -> None:
    match event:
        case Enrolled():
            task.enrolled.append(event.hospital)
        case TaskKeyIssued():
            task.task_keys[event.hospital] = event.task_key
        case TaskStarted():
            task.started = event
        case RoundOpened():
            task.rounds.append(RoundLog(event))
        case UpdateRegistered():
            task.rounds[event.round_index].updates.append(event)
        case RoundClosed():
            task.rounds[event.round_index].closed = event
        case _:
            _apply_ending(task, event)


def _apply_ending(task: TaskLog, event: Event) -> None:
    match event:
        case TaskFinished():
            task.finished = event
        case TaskDied():
            task.died = event
        case SharesSettled():
            task.shares_wei.update(zip(event.hospitals, event.shares_wei, strict=True))
        case Claimed():
            task.claimed.add(event.member)
