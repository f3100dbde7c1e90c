"""The objects that a ledger names: what training used, and what was put up for exchange or asked about."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from consilia.errors import AuditError, StoreError, StoreUnreachableError
from consilia.ledger.event import Event
from consilia.ledger.exchange_events import ArtifactRegistered
from consilia.protocols.training import from_bitmap
from consilia.roles.diagnosis.query_log import fold_diagnosis
from consilia.roles.progress import Report
from consilia.roles.training.task_log import TaskLog, fold
from consilia.store import ArtifactStore
from consilia.store.verified import object_bytes
from consilia.values import Address, ArtifactKind, Digest


@dataclass(frozen=True)
class Registered:
    """An object that somebody registered.

    An audit cannot do without what is `needed`: all that training used. An update that entered no average is not, nor
    is what a hospital has for others or asked about: its owner may have erased it, as the law may ask.
    """

    what: str
    root: Digest
    size: int
    owner: Address
    needed: bool = True
    task_id: int = 0
    """0 where no task is concerned."""


def registered_objects(events: Iterable[Event]) -> list[Registered]:
    """Every object that events register: those of all tasks, then those of the exchange, then those of queries."""
    events = list(events)
    tasks = fold(events).values()
    return [*(item for task in tasks for item in _of_task(task)), *_of_exchange(events), *_of_queries(events)]


def _of_task(task: TaskLog) -> Iterator[Registered]:
    server, task_id = task.published.server, task.task_id
    if task.started:
        started = task.started
        yield Registered(
            "the key string", started.key_string_root, started.key_string_size, server, task_id=task_id
        )
    for current in task.rounds:
        index, opened, closed = current.opened.round_index, current.opened, current.closed
        what = f"the model that opens round {index}"
        yield Registered(what, opened.model_root, opened.model_size, server, task_id=task_id)
        included = set(from_bitmap(closed.included)) if closed else set()
        for update in current.updates:
            what, needed = f"the update of {update.hospital} in round {index}", update.position in included
            yield Registered(what, update.root, update.size, update.hospital, needed, task_id)
        if closed is not None:
            what = f"the report of round {index}"
            yield Registered(what, closed.report_root, closed.report_size, server, task_id=task_id)
            what = f"the model of round {index}"
            yield Registered(what, closed.model_root, closed.model_size, server, task_id=task_id)


def _of_exchange(events: Iterable[Event]) -> Iterator[Registered]:
    for event in events:
        if isinstance(event, ArtifactRegistered):
            kind = "data set" if event.kind == ArtifactKind.DATASET else "update"
            what = f"the {kind} that {event.owner} put up for exchange"
            yield Registered(what, event.root, event.size, event.owner, False, event.task_id)


def _of_queries(events: Iterable[Event]) -> Iterator[Registered]:
    for query in fold_diagnosis(events).queries.values():
        what = f"the images of query {query.query_id}"
        yield Registered(what, query.root, query.size, query.hospital, needed=False)
        if query.reports_root is not None:
            what = f"the answers of query {query.query_id}"
            yield Registered(what, query.reports_root, query.reports_size, query.offer.server, needed=False)


@dataclass(frozen=True)
class Inventory:
    """What a store has of the objects that a ledger names."""

    there: int
    """Different objects, whole and in their size."""
    not_in_order: int
    """Registrations whose object is not there like that; each was reported, and nothing that training used is among
    them."""


def check_objects(store: ArtifactStore, objects: Iterable[Registered], report: Report) -> Inventory:
    """Read every registered object from its first byte to its last, and compare it with its root and size.

    What nobody trained on may be missing: one liar must not make every audit fail, and owners may erase. It is told.

    Raises:
        AuditError: one that is needed is missing, damaged, or of another size.
        StoreUnreachableError: the store does not answer: that says nothing of what it has.
    """
    checked: set[Digest] = set()
    not_in_order = 0
    for item in objects:
        if item.root in checked:
            continue
        try:
            _check_object(store, item)
        except StoreUnreachableError:
            raise
        except (AuditError, StoreError) as error:
            if item.needed:
                raise AuditError(f"task {item.task_id}, {item.what}: {error}") from error
            not_in_order += 1
            report("object not in order", object=item.what, owner=item.owner, reason=str(error))
        else:
            checked.add(item.root)
    return Inventory(len(checked), not_in_order)


def _check_object(store: ArtifactStore, item: Registered) -> None:
    actual = object_bytes(store, item.root)
    if actual != item.size:
        raise AuditError(f"object {item.root} has {actual} bytes, registered were {item.size}")
