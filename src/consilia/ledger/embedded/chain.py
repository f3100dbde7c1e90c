"""The chain of one node: what a valid block is, which branch counts, and blocks of one's own.

Every stored block was checked and executed here. The branch with the most total difficulty is canonical; of
two equal ones that with the smaller hash, so that nodes agree also on a chain that has gone idle.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from consilia.errors import ChainError, HomeError, TransactionRefusedError, UnknownParentError
from consilia.ledger.embedded.admission import Admission
from consilia.ledger.embedded.block import (
    BLOOM_BYTES,
    EMPTY_TRIE_ROOT,
    EMPTY_UNCLES_HASH,
    MAX_BLOCK_BYTES,
    MAX_TRANSACTIONS_PER_BLOCK,
    Block,
    Header,
)
from consilia.ledger.embedded.chainfile import ChainFile, Extension, StoredBlock
from consilia.ledger.embedded.evm import Execution, Outcome, genesis_state, state_at
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.rules import (
    HeaderRules,
    next_base_fee,
    next_difficulty,
)
from consilia.ledger.embedded.seal import seal_digest
from consilia.ledger.embedded.transaction import Transaction, decode_transaction

MAX_ANCESTORS = 256  # as far back as the BLOCKHASH instruction looks
HEADER_ROOM_BYTES = 2048


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
    """An executed block without its seal, and the transactions that can never run."""

    block: Block
    outcome: Outcome
    refused: tuple[Transaction, ...]


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
        number = 1 + self._last_shared(locator)
        while len(blocks) < max_blocks and (stored := self.block_by_number(number)) is not None:
            size += len(stored.block.encoded)
            if blocks and size > max_bytes:
                break
            blocks.append(stored.block)
            number += 1
        return blocks

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

    def import_block(self, block: Block) -> Progress | None:
        """Check, execute and keep a block from elsewhere; None if it was here already.

        Raises:
            UnknownParentError: its parent is not stored here.
            ChainError: it breaks a rule; nothing was kept.
        """
        if self.file.has_block(block.header.hash):
            return None
        parent = self.file.header(block.header.parent_hash)
        if parent is None:
            raise UnknownParentError(f"block {block.header.number}: its parent is not known here")
        self.rules.check(block.header, parent, self.clock_ms())
        with self._keeping:
            if self.file.has_block(block.header.hash):  # another peer was faster
                return None
            return self._keep(block, self.execute(block, parent))

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
        """An unsealed block on the head with those of the transactions that are valid there, in order."""
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
        """Seal a draft and keep it without executing it again; None if the head has moved on meanwhile."""
        unsealed = draft.block.header
        header = replace(unsealed, nonce=nonce, mix_hash=seal_digest(unsealed.mining_hash, nonce))
        block = Block(header, draft.block.transactions)
        with self._keeping:
            parent = self.head.header
            if header.parent_hash != parent.hash:
                return None
            self.rules.check(header, parent, self.clock_ms())
            return block, self._keep(block, draft.outcome)

    # Inside

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
        numbers = range(first, self.head.header.number + 1)
        abandoned = [stored.block for number in numbers if (stored := self.block_by_number(number))]
        return tuple(reversed(adopted)), tuple(abandoned)

    def _last_shared(self, locator: Sequence[bytes]) -> int:
        for block_hash in locator:
            header = self.file.header(block_hash)
            if header is not None and self.file.canonical_hash(header.number) == block_hash:
                return header.number
        return 0

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
        header = None if block_hash is None else self.file.header(block_hash)
        if header is None:
            raise HomeError(
                f"{self.file.path} has no head: start from an empty home and resync from the peers"
            )
        return Head(header, self.file.score(header.hash))


def genesis_block(genesis: Genesis) -> tuple[Block, dict[bytes, bytes]]:
    """Block 0 and its state nodes."""
    state_root, nodes = genesis_state(genesis)
    header = Header(
        parent_hash=bytes(32),
        uncles_hash=EMPTY_UNCLES_HASH,
        coinbase=bytes(20),
        state_root=state_root,
        transactions_root=EMPTY_TRIE_ROOT,
        receipts_root=EMPTY_TRIE_ROOT,
        bloom=bytes(BLOOM_BYTES),
        difficulty=genesis.min_difficulty,
        number=0,
        gas_limit=genesis.gas_limit,
        gas_used=0,
        timestamp=genesis.timestamp,
        extra_data=(genesis.timestamp * 1000).to_bytes(8, "big"),
        mix_hash=genesis.digest(),  # binds every constant, the first miners and the registry into the chain's identity
        nonce=bytes(8),
        base_fee_wei=genesis.base_fee_wei,
    )
    return Block(header, ()), nodes


def check_outcome(header: Header, outcome: Outcome) -> None:
    """Compare what execution gave with what the header promises.

    Raises:
        ChainError: the first difference.
    """
    for what, promised, computed in (
        ("transactions root", header.transactions_root, outcome.transactions_root),
        ("gas used", header.gas_used, outcome.gas_used),
        ("receipts root", header.receipts_root, outcome.receipts_root),
        ("bloom", header.bloom, outcome.bloom),
        ("state root", header.state_root, outcome.state_root),
    ):
        if promised != computed:
            shown = [item.hex()[:64] if isinstance(item, bytes) else item for item in (computed, promised)]
            raise ChainError(f"block {header.number}: expected {what} {shown[0]}, got {shown[1]}")
