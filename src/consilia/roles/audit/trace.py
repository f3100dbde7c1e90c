"""The paper's traceability: a task told from the ledger alone, each artifact linked to its update, round and reward.

Everything here follows from confirmed events and the blocks that hold them; nothing is asked of server or store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consilia.errors import SpecError
from consilia.federation.contribution import shares_by_samples
from consilia.ledger.events import (
    Claimed,
    Enrolled,
    Event,
    Refunded,
    SharesSettled,
    UnclaimedWithdrawn,
    UpdateRegistered,
)
from consilia.ledger.history import Logged
from consilia.protocols.task_spec import parse_bytes
from consilia.protocols.training import from_bitmap
from consilia.roles.audit.view import Account, LedgerView
from consilia.roles.training.rounds import samples_included
from consilia.roles.training.task_log import RoundLog, TaskLog, fold
from consilia.values import Digest


@dataclass(frozen=True)
class Deed:
    """Where something was recorded, who signed it and who mined the block; `timestamp` in Unix seconds."""

    block_number: int
    timestamp: int
    transaction: Digest
    by: Account
    miner: Account


@dataclass(frozen=True)
class ArtifactTrace:
    """An artifact by the names under which the ledger knows it; `digest` is of its plaintext, where registered."""

    root: Digest
    size_bytes: int
    digest: Digest | None = None


@dataclass(frozen=True)
class EnrolmentTrace:
    """A hospital that takes part."""

    hospital: Account
    deed: Deed


@dataclass(frozen=True)
class UpdateTrace:
    """An update, and what became of it: `included` and its `weight` in the average, None while the round is open."""

    hospital: Account
    position: int
    artifact: ArtifactTrace
    num_examples: int
    metrics_digest: Digest
    included: bool | None
    weight: float | None
    deed: Deed


@dataclass(frozen=True)
class RoundTrace:
    """A round: the model that it opened with, the updates on it, and the model that came out."""

    round_index: int
    model: ArtifactTrace
    deadline: int
    opened: Deed
    updates: tuple[UpdateTrace, ...]
    closed: Deed | None
    report: ArtifactTrace | None
    next_model: ArtifactTrace | None


@dataclass(frozen=True)
class RewardTrace:
    """A hospital's reward and what it follows from; `expected_wei` is computed from the registered examples."""

    hospital: Account
    updates_registered: int
    updates_included: int
    num_examples: int
    expected_wei: int | None
    share_wei: int | None
    shared: Deed | None
    claimed: Deed | None


@dataclass(frozen=True)
class PaymentTrace:
    """Wei that went back to the funder: refunded, or shares that nobody claimed."""

    what: str
    amount_wei: int
    deed: Deed


@dataclass(frozen=True)
class TaskTrace:
    """A whole task; `number` counts from 1 in the order of publication; `phase` is enrolling, training, finished or
    dead (with `reason`)."""

    task_id: int
    number: int
    title: str
    phase: str
    reason: str
    server: Account
    rounds_planned: int
    reward_wei: int
    earned_wei: int | None
    published: Deed
    enrolled: tuple[EnrolmentTrace, ...]
    key_string: ArtifactTrace | None
    started: Deed | None
    rounds: tuple[RoundTrace, ...]
    ended: Deed | None
    rewards: tuple[RewardTrace, ...]
    returned: tuple[PaymentTrace, ...]


def trace_tasks(view: LedgerView, logged: Sequence[Logged]) -> list[TaskTrace]:
    """The tasks in a ledger's events (all of them from the deployment on), in the order of their publication."""
    events = [event for item in logged if (event := item.typed()) is not None]
    tasks = fold(events)
    return [_Tracer(view, task, events).trace(number) for number, task in enumerate(tasks.values(), 1)]


def task_ids(logged: Sequence[Logged]) -> list[int]:
    """The tasks' ids in the order of their publication: people call them by their place in it."""
    published = (event for event in logged if (event.contract, event.event) == ("training", "TaskPublished"))
    return [task_id for event in published if (task_id := event.task_id) is not None]


def find_deed(view: LedgerView, event: Event | Logged) -> Deed:
    """Where an event was recorded."""
    block = view.history.block(event.block_number)
    sender = next(t.sender for t in block.transactions if t.hash == event.transaction_hash)
    return Deed(
        block.number, block.timestamp, event.transaction_hash, view.account(sender), view.account(block.miner)
    )


class _Tracer:
    def __init__(self, view: LedgerView, task: TaskLog, events: Sequence[Event]) -> None:
        self._view = view
        self._task = task
        self._events = [event for event in events if getattr(event, "task_id", None) == task.task_id]

    def trace(self, number: int) -> TaskTrace:
        task, published = self._task, self._task.published
        end = task.died or task.finished
        return TaskTrace(
            task_id=task.task_id,
            number=number,
            title=title_of(task),
            phase=_phase(task),
            reason=task.died.reason if task.died else "",
            server=self._view.account(published.server),
            rounds_planned=published.rounds,
            reward_wei=published.reward_wei,
            earned_wei=task.earned_wei if end else None,
            published=self._deed(published),
            enrolled=tuple(
                EnrolmentTrace(self._view.account(event.hospital), self._deed(event))
                for event in self._events
                if isinstance(event, Enrolled)
            ),
            key_string=ArtifactTrace(task.started.key_string_root, task.started.key_string_size)
            if task.started
            else None,
            started=self._deed(task.started) if task.started else None,
            rounds=tuple(self._round(current) for current in task.rounds),
            ended=self._deed(end) if end else None,
            rewards=tuple(self._rewards()),
            returned=tuple(self._returned()),
        )

    def _round(self, current: RoundLog) -> RoundTrace:
        opened, closed = current.opened, current.closed
        included = set(from_bitmap(closed.included)) if closed else None
        counted = sum(u.num_examples for u in current.updates if included and u.position in included)
        return RoundTrace(
            round_index=opened.round_index,
            model=ArtifactTrace(opened.model_root, opened.model_size, opened.model_digest),
            deadline=opened.deadline,
            opened=self._deed(opened),
            updates=tuple(self._update(update, included, counted) for update in current.updates),
            closed=self._deed(closed) if closed else None,
            report=ArtifactTrace(closed.report_root, closed.report_size, closed.report_digest)
            if closed
            else None,
            next_model=ArtifactTrace(closed.model_root, closed.model_size, closed.model_digest)
            if closed
            else None,
        )

    def _update(self, update: UpdateRegistered, included: set[int] | None, counted: int) -> UpdateTrace:
        is_in = None if included is None else update.position in included
        weight = None if is_in is None else update.num_examples / counted if is_in else 0.0
        return UpdateTrace(
            hospital=self._view.account(update.hospital),
            position=update.position,
            artifact=ArtifactTrace(update.root, update.size),
            num_examples=update.num_examples,
            metrics_digest=update.metrics_digest,
            included=is_in,
            weight=weight,
            deed=self._deed(update),
        )

    def _rewards(self) -> list[RewardTrace]:
        task = self._task
        samples = samples_included(task)
        over = task.finished or task.died
        expected = shares_by_samples(samples, task.earned_wei) if over else None
        shared = {
            hospital: event
            for event in self._events
            if isinstance(event, SharesSettled)
            for hospital in event.hospitals
        }
        claimed = {event.member: event for event in self._events if isinstance(event, Claimed)}
        rewards = []
        for hospital in task.enrolled:
            handed_in = [u for current in task.rounds if (u := current.update_of(hospital)) is not None]
            rewards.append(
                RewardTrace(
                    hospital=self._view.account(hospital),
                    updates_registered=len(handed_in),
                    updates_included=sum(is_included(task, update) for update in handed_in),
                    num_examples=samples.get(hospital, 0),
                    expected_wei=None if expected is None else expected.get(hospital, 0),
                    share_wei=task.shares_wei.get(hospital),
                    shared=self._deed(shared[hospital]) if hospital in shared else None,
                    claimed=self._deed(claimed[hospital]) if hospital in claimed else None,
                )
            )
        return rewards

    def _returned(self) -> list[PaymentTrace]:
        return [
            PaymentTrace(
                "refunded" if isinstance(event, Refunded) else "unclaimed",
                event.amount_wei,
                self._deed(event),
            )
            for event in self._events
            if isinstance(event, Refunded | UnclaimedWithdrawn)
        ]

    def _deed(self, event: Event) -> Deed:
        return find_deed(self._view, event)


def is_included(task: TaskLog, update: UpdateRegistered) -> bool:
    """Whether an update is in the average of its round."""
    closed = task.rounds[update.round_index].closed
    return closed is not None and update.position in from_bitmap(closed.included)


def title_of(task: TaskLog) -> str:
    """What a task calls itself."""
    try:
        return parse_bytes(task.published.spec).title
    except SpecError:  # anybody with the server's role may publish nonsense; hospitals refuse it
        return "(malformed TaskSpec)"


def _phase(task: TaskLog) -> str:
    if task.died:
        return "dead"
    if task.finished:
        return "finished"
    return "training" if task.started else "enrolling"
