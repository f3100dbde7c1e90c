"""What a hospital and a server have in common: a home, keys, a ledger, a store, a memory."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from eth_typing import Hash32

from consilia.crypto import hpke
from consilia.crypto.custody import Opener, Signer
from consilia.errors import EnvelopeError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.event import Event
from consilia.ledger.event_log import EventLog
from consilia.ledger.outbox import Outbox
from consilia.ledger.sender import RESEND_SECONDS
from consilia.protocols.training import TaskContexts
from consilia.roles.keys import PartyKeys, open_keys
from consilia.roles.progress import Report
from consilia.roles.state import State
from consilia.roles.stores import open_store
from consilia.roles.training.task_log import TaskLog, fold
from consilia.settings import HospitalSettings, ServerSettings
from consilia.values import Address, Digest

WAIT_SECONDS = 5.0
"""How long to listen to the ledger before looking at the clock again; deadlines are no finer than that."""

logger = logging.getLogger(__name__)


class Party:
    """A member of the consortium, connected. It knows the others through the ledger and the store alone."""

    def __init__(
        self,
        home: Path,
        settings: HospitalSettings | ServerSettings,
        report: Report,
        keys: PartyKeys | None = None,
    ) -> None:
        self.home = home
        self.name = settings.name
        self.report = report
        opened = keys or open_keys(settings.keys)
        self.identity: Opener = opened.opener
        self.account: Signer = opened.signer
        self.address: Address = self.account.address
        self.state = State(home / "state.sqlite")
        self.store = open_store(settings.store)
        self._outbox = Outbox(home / "outbox.sqlite")
        self.ledger = Ledger(
            settings.ledger.url,
            Deployment.load(settings.ledger.deployment),
            account=self.account,
            outbox=self._outbox,
            confirmations=settings.ledger.depth,
            witnesses=settings.ledger.witnesses,
        )
        self._events = EventLog(self.ledger)
        self._reorganisations = 0
        self._resend_at = 0.0
        self._waiting: dict[str, str] = {}

    def close(self) -> None:
        """Close the files in its home; nothing can be done with it afterwards."""
        self.state.close()
        self._outbox.close()

    def sign(self, digest: Digest) -> bytes:
        """This account's signature over a digest: r, s, v, 65 bytes, low-s."""
        return bytes(self.account.unsafe_sign_hash(Hash32(digest)).signature)

    def work(self, name: str) -> Path:
        """A file for what is under way; it can be lost."""
        folder = self.home / "work"
        folder.mkdir(exist_ok=True)
        return folder / name

    def contexts(self, task: TaskLog) -> TaskContexts:
        """The contexts of a task's artifacts."""
        deployment = self.ledger.deployment
        return TaskContexts(deployment.chain_id, deployment.training, task.task_id, task.published.server)

    def model_recipients(self, task: TaskLog) -> list[bytes]:
        """Who opens a task's global models: every enrolled hospital by its task key, and the server."""
        return [*task.task_keys.values(), task.recipients[task.published.server]]

    def events(self) -> list[Event]:
        """All confirmed events of the consortium, as the ledger tells them now."""
        events = self._events.refresh()
        if self._events.reorganisations > self._reorganisations:
            self._reorganisations = self._events.reorganisations
            self._resend_at = 0.0
            self.report("history changed", block=self._events.block)
            self.history_changed()
        return events

    def tasks(self) -> dict[int, TaskLog]:
        """All tasks as the ledger tells them now."""
        return fold(self.events())

    def history_changed(self) -> None:
        """A re-org took confirmed events back: forget what was concluded from them; the log tells what holds now."""

    def _resend(self) -> None:
        """Now and then: no decision may be lost because a re-org or a node dropped its transaction."""
        if time.monotonic() < self._resend_at:
            return
        self._resend_at = time.monotonic() + RESEND_SECONDS
        waiting = self.ledger.resend()
        for key in waiting.keys() - self._waiting.keys():
            self.report("transaction waits", key=key, reason=waiting[key])
        self._waiting = waiting

    def follow(self, every_block: bool = False) -> Iterator[dict[int, TaskLog]]:
        """The tasks now, and again whenever the ledger moves or WAIT_SECONDS have passed.

        Args:
            every_block: also when a block came that is not confirmed yet.
        """
        head = newest = 0
        while True:
            tasks = self.tasks()
            self._resend()
            head = max(head, self._events.block)
            yield tasks
            if every_block:
                newest = self.ledger.wait_for_news(newest, head, WAIT_SECONDS)
            else:
                head = self.ledger.wait(head, WAIT_SECONDS)

    def events_ahead(self, task_id: int) -> list[Event]:
        """A task's events in blocks after the confirmed ones: none of them is true yet."""
        return self.ledger.events_ahead(self._events.block, task_id)

    def work_file(self, task_id: int, name: str) -> Path:
        """Where a file of a running task lies that can be made again: kept from round to round to be written over."""
        folder = self._work_folder(task_id)
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name

    def clear_work(self, task_id: int) -> None:
        """Delete the work files of a task that is over."""
        shutil.rmtree(self._work_folder(task_id), ignore_errors=True)

    def _work_folder(self, task_id: int) -> Path:
        return self.home / "work" / f"task-{task_id}"


def key_holders(task: TaskLog) -> dict[bytes, Address]:
    """Whose long-term keys a task's key string is sealed to: the server's, then each hospital's.

    A key of low order, or one that another member has, is passed over: the registry takes any 32 bytes, and one
    such hospital must not spoil the envelope for all the others.
    """
    server = task.published.server
    holders = {task.recipients[server]: server}
    for hospital in task.enrolled:
        recipient = task.recipients[hospital]
        try:
            hpke.check_recipients([*holders, recipient])
            hpke.seal(recipient, b"", b"")  # fails for a key of low order
        except EnvelopeError:
            continue
        holders[recipient] = hospital
    return holders
