"""The chain of one node: what a valid block is, which branch counts, and blocks of one's own.

Every stored block was checked and executed here. The branch with the most total difficulty is canonical; of
two equal ones that with the smaller hash, so that nodes agree also on a chain that has gone idle. A block on a
lighter branch is not executed before its branch is heavier, or was shown to be by its headers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilia.errors import (
    ChainError,
    HomeError,
    TransactionRefusedError,
    UnknownParentError,
    UntimelyBlockError,
)
from consilia.ledger.embedded.admission import Admission
from consilia.ledger.embedded.block import (
    BLOOM_BYTES,
    EMPTY_TRIE_ROOT,
    EMPTY_UNCLES_HASH,
    MAX_BLOCK_BYTES,
    MAX_TRANSACTIONS_PER_BLOCK,
    MINER_SIGNATURE_BYTES,
    Block,
    Header,
)
from consilia.ledger.embedded.block_signature import sign_header
from consilia.ledger.embedded.chainfile import ChainFile, Extension, StoredBlock
from consilia.ledger.embedded.evm import Execution, Outcome, state_at
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.genesis_block import genesis_block
from consilia.ledger.embedded.node_key import Credentials
from consilia.ledger.embedded.rules import (
    HeaderRules,
    check_outcome,
    next_base_fee,
    next_difficulty,
)
from consilia.ledger.embedded.seal import seal_digest
from consilia.ledger.embedded.side_blocks import SideBlocks
from consilia.ledger.embedded.transaction import Transaction, decode_transaction

MAX_ANCESTORS = 256  # as far back as the BLOCKHASH instruction looks
HEADER_ROOM_BYTES = 2048
MAX_SIDE_DEPTH = 32  # an unproven side block this far below the head is no race that somebody lost just now
MAX_REORG_BLOCKS = (
    1024  # what lies deeper is history: no work, however much, changes it on a node that saw it
)


def now_ms() -> int:
    """The wall clock in Unix milliseconds."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True)
class Head:
    """The canonical block with the greatest number, and the total difficulty up to it."""

    header: Header
    score: int

    def gives_way_to(self, block_hash: bytes, score: int) -> bool:
        """Whether a chain that ends in this other block is to be preferred."""
        return (score, self.header.hash) > (self.score, block_hash)


@dataclass(frozen=True)
class Draft:
    """An executed block without signature and seal, and the transactions that can never run."""

    block: Block
    outcome: Outcome
    refused: tuple[Transaction, ...]

    def signed(self, credentials: Credentials) -> Draft:
        """The same in the name of its miner: what the search for a seal works on."""
        header = sign_header(self.block.header, credentials)
        return replace(self, block=replace(self.block, header=header))


@dataclass(frozen=True)
class Progress:
    """What keeping a block did to the canonical chain; both empty for a block on a lighter branch."""

    adopted: tuple[Block, ...]
    abandoned: tuple[Block, ...]


class Chain:
    """Blocks in one chain file. Safe for threads: executing needs no lock, only keeping a block does."""

    def __init__(
        self,
        path: Path,
        genesis: Genesis,
        clock_ms: Callable[[], int] = now_ms,
        readonly: bool = False,
    ) -> None:
        """Open the chain in the file at `path`; a new file gets block 0.

        Raises:
            HomeError: the file belongs to another genesis.
        """
        self.genesis = genesis
        self.clock_ms = clock_ms
        self.file = ChainFile(path, readonly)
        self.admission = Admission(genesis, self.file.read_node)
        self.rules = HeaderRules(genesis, self.admission.may_mine)
        self.changed = threading.Condition()  # notified when the head moves
        self.on_progress: Callable[[Progress], None] = lambda progress: None  # in the order of the blocks
        self._side = SideBlocks()
        self._keeping = threading.RLock()
        if self.file.head_hash() is None and not readonly:
            block, nodes = genesis_block(genesis)
            self.file.start(block, genesis.digest(), nodes)
        if self.file.meta("genesis") != genesis.digest():
            self.file.close()
            raise HomeError(f"{path} belongs to another genesis: use its own genesis file or an empty home")
        self.head = self._read_head()

    def close(self) -> None:
        """Close the chain file, after the block being kept is kept."""
        with self._keeping:
            self.file.close()

    # Looking up

    def header_by_number(self, number: int) -> Header | None:
        """The canonical header with this number."""
        block_hash = self.file.canonical_hash(number)
        return None if block_hash is None else self.file.header(block_hash)

    def block_by_number(self, number: int) -> StoredBlock | None:
        """The canonical block with this number."""
        block_hash = self.file.canonical_hash(number)
        return None if block_hash is None else self.file.stored(block_hash)

    def state(self, header: Header) -> Any:
        """py-evm's state after a stored block, for look-ups."""
        return state_at(self.genesis, header, self.file.read_node)

    def next_header(self, parent: Header, coinbase: bytes = bytes(20)) -> Header:
        """The frame of a child of `parent` made now: all that is known before anything executes."""
        time_ms = max(self.clock_ms(), parent.time_ms + 1)
        return Header(
            parent_hash=parent.hash,
            uncles_hash=EMPTY_UNCLES_HASH,
            coinbase=coinbase,
            state_root=parent.state_root,
            transactions_root=EMPTY_TRIE_ROOT,
            receipts_root=EMPTY_TRIE_ROOT,
            bloom=bytes(BLOOM_BYTES),
            difficulty=next_difficulty(self.genesis, parent, time_ms),
            number=parent.number + 1,
            gas_limit=self.genesis.gas_limit,
            gas_used=0,
            timestamp=time_ms // 1000,
            extra_data=time_ms.to_bytes(8, "big"),
            mix_hash=bytes(32),
            nonce=bytes(8),
            base_fee_wei=next_base_fee(parent),
            miner_signature=bytes(MINER_SIGNATURE_BYTES),
        )

    def wait_for_block(self, after_number: int, timeout_seconds: float) -> int:
        """Wait for a head with a number above `after_number`, or until the time is up; the head's number."""
        with self.changed:
            self.changed.wait_for(lambda: self.head.header.number > after_number, timeout_seconds)
        return self.head.header.number

    def blocks_after(self, locator: Sequence[bytes], max_blocks: int, max_bytes: int) -> list[Block]:
        """The canonical blocks that follow the first hash of `locator` that is canonical here."""
        blocks: list[Block] = []
        size = 0
        number = 1 + self.last_shared(locator)
        while len(blocks) < max_blocks and (stored := self.block_by_number(number)) is not None:
            size += len(stored.block.encoded)
            if blocks and size > max_bytes:
                break
            blocks.append(stored.block)
            number += 1
        return blocks

    def headers_after(self, locator: Sequence[bytes], max_headers: int) -> list[Header]:
        """The canonical headers that follow the first hash of `locator` that is canonical here."""
        headers: list[Header] = []
        number = 1 + self.last_shared(locator)
        while len(headers) < max_headers and (header := self.header_by_number(number)) is not None:
            if headers and header.parent_hash != headers[-1].hash:
                break  # a re-org came between the look-ups
            headers.append(header)
            number += 1
        return headers

    def last_shared(self, locator: Sequence[bytes]) -> int:
        """The number of the first block of `locator` that is canonical here; 0 if none is."""
        for block_hash in locator:
            header = self.file.header(block_hash)
            if header is not None and self.file.canonical_hash(header.number) == block_hash:
                return header.number
        return 0

    def locator(self) -> list[bytes]:
        """Canonical hashes, dense near the head and ever sparser towards block 0 (as Bitcoin's getblocks)."""
        hashes, number, step = [], self.head.header.number, 1
        while number > 0:
            hashes.append(self.file.canonical_hash(number))
            step = step * 2 if len(hashes) >= 10 else 1
            number -= step
        hashes.append(self.file.canonical_hash(0))
        return [item for item in hashes if item is not None]

    # Keeping blocks

    def import_block(self, block: Block, is_proven: bool = False) -> Progress | None:
        """Check, execute and keep a block from elsewhere; None if it was here already.

        A block on a lighter branch waits unexecuted, unless `is_proven`: its branch's headers show more work
        than the head's.

        Raises:
            UnknownParentError: its parent is not known here.
            UntimelyBlockError: it comes from the future, or is a side block far below the head.
            ChainError: it breaks a rule; nothing was kept of it.
        """
        header = block.header
        parent = self._known_header(header.parent_hash)
        if self.file.has_block(header.hash) or (self._side.get(header.hash) and not is_proven):
            return None
        if parent is None:
            raise UnknownParentError(f"block {header.number}: its parent is not known here")
        self.rules.check_work(header, parent, self.clock_ms())
        with self._keeping:
            if self.file.has_block(header.hash):  # another peer was faster
                return None
            score = self._parent_score(header) + header.difficulty
            if is_proven or self.head.gives_way_to(header.hash, score):
                return self._keep_branch(block)
            self._set_aside(block, score)
            return Progress((), ())

    def execute(self, block: Block, parent: Header) -> Outcome:
        """Run a block's transactions on its parent's state and compare with what its header promises.

        Raises:
            ChainError: a transaction is not valid there, or a root, the bloom or the gas differs.
        """
        header = block.header
        execution = Execution(
            self.genesis, header, parent.state_root, self.file.read_node, self._ancestors(parent)
        )
        for position, raw in enumerate(block.transactions):
            try:
                execution.apply(decode_transaction(raw))
            except TransactionRefusedError as error:
                raise ChainError(f"block {header.number}, transaction {position}: {error}") from error
        outcome = execution.finish()
        check_outcome(header, outcome)
        return outcome

    def draft(self, transactions: Sequence[Transaction], coinbase: bytes) -> Draft:
        """A block on the head with those of the transactions that are valid there, neither signed nor sealed."""
        parent = self.head.header
        frame = self.next_header(parent, coinbase)
        execution = Execution(
            self.genesis, frame, parent.state_root, self.file.read_node, self._ancestors(parent)
        )
        taken: list[bytes] = []
        refused: list[Transaction] = []
        room_bytes = MAX_BLOCK_BYTES - HEADER_ROOM_BYTES
        for transaction in transactions[:MAX_TRANSACTIONS_PER_BLOCK]:
            size = len(transaction.raw) + 4
            if size > room_bytes or not execution.fits_next(transaction):
                continue  # it stays in the pool for a later block
            try:
                execution.apply(transaction)
            except TransactionRefusedError:
                refused.append(transaction)
            else:
                taken.append(transaction.raw)
                room_bytes -= size
        outcome = execution.finish()
        header = replace(
            frame,
            state_root=outcome.state_root,
            transactions_root=outcome.transactions_root,
            receipts_root=outcome.receipts_root,
            bloom=outcome.bloom,
            gas_used=outcome.gas_used,
        )
        return Draft(Block(header, tuple(taken)), outcome, tuple(refused))

    def append(self, draft: Draft, nonce: bytes) -> tuple[Block, Progress] | None:
        """Seal a signed draft and keep it without executing it again; None if the head has moved on meanwhile."""
        unsealed = draft.block.header
        header = replace(unsealed, nonce=nonce, mix_hash=seal_digest(unsealed.mining_hash, nonce))
        block = Block(header, draft.block.transactions)
        with self._keeping:
            parent = self.head.header
            if header.parent_hash != parent.hash:
                return None
            self.rules.check_work(header, parent, self.clock_ms())
            self.rules.check_miner(header, parent)
            return block, self._keep(block, draft.outcome)

    # Inside

    def _known_header(self, block_hash: bytes) -> Header | None:
        side = self._side.get(block_hash)
        return self.file.header(block_hash) if side is None else side.block.header

    def _parent_score(self, header: Header) -> int:
        side = self._side.get(header.parent_hash)
        if side is None and not self.file.has_block(header.parent_hash):  # it had to give way meanwhile
            raise UnknownParentError(f"block {header.number}: its parent is not known here any more")
        return self.file.score(header.parent_hash) if side is None else side.score

    def _set_aside(self, block: Block, score: int) -> None:
        header = block.header
        if header.number + MAX_SIDE_DEPTH <= self.head.header.number:
            raise UntimelyBlockError(
                f"block {header.number}: expected a branch that starts at most {MAX_SIDE_DEPTH} blocks below "
                f"the head {self.head.header.number}, or headers that show more work"
            )
        parent = self.file.header(header.parent_hash)
        if parent is not None:
            self.rules.check_miner(header, parent)
        self._side.add(block, score)

    def _keep_branch(self, block: Block) -> Progress:
        """Execute and keep a block after those of its ancestors that were set aside."""
        progress = Progress((), ())
        for item in self._side.branch_to(block):
            self._side.drop(item.header.hash)
            parent = self.file.header(item.header.parent_hash)
            if parent is None:
                raise UnknownParentError(f"block {item.header.number}: its parent is not known here")
            self.rules.check_miner(item.header, parent)
            progress = self._keep(item, self.execute(item, parent))
        return progress

    def _keep(self, block: Block, outcome: Outcome) -> Progress:
        header = block.header
        score = self.file.score(header.parent_hash) + header.difficulty
        stored = StoredBlock(block, score, outcome.log_count, outcome.receipts)
        is_better = self.head.gives_way_to(header.hash, score)
        adopted, abandoned = self._switch(block) if is_better else ((), ())
        self.file.extend(Extension(stored, outcome.nodes, adopted, abandoned))
        if adopted:
            with self.changed:
                self.head = Head(header, score)
                self.changed.notify_all()
        progress = Progress(adopted, abandoned)
        self.on_progress(progress)
        return progress

    def _switch(self, block: Block) -> tuple[tuple[Block, ...], tuple[Block, ...]]:
        """The blocks that become canonical with `block` as head, and those that cease to be, lowest first."""
        adopted = [block]
        while (parent_hash := adopted[-1].header.parent_hash) != self.file.canonical_hash(
            adopted[-1].header.number - 1
        ):
            adopted.append(self._stored(parent_hash).block)
        first = adopted[-1].header.number
        if self.head.header.number - first >= MAX_REORG_BLOCKS:
            raise UntimelyBlockError(
                f"block {block.header.number}: its branch leaves this chain at block {first}, more than "
                f"{MAX_REORG_BLOCKS} blocks ago; if it is the right one, start from an empty home and resync"
            )
        numbers = range(first, self.head.header.number + 1)
        abandoned = [stored.block for number in numbers if (stored := self.block_by_number(number))]
        return tuple(reversed(adopted)), tuple(abandoned)

    def _ancestors(self, parent: Header) -> Iterator[bytes]:
        header: Header | None = parent
        for _ in range(MAX_ANCESTORS):
            if header is None:
                return
            yield header.hash
            header = self.file.header(header.parent_hash)

    def _stored(self, block_hash: bytes) -> StoredBlock:
        stored = self.file.stored(block_hash)
        if stored is None:
            raise ChainError(f"block {block_hash.hex()} is missing from {self.file.path}")
        return stored

    def _read_head(self) -> Head:
        block_hash = self.file.head_hash()
        if block_hash is None:
            raise HomeError(
                f"{self.file.path} has no head: start from an empty home and resync from the peers"
            )
        header = self.file.header(block_hash)
        if header is None:
            raise ChainError(f"{self.file.path} is damaged: its head {block_hash.hex()} is missing")
        return Head(header, self.file.score(header.hash))
