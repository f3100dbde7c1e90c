"""Fetching what is missing from a peer whose chain is heavier: headers first where the chains have parted.

A peer that claims a heavier branch has to show it, by headers with work, before this node executes or stores
any of it. A made-up branch costs whoever made it as much work as the real one since the fork, and costs
this node a hash and some comparisons a header.
"""

from __future__ import annotations

import logging
import threading
import time

from consilia.errors import (
    ChainError,
    LedgerUnreachableError,
    MessageError,
    NodeStorageError,
    PeerRefusedError,
    UnknownParentError,
    UntimelyBlockError,
)
from consilia.ledger.embedded.block import Block, Header
from consilia.ledger.embedded.chain import MAX_REORG_BLOCKS, Chain
from consilia.ledger.embedded.message import Kind
from consilia.ledger.embedded.peer import PeerConnection, Speaker
from consilia.ledger.embedded.reception import MAX_HEADERS, Reception, TakeBlock

LOOK_SECONDS = 5.0
REST_SECONDS = 600.0
MAX_PROOF_HEADERS = 16 * MAX_REORG_BLOCKS
_LOG = logging.getLogger(__name__)


class CatchUp:
    """Asks each configured peer every few seconds, or as soon as a block without a known parent was heard of."""

    def __init__(
        self, chain: Chain, reception: Reception, take_block: TakeBlock, speaker: Speaker, peers: list[str]
    ) -> None:
        self._chain = chain
        self._reception = reception
        self._take_block = take_block
        self._peers = {url: PeerConnection(url, speaker) for url in peers}
        self._rest_until: dict[str, float] = {}
        self.reachable: dict[str, bool] = dict.fromkeys(peers, False)
        self._behind = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="catch-up", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def look_now(self) -> None:
        """Do not wait for the next look: this node seems to be behind."""
        self._behind.set()

    def close(self, timeout_seconds: float) -> None:
        """Stop; waits for the thread to let go of the chain."""
        self._stopping = True
        self._behind.set()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while not self._stopping:
            self._behind.clear()
            for url, peer in self._peers.items():
                if self._stopping:
                    return
                if time.monotonic() >= self._rest_until.get(url, 0.0):
                    self._ask(url, peer)
            self._behind.wait(LOOK_SECONDS)

    def _ask(self, url: str, peer: PeerConnection) -> None:
        self.reachable[url] = True
        try:
            self._follow(peer)
        except LedgerUnreachableError:
            self.reachable[url] = False
        except (PeerRefusedError, NodeStorageError, UnknownParentError, UntimelyBlockError) as error:
            _LOG.warning("cannot catch up from %s: %s", url, error)
        except (ChainError, MessageError) as error:
            self._rest_until[url] = time.monotonic() + REST_SECONDS
            if self._reception.is_member(peer.account):
                self._reception.standing.offend(peer.account, f"its chain breaks a rule: {error}")
            _LOG.warning("%s is not asked for %d s: %s", url, REST_SECONDS, error)

    def _follow(self, peer: PeerConnection) -> None:
        tip = peer.ask(Kind.HEAD)
        if [len(item) for item in tip] != [32, 32]:
            raise MessageError("expected a hash and a score of 32 bytes each from a peer")
        score = int.from_bytes(tip[1], "big")
        if not self._chain.head.gives_way_to(tip[0], score):
            return
        proven = self._prove(peer)
        if proven:
            self._fetch(peer, proven)
        elif self._chain.head.gives_way_to(tip[0], score) and not self._stopping:
            file = self._chain.file
            if file.has_block(tip[0]) and file.score(tip[0]) == score:
                return  # another thread is keeping that very block, and has yet to move the head: nobody lied
            raise ChainError(f"a peer claims a chain of total difficulty {score} and cannot show it")

    def _prove(self, peer: PeerConnection) -> list[Header]:
        """Headers from the fork on until they show more work than the own head; empty if they never do.

        Raises:
            ChainError: a header breaks a rule.
        """
        branch: list[Header] = []
        score = 0
        while len(branch) < MAX_PROOF_HEADERS and not self._stopping:
            locator = (branch[-1].hash,) if branch else tuple(self._chain.locator())
            raws = peer.ask(Kind.HEADERS, locator)
            if len(raws) > MAX_HEADERS:
                raise MessageError(f"expected at most {MAX_HEADERS} headers, got {len(raws)}")
            if raws and branch and Header.decode(raws[0]).parent_hash != branch[-1].hash:
                raise UntimelyBlockError("the peer went over to another branch meanwhile")  # ask again later
            for raw in raws:
                header = Header.decode(raw)
                parent = branch[-1] if branch else self._fork_point(header)
                self._chain.rules.check_work(header, parent, self._chain.clock_ms())
                score = (score if branch else self._chain.file.score(parent.hash)) + header.difficulty
                branch.append(header)
                if self._chain.head.gives_way_to(header.hash, score):
                    return branch
            if not raws:
                break
        return []

    def _fork_point(self, header: Header) -> Header:
        parent = self._chain.file.header(header.parent_hash)
        if parent is None:
            raise UnknownParentError(f"block {header.number}: its parent is not known here")
        if parent.number + MAX_REORG_BLOCKS < self._chain.head.header.number:
            raise UntimelyBlockError(
                f"a peer follows another history since block {header.number}, more than {MAX_REORG_BLOCKS} "
                "blocks ago; whoever is wrong must start from an empty home and resync"
            )
        return parent

    def _fetch(self, peer: PeerConnection, proven: list[Header]) -> None:
        """Fetch and keep the blocks of a proven branch, and all that follow them."""
        expected = {header.hash for header in proven}
        last = proven[0].parent_hash
        while not self._stopping:
            raws = peer.ask(Kind.BLOCKS, (last,))
            for raw in raws:
                block = Block.decode(raw)
                if block.header.parent_hash != last or (expected and block.header.hash not in expected):
                    return  # the peer has changed its mind meanwhile: the next look sees
                self._take_block(block, bool(expected))
                last = block.header.hash
                if last == proven[-1].hash:
                    expected = set()  # the branch is the heavier one now: from here on every block adds to it
            if not raws:
                return
