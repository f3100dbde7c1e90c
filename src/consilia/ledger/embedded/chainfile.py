"""One SQLite file per node: blocks, the canonical chain, state nodes, and transactions that still wait.

Every change that belongs together is one SQL transaction, so the file is a valid chain after kill -9 or on a full
disk at any moment. WAL with synchronous=NORMAL: a power cut may lose the last blocks, which the peers still have, but
tears nothing.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import ChainError, HomeError, NodeStorageError
from consilia.ledger.embedded.block import Block, Header, decode_list, encode_list

SCHEMA_VERSION = 1
CACHED_NODES = 8192  # state nodes kept in memory, about 2 MB
SCORE_BYTES = 32
BLOCK_COLUMNS = "hash, number, score, log_count, header, transactions, receipts"
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE blocks(
    hash BLOB PRIMARY KEY, number INTEGER NOT NULL, score BLOB NOT NULL, log_count INTEGER NOT NULL,
    header BLOB NOT NULL, transactions BLOB NOT NULL, receipts BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE canonical(number INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE locations(
    hash BLOB PRIMARY KEY, number INTEGER NOT NULL, position INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE state(hash BLOB PRIMARY KEY, node BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE pending(
    arrival INTEGER PRIMARY KEY, hash BLOB UNIQUE NOT NULL, raw BLOB NOT NULL, arrived_ms INTEGER NOT NULL
);
"""


@dataclass(frozen=True)
class StoredBlock:
    """A block as it lies in the file; `score` is the total difficulty up to and including it."""

    block: Block
    score: int
    log_count: int
    receipts: tuple[bytes, ...]


@dataclass(frozen=True)
class Extension:
    """What keeping one block changes: the block, its state, and which blocks are canonical from now on."""

    stored: StoredBlock
    nodes: dict[bytes, bytes]
    adopted: tuple[Block, ...]
    abandoned: tuple[Block, ...]


@dataclass(frozen=True)
class WaitingTransaction:
    """A transaction that was acknowledged and is in no canonical block yet."""

    raw: bytes
    arrived_ms: int


class ChainFile:
    """The tables behind typed methods. One connection under one lock: readers never see half a block."""

    def __init__(self, path: Path, readonly: bool = False) -> None:
        """Open or make the file.

        Raises:
            HomeError: the file cannot be opened, or is not a chain file of this version.
        """
        self._lock = threading.RLock()
        self._cache: dict[bytes, bytes] = {}
        self.path = path
        self.on_damage: Callable[[], None] = lambda: None  # called when a page turns out to be torn
        try:
            self._sql = _connect(path, readonly)
            if not readonly:
                self._make_tables()
            version = self.meta("schema")
        except (NodeStorageError, sqlite3.Error, UnicodeDecodeError) as error:
            raise HomeError(f"expected a chain file at {path}: {error}") from error
        if version != str(SCHEMA_VERSION).encode():
            raise HomeError(f"{path} has schema {version!r}, this program reads version {SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the file; every later call fails."""
        with self._lock:
            self._sql.close()

    # Small records

    def meta(self, key: str) -> bytes | None:
        """A small named record, such as the digest of the genesis."""
        return self._value("SELECT value FROM meta WHERE key=?", (key,))

    def read_node(self, key: bytes) -> bytes | None:
        """The state node or code with this hash."""
        node = self._cache.get(key)
        if node is None:
            node = self._value("SELECT node FROM state WHERE hash=?", (key,))
            if node is not None:
                self._remember({key: node})
        return node

    # Blocks

    def stored(self, block_hash: bytes) -> StoredBlock | None:
        """The block with this hash, canonical or not."""
        row = self._row(
            "SELECT header, transactions, score, log_count, receipts FROM blocks WHERE hash=?", (block_hash,)
        )
        if row is None:
            return None
        block = Block(Header.decode(_bytes(row[0])), decode_list(_bytes(row[1])))
        score = int.from_bytes(_bytes(row[2]), "big")
        return StoredBlock(block, score, _number(row[3]), decode_list(_bytes(row[4])))

    def has_block(self, block_hash: bytes) -> bool:
        """Whether a block is stored, canonical or not."""
        return self._row("SELECT 1 FROM blocks WHERE hash=?", (block_hash,)) is not None

    def header(self, block_hash: bytes) -> Header | None:
        """The header with this hash, canonical or not."""
        data = self._value("SELECT header FROM blocks WHERE hash=?", (block_hash,))
        return None if data is None else Header.decode(data)

    def score(self, block_hash: bytes) -> int:
        """The total difficulty up to and including a stored block."""
        data = self._value("SELECT score FROM blocks WHERE hash=?", (block_hash,))
        if data is None:
            raise ChainError(f"block {block_hash.hex()} is not stored")
        return int.from_bytes(data, "big")

    def canonical_hash(self, number: int) -> bytes | None:
        """The hash of the canonical block with this number."""
        return self._value("SELECT hash FROM canonical WHERE number=?", (number,))

    def head_hash(self) -> bytes | None:
        """The hash of the canonical block with the greatest number."""
        return self._value("SELECT hash FROM canonical ORDER BY number DESC LIMIT 1", ())

    def hashes_with_logs(self, first: int, last: int) -> list[bytes]:
        """The canonical blocks from `first` to `last` (inclusive) that hold events, in order."""
        with self._access():
            rows = self._sql.execute(
                "SELECT blocks.hash FROM canonical JOIN blocks ON blocks.hash = canonical.hash "
                "WHERE canonical.number BETWEEN ? AND ? AND log_count > 0 ORDER BY canonical.number",
                (first, last),
            )
            return [bytes(row[0]) for row in rows]

    def location(self, transaction_hash: bytes) -> tuple[int, int] | None:
        """Block number and position of a canonical transaction."""
        row = self._row("SELECT number, position FROM locations WHERE hash=?", (transaction_hash,))
        return None if row is None else (_number(row[0]), _number(row[1]))

    def start(self, genesis_block: Block, genesis_digest: bytes, nodes: dict[bytes, bytes]) -> None:
        """Write block 0 into an empty file."""
        stored = StoredBlock(genesis_block, genesis_block.header.difficulty, 0, ())
        with self._transaction():
            self._sql.execute("INSERT INTO meta VALUES('genesis', ?)", (genesis_digest,))
        self.extend(Extension(stored, nodes, (genesis_block,), ()))

    def extend(self, extension: Extension) -> None:
        """Keep one executed block, make its branch canonical where it is heavier, in one SQL transaction."""
        with self._transaction():
            self._sql.executemany("INSERT OR IGNORE INTO state VALUES(?,?)", extension.nodes.items())
            self._insert_block(extension.stored)
            for block in extension.abandoned:
                self._sql.execute("DELETE FROM canonical WHERE number=?", (block.header.number,))
                self._remove_locations(block)
            for block in extension.adopted:
                self._sql.execute(
                    "INSERT INTO canonical VALUES(?,?)", (block.header.number, block.header.hash)
                )
                self._insert_locations(block)
            self._return_to_pending(extension)
        self._remember(extension.nodes)

    # Transactions that wait

    def add_pending(self, transaction_hash: bytes, raw: bytes, arrived_ms: int) -> None:
        """Persist a transaction; when this returns it survives kill -9."""
        with self._transaction():
            self._sql.execute(
                "INSERT OR IGNORE INTO pending(hash, raw, arrived_ms) VALUES(?,?,?)",
                (transaction_hash, raw, arrived_ms),
            )

    def drop_pending(self, hashes: Iterable[bytes]) -> None:
        """Forget transactions that can never enter a block."""
        with self._transaction():
            self._sql.executemany("DELETE FROM pending WHERE hash=?", ((item,) for item in hashes))

    def pending(self) -> list[WaitingTransaction]:
        """The waiting transactions, in the order in which they came."""
        with self._access():
            rows = self._sql.execute("SELECT raw, arrived_ms FROM pending ORDER BY arrival").fetchall()
        return [WaitingTransaction(bytes(raw), arrived_ms) for raw, arrived_ms in rows]

    # For the replay, which trusts no index

    def check_pages(self) -> None:
        """Let SQLite check its own pages.

        Raises:
            ChainError: the file is damaged below the level of records.
        """
        problem = self._row("PRAGMA integrity_check(1)", ())
        if problem is None or problem[0] != "ok":
            raise ChainError(f"{self.path}: SQLite finds the file damaged: {problem and problem[0]}")

    def block_row(self, block_hash: object) -> tuple[object, ...] | None:
        """The row of a block as it is stored, in the order of BLOCK_COLUMNS."""
        return self._row(f"SELECT {BLOCK_COLUMNS} FROM blocks WHERE hash=?", (block_hash,))

    def rows(self, table: str, columns: str, order: str) -> Iterator[tuple[object, ...]]:
        """All rows of one of the tables above."""
        with self._access():
            yield from self._sql.execute(f"SELECT {columns} FROM {table} ORDER BY {order}")

    # Inside

    def _make_tables(self) -> None:
        if self._row("SELECT 1 FROM sqlite_master WHERE name='meta'", ()) is None:
            with self._transaction():
                for statement in _SCHEMA.split(";"):
                    self._sql.execute(statement)
                self._sql.execute("INSERT INTO meta VALUES('schema', ?)", (str(SCHEMA_VERSION).encode(),))

    def _insert_block(self, stored: StoredBlock) -> None:
        header = stored.block.header
        self._sql.execute(
            "INSERT INTO blocks VALUES(?,?,?,?,?,?,?)",
            (
                header.hash,
                header.number,
                stored.score.to_bytes(SCORE_BYTES, "big"),
                stored.log_count,
                header.encoded,
                encode_list(stored.block.transactions),
                encode_list(stored.receipts),
            ),
        )

    def _insert_locations(self, block: Block) -> None:
        rows = (
            (transaction_hash, block.header.number, position)
            for position, transaction_hash in enumerate(block.transaction_hashes)
        )
        self._sql.executemany("INSERT INTO locations VALUES(?,?,?)", rows)

    def _remove_locations(self, block: Block) -> None:
        self._sql.executemany(
            "DELETE FROM locations WHERE hash=?", ((item,) for item in block.transaction_hashes)
        )

    def _return_to_pending(self, extension: Extension) -> None:
        """A re-org must lose nobody's transaction, not even when the node dies right after it."""
        for block in extension.abandoned:
            for transaction_hash, raw in zip(block.transaction_hashes, block.transactions, strict=True):
                self._sql.execute(
                    "INSERT OR IGNORE INTO pending(hash, raw, arrived_ms) VALUES(?,?,?)",
                    (transaction_hash, raw, block.header.time_ms),
                )
        for block in extension.adopted:
            self._sql.executemany(
                "DELETE FROM pending WHERE hash=?", ((item,) for item in block.transaction_hashes)
            )

    def _remember(self, nodes: dict[bytes, bytes]) -> None:
        with self._lock:
            self._cache.update(nodes)
            while len(self._cache) > CACHED_NODES:  # oldest first: a dict keeps the order of insertion
                del self._cache[next(iter(self._cache))]

    def _value(self, sql: str, parameters: Sequence[object]) -> bytes | None:
        row = self._row(sql, parameters)
        return None if row is None else _bytes(row[0])

    def _row(self, sql: str, parameters: Sequence[object]) -> tuple[object, ...] | None:
        with self._access():
            row: tuple[object, ...] | None = self._sql.execute(sql, parameters).fetchone()
        return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._access():
            try:
                self._sql.execute("BEGIN IMMEDIATE")
                yield
                self._sql.execute("COMMIT")
            except BaseException:
                if self._sql.in_transaction:  # on a full disk SQLite has rolled back by itself
                    self._sql.execute("ROLLBACK")
                raise

    @contextmanager
    def _access(self) -> Iterator[None]:
        """The connection for one thread, and SQLite's complaints about disk and file as ours."""
        with self._lock:
            try:
                yield
            except sqlite3.DatabaseError as error:
                code = getattr(error, "sqlite_errorcode", 0) & 0xFF
                if code in _DAMAGED:
                    self.on_damage()
                if code in _DAMAGED | _DISK:
                    raise NodeStorageError(
                        f"the disk does not take or give the chain file {self.path}: {error}; free some space, "
                        "or start the node again if the file is damaged"
                    ) from error
                raise


def _bytes(value: object) -> bytes:
    """A damaged file may hold a number or text where bytes were written."""
    if not isinstance(value, bytes):
        raise ChainError(f"the chain file is damaged: expected bytes, got {value!r}")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int):
        raise ChainError(f"the chain file is damaged: expected a number, got {value!r}")
    return value


def _connect(path: Path, readonly: bool) -> sqlite3.Connection:
    if readonly:
        if not path.is_file():
            raise HomeError(f"expected a chain file at {path}, there is none")
        uri = f"{path.absolute().as_uri()}?mode=ro"
        sql = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        sql.execute("BEGIN")  # one snapshot for as long as the file is open, even while its node goes on
        return sql
    sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    sql.execute("PRAGMA journal_mode=WAL")
    sql.execute("PRAGMA synchronous=NORMAL")
    return sql
