"""A node among its peers: announce what is new, pass on what was announced here.

A message carries the addresses that its sender tells too, so that a full mesh passes each block once to
each node and a sparse one still reaches everybody. An announcement may be lost: the catch-up finds out
within seconds.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

from consilia.errors import LedgerUnreachableError, PeerRefusedError
from consilia.ledger.embedded.block import MAX_BLOCK_BYTES, Block
from consilia.ledger.embedded.catch_up import CatchUp
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.message import MAX_TOLD, Kind
from consilia.ledger.embedded.node_key import Credentials
from consilia.ledger.embedded.peer import REQUEST_SECONDS, PeerConnection, Speaker
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.reception import Reception, TakeBlock

MAX_WAITING_BLOCKS = 64
MAX_WAITING_TRANSACTIONS = 4096
TRANSACTIONS_PER_MESSAGE = 64
REFUSED_PAUSE_SECONDS = 1.0  # an honest node does not hammer at one that asks for patience
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class _News:
    raw: bytes
    told: tuple[str, ...]


class Outbox:
    """What one peer is still to be told, sent by a thread of its own: a slow peer holds up nobody."""

    def __init__(self, url: str, speaker: Speaker) -> None:
        self.url = url
        self._speaker = speaker
        # Of both the oldest gives way: the catch-up fetches blocks, and a sender sends its transaction again.
        self._blocks: deque[_News] = deque(maxlen=MAX_WAITING_BLOCKS)
        self._transactions: deque[_News] = deque(maxlen=MAX_WAITING_TRANSACTIONS)
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"outbox {url}", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def put_block(self, raw: bytes, told: tuple[str, ...]) -> None:
        """Send a block soon, before any transaction."""
        with self._wake:
            self._blocks.append(_News(raw, told))
            self._wake.notify()

    def put_transaction(self, raw: bytes, told: tuple[str, ...]) -> None:
        """Send a transaction soon, together with others."""
        with self._wake:
            self._transactions.append(_News(raw, told))
            self._wake.notify()

    def close(self) -> None:
        """Stop sending; what is left is dropped."""
        with self._wake:
            self._stopping = True
            self._wake.notify()

    def _run(self) -> None:
        connection = PeerConnection(self.url, self._speaker)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._blocks or self._transactions)
                if self._stopping:
                    connection.close()
                    return
                kind, news = self._next()
            try:
                connection.ask(kind, tuple(item.raw for item in news), news[0].told)
            except LedgerUnreachableError as error:
                _LOG.debug("%s: %s", self.url, error)
            except PeerRefusedError as error:
                _LOG.debug("%s: %s", self.url, error)
                with self._wake:
                    self._wake.wait_for(lambda: self._stopping, REFUSED_PAUSE_SECONDS)

    def _next(self) -> tuple[Kind, list[_News]]:
        if self._blocks:
            return Kind.NEW_BLOCKS, [self._blocks.popleft()]
        news = [self._transactions.popleft()]
        room_bytes = MAX_BLOCK_BYTES - len(news[0].raw)
        while (
            self._transactions
            and len(news) < TRANSACTIONS_PER_MESSAGE
            and self._transactions[0].told == news[0].told
            and (room_bytes := room_bytes - len(self._transactions[0].raw)) > 0
        ):
            news.append(self._transactions.popleft())
        return Kind.NEW_TRANSACTIONS, news


class Gossip:
    """The outboxes, the reception and the catch-up of one node."""

    def __init__(
        self,
        chain: Chain,
        pool: Pool,
        take_block: TakeBlock,
        own_url: str,
        peers: tuple[str, ...],
        credentials: Credentials,
    ) -> None:
        """`take_block` checks and keeps a block; messages are signed with `credentials`."""
        speaker = Speaker(credentials, chain.genesis.digest(), own_url)
        others = [url for url in peers if url != own_url]
        self._own_url = own_url
        self._outboxes = [Outbox(url, speaker) for url in others]
        self.reception = Reception(chain, pool, take_block, speaker)
        self._catch_up = CatchUp(chain, self.reception, take_block, speaker, others)
        self.reception.on_behind = self._catch_up.look_now
        self.reception.on_block = self.tell_block
        self.reception.on_transaction = self.tell_transaction

    def start(self) -> None:
        """Begin to send and to catch up."""
        for outbox in self._outboxes:
            outbox.start()
        self._catch_up.start()

    def close(self) -> None:
        """Stop; waits for the catch-up to let go of the chain."""
        for outbox in self._outboxes:
            outbox.close()
        self._catch_up.close(REQUEST_SECONDS)

    def peers(self) -> dict[str, bool]:
        """The peers, and whether each answered last time."""
        return dict(self._catch_up.reachable)

    def tell_block(self, block: Block, told: tuple[str, ...] = ()) -> None:
        """Pass a block to all peers but those that know it."""
        for outbox, all_told in self._still_to_tell(told):
            outbox.put_block(block.encoded, all_told)

    def tell_transaction(self, raw: bytes, told: tuple[str, ...] = ()) -> None:
        """Pass a transaction to all peers but those that know it."""
        for outbox, all_told in self._still_to_tell(told):
            outbox.put_transaction(raw, all_told)

    def _still_to_tell(self, told: tuple[str, ...]) -> list[tuple[Outbox, tuple[str, ...]]]:
        rest = [box for box in self._outboxes if box.url not in told]
        all_told = (*told, self._own_url, *(box.url for box in rest))[:MAX_TOLD]
        return [(box, all_told) for box in rest]
