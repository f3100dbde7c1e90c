"""When a node mines: for transactions, to bury them, and rarely when idle; and in whose turn first.

Any admitted miner may seal any block, and the most work wins. Miners that share two cores gain nothing from
racing, though: all but one of the drafts and searches are thrown away. So an honest miner gives way for a
moment. The parent's hash puts the miners in an order; the first starts at once, each further one a turn
later, and so a dead or slow miner costs a turn and no more. This is a courtesy, not a rule: a block out of
turn is valid.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from consilia.errors import ChainError, NodeStorageError
from consilia.ledger.embedded.block import Block, Header
from consilia.ledger.embedded.chain import Chain, Draft
from consilia.ledger.embedded.node_key import Credentials
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.search import SearchProcess

BURIAL_BLOCKS = 2  # a transaction gets this many blocks on top without waiting for the next one
MAX_BURIAL_BLOCKS = 64  # and so many where a program of this machine asks for it
BURIAL_LEASE_SECONDS = (
    60.0  # a program that waits asks again within ten; one that has died asks for nothing more
)
TURN_SECONDS = 0.15  # about what draft, search and travel of a small block take on a busy core
TURN_SECONDS_PER_TRANSACTION = (
    0.015  # the leader drafts it, and the next one imports it, before giving way pays
)
BATCH_SECONDS = 0.008  # transactions sent together come within this time
HEARTBEAT_SECONDS = 60.0
MAX_TURN_TRANSACTIONS = 50  # a full pool must not turn one dead miner into a long silence
MAX_GIVE_WAY_SECONDS = 2.0  # nor many dead miners: those last in the order race one another
RETRY_SECONDS = 1.0
DISK_PAUSE_SECONDS = 5.0
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Reason:
    """Why a block is due on a head: transactions wait, or the last ones are not buried yet."""

    head_hash: bytes
    has_transactions: bool
    buries: bool


class Miner:
    """Watches chain and pool in a thread of its own, and hands each block that it seals to `on_mined`."""

    def __init__(
        self, chain: Chain, pool: Pool, credentials: Credentials, on_mined: Callable[[Block], None]
    ) -> None:
        """Mine in the name of the account that `credentials` speak for."""
        self._chain = chain
        self._pool = pool
        self._credentials = credentials
        self._coinbase = credentials.account(chain.rules.network)
        self._on_mined = on_mined
        self._wake = threading.Condition()
        self._news = 0
        self._found: tuple[bytes, bytes] | None = None
        self._stopping = False
        self._reason: _Reason | None = None
        self._reason_since = 0.0
        self._asked_blocks = BURIAL_BLOCKS
        self._asked_until = 0.0
        self._search = SearchProcess(self._take_result)
        self._thread = threading.Thread(target=self._run, name="miner", daemon=True)
        self.mined = 0
        self.stale = 0

    @property
    def search_pid(self) -> int:
        """The process number of the search."""
        return self._search.pid

    @property
    def admitted(self) -> bool:
        """Whether this account may seal the next block."""
        return self._chain.admission.may_mine(self._coinbase, self._chain.head.header)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def poke(self) -> None:
        """Say that the head or the pool has changed."""
        with self._wake:
            self._news += 1
            self._wake.notify_all()

    def bury(self, blocks: int) -> None:
        """Somebody waits until the newest transaction has so many blocks on top; holds for a minute.

        An idle chain stays idle: once the last block with transactions lies that deep there is nothing to bury.
        More than MAX_BURIAL_BLOCKS come with the heartbeats.
        """
        now = time.monotonic()
        if now >= self._asked_until or blocks >= self._asked_blocks:
            news = self._burial_blocks() < min(blocks, MAX_BURIAL_BLOCKS)
            self._asked_blocks = min(max(blocks, BURIAL_BLOCKS), MAX_BURIAL_BLOCKS)
            self._asked_until = now + BURIAL_LEASE_SECONDS
            if news:
                self.poke()

    def _burial_blocks(self) -> int:
        return self._asked_blocks if time.monotonic() < self._asked_until else BURIAL_BLOCKS

    def close(self) -> None:
        """Stop the thread and the search."""
        with self._wake:
            self._stopping = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        self._search.close()

    # The thread

    def _run(self) -> None:
        while not self._stopping:
            seen = self._news
            try:
                # the head moves when the registry's word changes, and that pokes this thread
                seconds = self._seconds_until_due() if self.admitted else HEARTBEAT_SECONDS
                if seconds <= 0:
                    self._mine_one()
                    continue
            except NodeStorageError as error:  # nothing was kept: try again when there may be room
                _LOG.error("cannot mine: %s", error)
                seconds, seen = DISK_PAUSE_SECONDS, self._news
            with self._wake:
                self._wake.wait_for(lambda seen=seen: self._stopping or self._news != seen, seconds)  # type: ignore[misc]

    def _seconds_until_due(self) -> float:
        head = self._chain.head.header
        waiting = len(self._pool.executable())
        reason = _Reason(head.hash, waiting > 0, self._must_bury(head))
        now = time.monotonic()
        if reason != self._reason:
            self._reason, self._reason_since = reason, now
        turn_seconds = TURN_SECONDS + min(waiting, MAX_TURN_TRANSACTIONS) * TURN_SECONDS_PER_TRANSACTION
        turn = min(self._turn(head) * turn_seconds, max(MAX_GIVE_WAY_SECONDS, turn_seconds))
        if reason.has_transactions:
            return self._reason_since + BATCH_SECONDS + turn - now
        if reason.buries:
            return self._reason_since + turn - now
        return head.time_ms / 1000 + HEARTBEAT_SECONDS + turn - self._chain.clock_ms() / 1000

    def _turn(self, head: Header) -> int:
        order = self._chain.admission.miners_at(head)
        if self._coinbase not in order:  # the head has moved on
            return 0
        leader = int.from_bytes(head.hash[:8], "big")
        return (order.index(self._coinbase) - leader) % len(order)

    def _must_bury(self, head: Header) -> bool:
        """Whether one of the newest blocks has transactions, so has too few blocks on top."""
        header: Header | None = head
        for _ in range(self._burial_blocks()):
            if header is None:
                return False
            if not header.is_empty:
                return True
            header = self._chain.file.header(header.parent_hash)
        return False

    def _mine_one(self) -> None:
        draft = self._chain.draft(self._pool.executable(), self._coinbase).signed(self._credentials)
        self._pool.drop(draft.refused)
        header = draft.block.header
        self._found = None
        self._search.start(header.mining_hash, header.difficulty)
        nonce = self._await_nonce(draft)
        if nonce is None:
            self._search.stop()
            self.stale += 1
            return
        try:
            kept = self._chain.append(draft, nonce)
        except ChainError:  # the clock was set back while the search ran: draft again
            kept = None
        if kept is None:
            self.stale += 1
            return
        self.mined += 1
        self._on_mined(kept[0])

    def _await_nonce(self, draft: Draft) -> bytes | None:
        """The nonce, or None as soon as the draft is not worth the search any more."""
        header = draft.block.header
        while True:
            with self._wake:
                seen = self._news
                self._wake.wait_for(
                    lambda seen=seen: self._found or self._stopping or self._news != seen,  # type: ignore[misc]
                    RETRY_SECONDS,
                )
                found = self._found
            if self._stopping or self._chain.head.header.hash != header.parent_hash:
                return None
            if found is not None and found[0] == header.mining_hash:
                return found[1]
            # The search has no memory: giving up an empty block for a full one loses no progress.
            if not draft.block.transactions and self._pool.executable():
                return None
            if found is None and self._news == seen:  # nothing heard for a second: the child may have died
                self._search.start(header.mining_hash, header.difficulty)

    def _take_result(self, mining_hash: bytes, nonce: bytes) -> None:
        with self._wake:
            self._found = (mining_hash, nonce)
            self._wake.notify_all()
