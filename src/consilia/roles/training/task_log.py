"""A task as the ledger tells it: the confirmed events, folded into what both roles act on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from consilia.errors import AuditError, SpecError
from consilia.ledger.events import (
    Claimed,
    Enrolled,
    Event,
    MemberAdmitted,
    RecipientKeyChanged,
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
    recipients: dict[Address, bytes] = field(default_factory=dict)
    """The long-term encryption keys with which the server published and each hospital enrolled. They hold for the
    whole task: else one who changes its key in the middle would lock everybody out of what is sealed already."""
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
        """The published TaskSpec.

        Raises:
            SpecError: the ledger holds a malformed one, or one that promises other terms than the contract keeps.
        """
        spec, published = parse_bytes(self.published.spec), self.published
        for name, promised, kept in (
            ("training.rounds", spec.training.rounds, published.rounds),
            ("terms.quorum", spec.terms.quorum, published.quorum),
            ("terms.max_hospitals", spec.terms.max_hospitals, published.max_hospitals),
            ("terms.round_seconds", spec.terms.round_seconds, published.round_seconds),
            ("terms.reward_wei", spec.terms.reward_wei, published.reward_wei),
        ):
            if promised != kept:
                raise SpecError(
                    f"{name} is {promised} in the TaskSpec, but {kept} in the contract: refuse the task"
                )
        return spec

    @property
    def earned_wei(self) -> int:
        """What the hospitals get of the reward, now that the task is over."""
        return self.published.reward_wei - (self.died.refund_wei if self.died else 0)

    @property
    def settled(self) -> bool:
        """Whether everything that was earned is divided; shares come in batches."""
        return sum(self.shares_wei.values()) >= self.earned_wei

    @property
    def deadline(self) -> int:
        """When the step ends that the task is in: its enrolment, or its newest round."""
        return self.rounds[-1].opened.deadline if self.rounds else self.published.enrol_deadline

    @property
    def open_round(self) -> RoundLog | None:
        """The round that takes updates now."""
        if self.finished or self.died or not self.rounds or self.rounds[-1].closed:
            return None
        return self.rounds[-1]


def fold(events: Iterable[Event]) -> dict[int, TaskLog]:
    """The tasks in a list of events, by task id. The contract keeps the order lawful; this only collects.

    Raises:
        AuditError: a task is by somebody whom the registry among these events never admitted.
    """
    tasks: dict[int, TaskLog] = {}
    recipients: dict[Address, bytes] = {}
    for event in events:
        if isinstance(event, MemberAdmitted | RecipientKeyChanged):
            recipients[event.account] = event.recipient_key
        elif isinstance(event, TaskPublished):
            tasks[event.task_id] = TaskLog(event, {event.server: _key_of(event.server, recipients)})
        elif (task := tasks.get(getattr(event, "task_id", -1))) is not None:
            if isinstance(event, Enrolled):
                task.recipients[event.hospital] = _key_of(event.hospital, recipients)
            _apply(task, event)
    return tasks


def _key_of(account: Address, recipients: dict[Address, bytes]) -> bytes:
    if account not in recipients:
        raise AuditError(
            f"{account} takes part in a task, but no event of the registry admits it: the deployment file names "
            "another registry than the one that the training contract asks, or the chain tells only a part"
        )
    return recipients[account]


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
