"""The audit of a chain file: believe nothing that is stored, recompute it all from the genesis.

What it finds: any changed byte in a block, transaction, receipt, index or state record; a missing block; a
block that breaks a rule or was not executed honestly; a head set back while a heavier block is still
stored. What it cannot know: a block that is gone from the tip without a trace; only another node's copy can
tell.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from eth_hash.auto import keccak

from consilia.errors import (
    ChainError,
    ConsiliaError,
    HomeError,
    NodeStorageError,
    TransactionRefusedError,
)
from consilia.ledger.embedded import views
from consilia.ledger.embedded.admission import Admission
from consilia.ledger.embedded.block import Block, Header, decode_list, encode_list
from consilia.ledger.embedded.chain import Chain, Head, now_ms
from consilia.ledger.embedded.chainfile import BLOCK_COLUMNS, SCORE_BYTES, ChainFile
from consilia.ledger.embedded.evm import (
    Execution,
    Outcome,
    ReadNode,
    decode_receipt,
    list_root,
    total_balance_wei,
)
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.genesis_block import genesis_block
from consilia.ledger.embedded.rpc import ChainMethods
from consilia.ledger.embedded.rules import HeaderRules, check_outcome
from consilia.ledger.embedded.transaction import decode_transaction
from consilia.values import Address, Digest

if TYPE_CHECKING:
    from consilia.ledger.embedded.provider import MethodsProvider

MAX_ANCESTORS = 256
Progress = Callable[[int, int], None]
"""Called with (blocks done, height)."""


@dataclass(frozen=True)
class ReplayReport:
    """What a chain that passed the replay holds; amounts in wei."""

    height: int
    head_hash: Digest
    score: int
    """Total difficulty: the expected work behind the chain."""
    blocks_by_miner: dict[Address, int]
    transactions: int
    gas_used: int
    rewards_wei: dict[Address, int]
    burnt_wei: int
    total_balance_wei: int
    side_blocks: int
    seconds: float


@dataclass(frozen=True)
class _Record:
    """A row of the table of blocks whose bytes agree with one another."""

    block: Block
    receipts: tuple[bytes, ...]
    score: bytes


def replay(chain_file: Path, genesis: Genesis, progress: Progress | None = None) -> ReplayReport:
    """Recompute a chain file from its genesis; the file is opened read-only.

    Raises:
        ChainError: the first thing that is wrong, with the number of its block and transaction.
        HomeError: there is no chain file there.
    """
    file = None
    try:
        file = ChainFile(chain_file, readonly=True)
        return _Replay(file, genesis, progress or (lambda done, height: None)).run()
    except (
        NodeStorageError,
        sqlite3.Error,
        UnicodeDecodeError,
    ) as error:  # the latter from a damaged table definition
        raise ChainError(f"{chain_file}: SQLite finds the file damaged: {error}") from error
    except HomeError as error:
        if chain_file.is_file():
            raise ChainError(f"the chain file is damaged: {error}") from error
        raise
    finally:
        if file is not None:
            file.close()


def open_readonly_provider(chain_file: Path, genesis: Genesis) -> MethodsProvider:
    """A web3.py provider on a chain file without a running node; call its `close()` at the end.

    It trusts the file: replay it first.

    Raises:
        HomeError: there is no chain file there, or it belongs to another genesis.
    """
    from consilia.ledger.embedded.provider import MethodsProvider

    chain = Chain(chain_file, genesis, readonly=True)
    return MethodsProvider(ChainMethods(chain, None).table(), chain.close)


class _Replay:
    def __init__(self, file: ChainFile, genesis: Genesis, progress: Progress) -> None:
        self._file = file
        self._genesis = genesis
        self._progress = progress
        self._nodes: dict[bytes, bytes] = {}  # the state, made anew
        admission = Admission(genesis, lambda key: self._nodes.get(key))
        self._rules = HeaderRules(genesis, admission.may_mine)
        self._hashes: list[bytes] = []  # canonical, by number
        self._score = 0
        self._transactions = 0
        self._gas_used = 0
        self._burnt_wei = 0
        self._miners: Counter[Address] = Counter()

    def run(self) -> ReplayReport:
        started = time.monotonic()
        self._file.check_pages()
        if self._file.meta("genesis") != self._genesis.digest():
            raise ChainError("block 0: the chain file names another genesis than the one given")
        head = self._walk()
        side_blocks = self._check_side_blocks(Head(head, self._score))
        self._check_state_records()
        self._check_locations()
        self._check_pending()
        balance_wei = check_money(self._genesis, head, self._burnt_wei, self._nodes.get)
        reward_wei = self._genesis.block_reward_wei
        return ReplayReport(
            height=head.number,
            head_hash=Digest(head.hash),
            score=self._score,
            blocks_by_miner=dict(self._miners),
            transactions=self._transactions,
            gas_used=self._gas_used,
            rewards_wei={miner: blocks * reward_wei for miner, blocks in self._miners.items()},
            burnt_wei=self._burnt_wei,
            total_balance_wei=balance_wei,
            side_blocks=side_blocks,
            seconds=time.monotonic() - started,
        )

    # The canonical chain, from block 0

    def _walk(self) -> Header:
        rows = list(self._file.rows("canonical", "number, hash", "number"))
        parent: Header | None = None
        for expected, (number, block_hash) in enumerate(rows):
            if number != expected:
                raise ChainError(f"block {expected} is missing from the canonical chain")
            record = self._record(expected, block_hash)
            header = record.block.header
            if parent is None:
                self._start(record)
            else:
                self._follow(record, parent)
            self._score += header.difficulty
            if record.score != self._score.to_bytes(SCORE_BYTES, "big"):
                raise ChainError(f"block {expected}: the stored score is not the sum of difficulties")
            self._hashes.append(header.hash)
            parent = header
            self._progress(expected, len(rows) - 1)
        if parent is None:
            raise ChainError("block 0 is missing from the canonical chain")
        return parent

    def _start(self, record: _Record) -> None:
        block, nodes = genesis_block(self._genesis)
        if record.block.encoded != block.encoded:
            raise ChainError("block 0: the stored block is not the one that the genesis gives")
        self._keep_nodes(0, nodes)

    def _follow(self, record: _Record, parent: Header) -> None:
        header = record.block.header
        self._rules.check_work(header, parent, now_ms())
        self._rules.check_miner(header, parent)
        outcome = self._execute(record.block, parent)
        check_outcome(header, outcome)
        for position, (stored, computed) in enumerate(zip(record.receipts, outcome.receipts, strict=True)):
            if stored != computed:
                raise ChainError(
                    f"block {header.number}, transaction {position}: the stored receipt is false"
                )
        self._keep_nodes(header.number, outcome.nodes)
        self._transactions += len(record.block.transactions)
        self._gas_used += header.gas_used
        self._burnt_wei += header.gas_used * header.base_fee_wei
        self._miners[views.address(header.coinbase)] += 1

    def _execute(self, block: Block, parent: Header) -> Outcome:
        ancestors = reversed(self._hashes[-MAX_ANCESTORS:])
        execution = Execution(self._genesis, block.header, parent.state_root, self._nodes.get, ancestors)
        for position, raw in enumerate(block.transactions):
            try:
                execution.apply(decode_transaction(raw))
            except TransactionRefusedError as error:
                number = block.header.number
                raise ChainError(f"block {number}, transaction {position}: {error}") from error
        return execution.finish()

    def _keep_nodes(self, number: int, nodes: dict[bytes, bytes]) -> None:
        for key, node in nodes.items():
            if self._file.read_node(key) != node:
                raise ChainError(f"block {number}: state record {key.hex()} is missing or false in the file")
        self._nodes |= nodes

    def _record(self, number: int, block_hash: object) -> _Record:
        row = self._file.block_row(block_hash)
        if row is None:
            raise ChainError(
                f"block {number} is missing: the canonical chain names it, no record has its hash"
            )
        return _check_record(number, row)

    # What lies beside the canonical chain

    def _check_side_blocks(self, head: Head) -> int:
        """Check that the blocks off the canonical chain are whole and that none should be its head."""
        canonical = set(self._hashes)
        scores: dict[bytes, int] = {}
        side_blocks = 0
        for row in self._file.rows("blocks", BLOCK_COLUMNS, "number"):
            number = row[1] if isinstance(row[1], int) else -1
            record = _check_record(number, row)
            header = record.block.header
            if number > 0 and header.parent_hash not in scores:
                raise ChainError(f"block {number}: a stored block's parent is missing: a block was removed")
            scores[header.hash] = scores.get(header.parent_hash, 0) + header.difficulty
            if record.score != scores[header.hash].to_bytes(SCORE_BYTES, "big"):
                raise ChainError(f"block {number}: the stored score is not the sum of difficulties")
            if header.hash not in canonical:
                side_blocks += 1
                if head.gives_way_to(header.hash, scores[header.hash]):
                    raise ChainError(
                        f"block {number}: a stored block is better than head {len(self._hashes) - 1}: "
                        "the head was set back, or a block dropped from the canonical chain"
                    )
        return side_blocks

    def _check_state_records(self) -> None:
        for key, node in self._file.rows("state", "hash, node", "hash"):
            if not isinstance(node, bytes) or keccak(node) != key:
                shown = key.hex() if isinstance(key, bytes) else key
                raise ChainError(f"state record {shown} does not hash to its name (any block)")

    def _check_locations(self) -> None:
        expected: dict[bytes, tuple[int, int]] = {}
        for number, block_hash in enumerate(self._hashes):
            stored = self._file.stored(block_hash)
            hashes = stored.block.transaction_hashes if stored else ()
            expected |= {item: (number, position) for position, item in enumerate(hashes)}
        found = {
            row[0]: (row[1], row[2]) for row in self._file.rows("locations", "hash, number, position", "hash")
        }
        for transaction_hash, (number, position) in expected.items():
            if found.pop(transaction_hash, None) != (number, position):
                raise ChainError(
                    f"block {number}, transaction {position}: the index of transactions is false"
                )
        if found:
            raise ChainError(f"the index names {len(found)} transactions that are in no canonical block")

    def _check_pending(self) -> None:
        for transaction_hash, raw in self._file.rows("pending", "hash, raw", "arrival"):
            if not isinstance(raw, bytes) or keccak(raw) != transaction_hash:
                raise ChainError("a waiting transaction does not hash to its name")


def check_money(genesis: Genesis, head: Header, burnt_wei: int, read_node: ReadNode) -> int:
    """Money conserved: what genesis and block rewards made is what accounts hold and fees burnt; the sum held.

    Raises:
        ChainError: the sums differ.
    """
    balance_wei = total_balance_wei(head.state_root, read_node)
    made_wei = sum(genesis.balances_wei.values()) + head.number * genesis.block_reward_wei
    if made_wei != balance_wei + burnt_wei:
        raise ChainError(
            f"block {head.number}: money is not conserved: genesis and rewards made {made_wei} wei, "
            f"accounts hold {balance_wei} wei and {burnt_wei} wei were burnt"
        )
    return balance_wei


def _check_record(number: int, row: tuple[object, ...]) -> _Record:
    """Check that the parts of a stored block agree: names, numbers, roots, counts, canonical bytes."""
    block_hash, stored_number, score, log_count, header_bytes, transactions_bytes, receipts_bytes = row
    parts = (block_hash, score, header_bytes, transactions_bytes, receipts_bytes)
    if not all(isinstance(part, bytes) for part in parts):
        raise ChainError(f"block {number}: a stored field is not of bytes")
    try:
        header = Header.decode(header_bytes)  # type: ignore[arg-type]
        transactions = decode_list(transactions_bytes)  # type: ignore[arg-type]
        receipts = decode_list(receipts_bytes)  # type: ignore[arg-type]
        logs = sum(len(decode_receipt(raw).logs) for raw in receipts)
    except ConsiliaError as error:
        raise ChainError(f"block {number}: a stored record is damaged: {error}") from error
    for what, came, expected in (
        ("hash", header.hash, block_hash),
        ("number", header.number, number),
        ("stored number", stored_number, number),
        ("header bytes", header.encoded, header_bytes),
        ("transaction bytes", encode_list(transactions), transactions_bytes),
        ("transactions root", list_root(transactions), header.transactions_root),
        ("receipt bytes", encode_list(receipts), receipts_bytes),
        ("receipts root", list_root(receipts), header.receipts_root),
        ("number of receipts", len(receipts), len(transactions)),
        ("number of logs", log_count, logs),
    ):
        if came != expected:
            raise ChainError(f"block {number}: the stored {what} is not what the rest of the record says")
    return _Record(Block(header, transactions), receipts, score)  # type: ignore[arg-type]
