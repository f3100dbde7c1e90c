"""Blocks and transactions between nodes: announce what is new, fetch what is missing from a heavier peer.

A message carries the addresses that its sender tells too, so that a full mesh passes each block once to
each node and a sparse one still reaches everybody. An announcement may be lost: the catch-up finds out
within seconds.
"""

from __future__ import annotations

import http.client
import json
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from consilia.errors import ChainError, LedgerUnreachableError, RpcError, TransactionRefusedError
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.parameters import invalid, parse_json, read_data, read_quantity
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.rpc import Method
from consilia.ledger.embedded.views import data, quantity
from consilia.values import Json

MAX_WAITING_BLOCKS = 64
MAX_WAITING_TRANSACTIONS = 4096
TRANSACTIONS_PER_MESSAGE = 64
MAX_BRANCH_BLOCKS = 128
MAX_BRANCH_BYTES = 2 << 20
MAX_REPLY_BYTES = 8 << 20
MAX_LOCATOR = 128
CATCH_UP_SECONDS = 5.0
REQUEST_SECONDS = 10.0
_LOG = logging.getLogger(__name__)


class PeerConnection:
    """One kept-alive HTTP connection to a peer; not for several threads."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=REQUEST_SECONDS)

    def ask(self, method: str, *parameters: Json) -> Json:
        """Call a method of the peer.

        Raises:
            LedgerUnreachableError: the peer does not answer, or not in JSON-RPC.
            RpcError: the peer answers with an error.
        """
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": parameters}
        body = json.dumps(request).encode()
        try:
            reply = parse_json(self._post(body))
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._http.close()
            raise LedgerUnreachableError(f"a peer does not answer {method}: {error}") from error
        if not isinstance(reply, dict) or ("result" not in reply and "error" not in reply):
            raise LedgerUnreachableError(f"a peer answers {method} with something else than JSON-RPC")
        if "result" in reply:
            result: Json = reply["result"]
            return result
        raise RpcError(-32000, f"a peer refuses {method}: {str(reply['error'])[:300]}")

    def _post(self, body: bytes) -> bytes:
        fresh = self._http.sock is None
        try:
            return self._exchange(body)
        except (ConnectionError, http.client.HTTPException):
            self._http.close()
            if fresh:
                raise
            return self._exchange(body)  # the peer had closed the idle connection

    def _exchange(self, body: bytes) -> bytes:
        self._http.request("POST", "/", body, {"Content-Type": "application/json"})
        reply = self._http.getresponse().read(MAX_REPLY_BYTES + 1)
        if len(reply) > MAX_REPLY_BYTES:
            raise http.client.HTTPException(f"expected at most {MAX_REPLY_BYTES} bytes")
        return reply


@dataclass(frozen=True)
class _News:
    raw: bytes
    told: tuple[str, ...]


class Outbox:
    """What one peer is still to be told, sent by a thread of its own: a slow peer holds up nobody."""

    def __init__(self, url: str, own_url: str) -> None:
        self.url = url
        self._own_url = own_url
        self._blocks: deque[_News] = deque(
            maxlen=MAX_WAITING_BLOCKS
        )  # the oldest gives way: catch-up gets it
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
        connection = PeerConnection(self.url)
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._stopping or self._blocks or self._transactions)
                if self._stopping:
                    return
                method, news = self._next()
            told: Json = [*news[0].told]
            raws: Json = [data(item.raw) for item in news]
            try:
                connection.ask(method, raws, self._own_url, told)
            except (LedgerUnreachableError, RpcError) as error:
                _LOG.debug("%s: %s", self.url, error)

    def _next(self) -> tuple[str, list[_News]]:
        if self._blocks:
            return "consilia_announceBlocks", [self._blocks.popleft()]
        news = [self._transactions.popleft()]
        while (
            self._transactions
            and len(news) < TRANSACTIONS_PER_MESSAGE
            and self._transactions[0].told == news[0].told
        ):
            news.append(self._transactions.popleft())
        return "consilia_announceTransactions", news


class Gossip:
    """A node among its peers."""

    def __init__(
        self,
        chain: Chain,
        pool: Pool,
        take_block: Callable[[Block], bool],
        own_url: str,
        peers: tuple[str, ...],
    ) -> None:
        """`take_block` checks and keeps a block, and says whether it was new; it raises ChainError."""
        self._chain = chain
        self._pool = pool
        self._take_block = take_block
        self._own_url = own_url
        self._outboxes = [Outbox(url, own_url) for url in peers if url != own_url]
        self._connections = {
            box.url: PeerConnection(box.url) for box in self._outboxes
        }  # of the catch-up thread
        self._reachable: dict[str, bool] = {}
        self._behind = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="catch-up", daemon=True)

    def start(self) -> None:
        """Begin to send and to catch up."""
        for outbox in self._outboxes:
            outbox.start()
        self._thread.start()

    def close(self) -> None:
        """Stop; waits for the catch-up to let go of the chain."""
        self._stopping = True
        self._behind.set()
        for outbox in self._outboxes:
            outbox.close()
        if self._thread.is_alive():
            self._thread.join(REQUEST_SECONDS)

    def peers(self) -> dict[str, bool]:
        """The peers, and whether each answered last time."""
        return {box.url: self._reachable.get(box.url, False) for box in self._outboxes}

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
        all_told = (*told, self._own_url, *(box.url for box in rest))
        return [(box, all_told) for box in rest]

    # What peers call

    def table(self) -> dict[str, Method]:
        """The methods by name."""
        return {
            "consilia_head": self.head,
            "consilia_blocksAfter": self.blocks_after,
            "consilia_announceBlocks": self.announce_blocks,
            "consilia_announceTransactions": self.announce_transactions,
        }

    def head(self) -> Json:
        head = self._chain.head
        return {
            "number": quantity(head.header.number),
            "hash": data(head.header.hash),
            "score": quantity(head.score),
        }

    def blocks_after(self, locator: Json) -> Json:
        if not isinstance(locator, list) or len(locator) > MAX_LOCATOR:
            raise invalid(f"a list of at most {MAX_LOCATOR} block hashes", locator)
        hashes = [read_data(item, "a block hash", 32) for item in locator]
        blocks = self._chain.blocks_after(hashes, MAX_BRANCH_BLOCKS, MAX_BRANCH_BYTES)
        return [data(block.encoded) for block in blocks]

    def announce_blocks(self, raws: Json, sender: Json, told: Json) -> Json:
        news = 0
        for raw in _read_raws(raws, "blocks"):
            block = Block.decode(raw)
            if not self._chain.file.has_block(block.header.parent_hash):
                self._behind.set()  # the catch-up asks the configured peers, never an address from a message
                return news
            if self._take_block(block):
                news += 1
                self.tell_block(block, _read_told(sender, told))
        return news

    def announce_transactions(self, raws: Json, sender: Json, told: Json) -> Json:
        news = 0
        for raw in _read_raws(raws, "transactions"):
            try:
                _, is_new = self._pool.add(raw)
            except TransactionRefusedError as error:
                _LOG.debug("a peer's transaction is refused: %s", error)
                continue
            if is_new:
                news += 1
                self.tell_transaction(raw, _read_told(sender, told))
        return news

    # The catch-up

    def _run(self) -> None:
        while not self._stopping:
            self._behind.clear()
            for url, connection in self._connections.items():
                if self._stopping:
                    return
                try:
                    self._catch_up(connection)
                    self._reachable[url] = True
                except LedgerUnreachableError:
                    self._reachable[url] = False
                except (RpcError, ChainError) as error:
                    self._reachable[url] = True
                    _LOG.warning("cannot catch up from %s: %s", url, error)
            self._behind.wait(CATCH_UP_SECONDS)

    def _catch_up(self, connection: PeerConnection) -> None:
        theirs = connection.ask("consilia_head")
        if not isinstance(theirs, dict):
            raise invalid("a head object from a peer", theirs)
        score, tip = (
            read_quantity(theirs.get("score"), "a score"),
            read_data(theirs.get("hash"), "a hash", 32),
        )
        if not self._chain.head.gives_way_to(tip, score):
            return
        last: list[bytes] = []
        while not self._stopping:
            locator: Json = [data(item) for item in last + self._chain.locator()]
            raws = _read_raws(connection.ask("consilia_blocksAfter", locator), "blocks")
            for raw in raws:
                block = Block.decode(raw)
                self._take_block(block)
                last = [block.header.hash]
            if not raws:
                return


def _read_raws(value: Json, what: str) -> list[bytes]:
    if not isinstance(value, list) or len(value) > MAX_BRANCH_BLOCKS:
        raise invalid(f"a list of at most {MAX_BRANCH_BLOCKS} {what}", value)
    return [read_data(item, "bytes") for item in value]


def _read_told(sender: Json, told: Json) -> tuple[str, ...]:
    if not isinstance(told, list) or len(told) > MAX_LOCATOR:
        raise invalid("a list of addresses", told)
    return tuple(str(item)[:200] for item in (*told, sender))
