"""A log of what the contracts tell that follows the chain through re-orgs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consilia.errors import RpcError
from consilia.ledger.event import Event
from consilia.values import Digest

if TYPE_CHECKING:
    from consilia.ledger.chain import BlockInfo
    from consilia.ledger.client import Ledger

KEPT_BLOCKS = 64
"""How many earlier heads are remembered; a re-org that goes deeper makes the log read the chain afresh."""


class EventLog:
    """All confirmed events of a consortium, or of one task, in their order; `refresh` brings it up to date.

    Under proof of work a confirmed block can still lose. The log remembers the hashes of the heads that it
    saw; where the chain has another block now, it rolls back to the last head that is still there.
    """

    def __init__(self, ledger: Ledger, task_id: int | None = None) -> None:
        self._ledger = ledger
        self._task_id = task_id
        self._first = ledger.deployment.block
        self._events: list[Event] = []
        self._heads: list[tuple[int, Digest]] = []
        self.reorganisations = 0

    @property
    def block(self) -> int:
        """The number of the newest block that was read; -1 before the first `refresh`."""
        return self._heads[-1][0] if self._heads else -1

    def refresh(self) -> list[Event]:
        """All events up to the newest confirmed block; only new blocks are read."""
        while not self._read_on():
            pass  # a re-org came between the questions: ask again
        return list(self._events)

    def _read_on(self) -> bool:
        head = self._ledger.confirmed_block()
        if self._heads and self._heads[-1] == (head.number, head.hash):
            return True
        if not self._heads or self._heads[-1] != (head.number - 1, head.parent_hash):
            self._roll_back(head.number)
        fresh = self._fresh(head)
        if fresh is None:
            return False
        self._events += fresh
        self._heads = [*self._heads, (head.number, head.hash)][-KEPT_BLOCKS:]
        return True

    def _fresh(self, head: BlockInfo) -> list[Event] | None:
        """The events after the last head that was read; None if the chain changed while they were asked for."""
        first = self.block + 1 if self._heads else self._first
        if first > head.number:
            return []
        try:
            if first == head.number:  # the usual case, and the hash leaves no doubt
                return self._ledger.events_of_block(head.hash, self._task_id)
            fresh = self._ledger.events(first, head.number, self._task_id)
        except RpcError:
            if self._is_there(head.number, head.hash):
                raise
            return None
        return fresh if self._is_there(head.number, head.hash) else None

    def _roll_back(self, confirmed: int) -> None:
        rolled_back = False
        while self._heads and not (self._heads[-1][0] <= confirmed and self._is_there(*self._heads[-1])):
            self._heads.pop()
            rolled_back = True
        if rolled_back:
            self.reorganisations += 1
            self._events = [event for event in self._events if event.block_number <= self.block]

    def _is_there(self, number: int, block_hash: Digest) -> bool:
        block = self._ledger.find_block(number)
        return block is not None and block.hash == block_hash
