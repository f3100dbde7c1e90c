"""What a hospital and a server have in common: a home, keys, a ledger, a store, a memory."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from consilia.crypto.keys import Identity, load_account, load_identity
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import EventLog
from consilia.ledger.outbox import Outbox
from consilia.protocols.training import TaskContexts
from consilia.roles.progress import Report
from consilia.roles.state import State
from consilia.roles.task_log import TaskLog, fold
from consilia.settings import HospitalSettings, ServerSettings
from consilia.store.directory import DirectoryStore
from consilia.values import Address

WAIT_SECONDS = 5.0
"""How long to listen to the ledger before looking at the clock again; deadlines are no finer than that."""

logger = logging.getLogger(__name__)


class Party:
    """A member of the consortium, connected. It knows the others through the ledger and the store alone."""

    def __init__(self, home: Path, settings: HospitalSettings | ServerSettings, report: Report) -> None:
        self.home = home
        self.name = settings.name
        self.report = report
        password = settings.keys.password()
        self.identity: Identity = load_identity(settings.keys.identity, password)
        account = load_account(settings.keys.account, password)
        self.address: Address = account.address
        self.state = State(home / "state.sqlite")
        self.store = DirectoryStore(settings.store.path)
        self.ledger = Ledger(
            settings.ledger.url,
            Deployment.load(settings.ledger.deployment),
            account=account,
            outbox=Outbox(home / "outbox.sqlite"),
            confirmations=settings.ledger.confirmations,
        )
        self._events = EventLog(self.ledger)

    def contexts(self, task: TaskLog) -> TaskContexts:
        """The contexts of a task's artifacts."""
        deployment = self.ledger.deployment
        return TaskContexts(deployment.chain_id, deployment.training, task.task_id, task.published.server)

    def recipient_of(self, member: Address) -> bytes:
        """A member's long-term encryption key, as registered."""
        return self.ledger.member(member).recipient_key

    def model_recipients(self, task: TaskLog) -> list[bytes]:
        """Who opens a task's global models: every enrolled hospital by its task key, and the server."""
        return [*task.task_keys.values(), self.recipient_of(task.published.server)]

    def tasks(self) -> dict[int, TaskLog]:
        """All tasks as the ledger tells them now."""
        return fold(self._events.refresh())

    def follow(self) -> Iterator[dict[int, TaskLog]]:
        """The tasks now, and again whenever the ledger moves or WAIT_SECONDS have passed."""
        head = 0
        while True:
            tasks = self.tasks()
            head = max(head, self._events.block)
            yield tasks
            head = self.ledger.wait(head, WAIT_SECONDS)
