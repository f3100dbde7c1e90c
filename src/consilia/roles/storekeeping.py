"""A store against the ledger: what is missing, what is damaged, and what nobody needs (docs/store.md)."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Self

from consilia.errors import ObjectDamagedError, ObjectMissingError, PolicyError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.diagnosis_events import DIAGNOSIS_EVENTS
from consilia.ledger.events import Event, MemberAdmitted, RoundClosed, TaskPublished, UpdateRegistered
from consilia.ledger.exchange_events import EXCHANGE_EVENTS
from consilia.protocols.exchange import DealState
from consilia.protocols.training import from_bitmap
from consilia.roles.diagnosis.query_log import fold_diagnosis
from consilia.roles.exchange.deal_log import fold_exchange
from consilia.settings.sections import LedgerSection
from consilia.store import ArtifactStore, StoredObject
from consilia.store.verified import object_bytes
from consilia.values import Address, Digest

LEAST_AGE_SECONDS = 3600.0
"""What is younger may belong to an upload that goes on, or to a registration that is on its way."""


class Condition(StrEnum):
    """What is found where an object should be."""

    GOOD = "good"
    MISSING = "missing"
    DAMAGED = "damaged"
    OTHER_SIZE = "of another size"
    """Whole, but registered with another size: the registration is false, and nothing is to be deleted."""
    ERASED = "erased"
    """Its owner has erased it, and a tombstone says so."""


@dataclass(frozen=True)
class Claim:
    """An object that the ledger names."""

    root: Digest
    what: str
    size: int | None
    """Bytes of the envelope, where the event tells."""
    owner: Address | None
    """Who put it there: a hospital, a task's server, the owner of a dataset."""
    needed: bool
    """Not so for an update that entered no average, or a data set of others that nobody is buying: one liar must not
    make every check fail."""


@dataclass(frozen=True)
class Finding:
    """One claim, looked at."""

    claim: Claim
    condition: Condition
    reason: str = ""

    @property
    def is_failure(self) -> bool:
        """Whether somebody has to do something."""
        return self.claim.needed and self.condition not in (Condition.GOOD, Condition.ERASED)


def read_claims(section: LedgerSection, own: Address = "") -> list[Claim]:
    """Everything that the ledger names, up to its newest block, confirmed or not.

    Args:
        own: the account whose data sets, deals and queries are needed besides what everybody needs.

    Raises:
        PolicyError: the ledger names no member: it is another one, or has only begun to catch up.
        LedgerUnreachableError: no node answers.
    """
    ledger = Ledger(section.url, Deployment.load(section.deployment))
    events = ledger.events()
    if not any(isinstance(event, MemberAdmitted) for event in events):
        raise PolicyError(
            f"the ledger at {section.url} knows no member of this consortium: expected a node that is up to date; "
            "let it catch up and try again"
        )
    return list(claims_of(events, own))


def claims_of(events: Iterable[Event], own: Address = "") -> Iterator[Claim]:
    """The objects that events name, each once: every field called root, or ending so, whatever the contract."""
    events = list(events)
    tasks = _Tasks.of(events, own)
    found: dict[Digest, Claim] = {}
    for event in events:
        for name in (field.name for field in fields(event)):
            if name != "root" and not name.endswith("_root"):
                continue
            claim = tasks.claim(event, name)
            known = found.get(claim.root)
            if known is None or (claim.needed and not known.needed):
                found[claim.root] = claim
    yield from found.values()


@dataclass(frozen=True)
class _Tasks:
    """What must be known of all tasks to tell whose an object is, and who needs it."""

    servers: Mapping[int, Address]
    included: Mapping[tuple[int, int], set[int]]
    traded: Collection[tuple[Address, Digest]]
    """What is needed of all that exchange and diagnosis name, each with the owner where the event tells one."""
    own: Address

    @classmethod
    def of(cls, events: Collection[Event], own: Address) -> Self:
        servers: dict[int, Address] = {}
        included: dict[tuple[int, int], set[int]] = {}
        for event in events:
            if isinstance(event, TaskPublished):
                servers[event.task_id] = event.server
            elif isinstance(event, RoundClosed):
                included[event.task_id, event.round_index] = set(from_bitmap(event.included))
        return cls(servers, included, set(_traded(events, own)), own)

    def claim(self, event: Event, name: str) -> Claim:
        needed, tells_size = True, True
        if isinstance(event, UpdateRegistered):
            positions = self.included.get((event.task_id, event.round_index))
            needed = positions is None or event.position in positions
        elif isinstance(event, (*EXCHANGE_EVENTS, *DIAGNOSIS_EVENTS)):
            # anybody may name a root there, with any size
            registrant = getattr(event, "owner", "")
            needed, tells_size = (registrant, getattr(event, name)) in self.traded, registrant == self.own
        server = self.servers.get(getattr(event, "task_id", -1))
        owner = getattr(event, "hospital", getattr(event, "owner", server))
        what = f"{name} of {type(event).__name__} in block {event.block_number}"
        size = getattr(event, name.removesuffix("root") + "size", None) if tells_size else None
        return Claim(getattr(event, name), what, size, owner, needed)


def _traded(events: Collection[Event], own: Address) -> Iterator[tuple[Address, Digest]]:
    """What one has for others, what one's open deals and queries are about, and what anybody's confirmed deals are."""
    log = fold_exchange(events)
    for listing in log.listings.values():
        if listing.owner == own and not listing.withdrawn:
            yield own, listing.root
    for deal in log.deals.values():
        is_party = own in (deal.buyer, deal.seller, deal.request.arbiter)
        if not deal.state.over and (is_party or deal.state >= DealState.CONFIRMED):  # both sides are bound
            yield deal.seller, deal.request.root
    for query in fold_diagnosis(events).queries.values():
        if not query.state.over and own in (query.hospital, query.offer.server):
            yield "", query.root
            if query.reports_root is not None:
                yield "", query.reports_root


def examine(store: ArtifactStore, claim: Claim, erased: Collection[tuple[Digest, Address]]) -> Finding:
    """Read one object from its first byte to its last.

    Args:
        erased: root and owner of each tombstone. One that somebody else signed excuses nothing.

    Raises:
        StoreError: the store does not answer; a store that is away is not a store that lost something.
    """
    try:
        found_bytes = object_bytes(store, claim.root)
    except ObjectMissingError as error:
        is_erased = claim.owner is not None and (claim.root, claim.owner) in erased
        gone = Condition.ERASED if is_erased else Condition.MISSING
        return Finding(claim, gone, str(error))
    except ObjectDamagedError as error:
        return Finding(claim, Condition.DAMAGED, str(error))
    if claim.size not in (None, found_bytes):
        reason = f"object {claim.root} has {found_bytes} bytes, registered were {claim.size}"
        return Finding(claim, Condition.OTHER_SIZE, reason)
    return Finding(claim, Condition.GOOD)


@dataclass(frozen=True)
class Garbage:
    """What may go: objects that nobody registered, and what uploads left."""

    objects: tuple[StoredObject, ...]
    uploads: tuple[str, ...]


def find_garbage(store: ArtifactStore, needed: Collection[Digest], older_than_seconds: float) -> Garbage:
    """What is old enough, and neither named by the ledger nor one's own.

    Args:
        needed: the roots of all claims, needed or not, and those of one's own sealed artifacts.

    Raises:
        PolicyError: `older_than_seconds` would take what is on its way.
    """
    if not older_than_seconds >= LEAST_AGE_SECONDS:  # so that "not a number" is refused too
        raise PolicyError(
            f"expected an age of {LEAST_AGE_SECONDS:.0f} seconds or more, got {older_than_seconds:.0f}: what is "
            "younger may be registered in a moment"
        )
    oldest = time.time() - older_than_seconds
    objects = [
        found for found in store.objects() if found.root not in needed and found.modified_seconds < oldest
    ]
    return Garbage(tuple(objects), tuple(store.abandoned(older_than_seconds)))


def collect(store: ArtifactStore, garbage: Garbage, section: LedgerSection) -> Iterator[str]:
    """Delete garbage, and name each thing that is gone.

    The ledger is asked again first: what was registered since `find_garbage` stays.
    """
    claimed = {claim.root for claim in read_claims(section)}
    for found in garbage.objects:
        if found.root not in claimed:
            store.delete(found.root)
            yield f"object {found.root}"
    for upload in garbage.uploads:
        store.discard(upload)
        yield f"upload {upload}"


def own_roots(home: Path) -> set[Digest]:
    """The artifacts that the party of this home has sealed, registered yet or not."""
    from consilia.roles.state import State

    path = home / "state.sqlite"
    if not path.exists():
        return set()
    state = State(path)
    try:
        return state.artifact_roots()
    finally:
        state.close()
