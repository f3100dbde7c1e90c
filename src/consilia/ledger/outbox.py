"""The outbox: every transaction is signed and on disk, under a key that its caller chose, before it is sent.

What a node has taken is never forgotten: a re-org can take any block back, and then the account's later transactions
wait for the nonce of each earlier one, also of one that a contract had refused.

A process that dies between deciding and knowing what came of it asks again under the same key and gets the
same signed bytes. Two transactions for one decision cannot exist: the key is unique, and so is the nonce.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import HomeError
from consilia.values import Address, Digest

SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
    chain_id INTEGER NOT NULL,
    sender TEXT NOT NULL,
    key TEXT NOT NULL,
    nonce INTEGER NOT NULL,
    call_digest BLOB NOT NULL,
    transaction_hash BLOB NOT NULL,
    raw BLOB NOT NULL,
    PRIMARY KEY (chain_id, sender, key),
    UNIQUE (chain_id, sender, nonce)
) STRICT
"""
COLUMNS = "key, nonce, call_digest, transaction_hash, raw"


@dataclass(frozen=True)
class Signed:
    """The bytes of a signed transaction, and their keccak-256."""

    raw: bytes
    transaction_hash: Digest


@dataclass(frozen=True)
class OutboxEntry:
    """One kept transaction; `call_digest` names what it does (receiver, value, data)."""

    key: str
    nonce: int
    call_digest: Digest
    signed: Signed


def open_database(path: Path, schema: str, *pragmas: str, timeout: float = 5.0) -> sqlite3.Connection:
    """Open a database of a home, or make it: what is committed is on disk, power cuts included.

    Args:
        timeout: seconds to wait for another process that writes.

    Raises:
        HomeError: it is damaged or no database, or the disk refuses.
    """
    database = None
    try:
        database = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=timeout)
        for pragma in ("journal_mode=WAL", "synchronous=FULL", *pragmas):
            database.execute(f"PRAGMA {pragma}")
        database.executescript(schema)
    except sqlite3.Error as error:
        if database is not None:
            database.close()
        if isinstance(error, sqlite3.OperationalError):
            advice = "see that it is a file which may be written, and that the disk has room"
        else:
            advice = (
                "put the home's keys and databases aside and restore them from a backup (`consilia keys restore`); "
                "what is lost without one is in docs/keys.md"
            )
        raise HomeError(
            f"expected a database of this home in {path.name}, it cannot be opened: {error}; {advice}"
        ) from error
    return database


class Outbox:
    """The kept transactions of one home directory. Safe between threads and between processes."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            HomeError: it is damaged or no database, or the disk refuses.
        """
        self._lock = threading.RLock()
        self._database = open_database(path, SCHEMA, timeout=30)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._database.close()

    def find(self, chain_id: int, sender: Address, key: str) -> OutboxEntry | None:
        """The transaction kept under a key."""
        where = "chain_id = ? AND sender = ? AND key = ?"
        return next(iter(self._select(where, (chain_id, sender, key))), None)

    def from_nonce(self, chain_id: int, sender: Address, nonce: int) -> list[OutboxEntry]:
        """The transactions with this nonce or a later one, in their order."""
        return self._select(
            "chain_id = ? AND sender = ? AND nonce >= ? ORDER BY nonce", (chain_id, sender, nonce)
        )

    def next_nonce(self, chain_id: int, sender: Address, chain_nonce: int) -> int:
        """The first free nonce; the chain has not seen `chain_nonce`. A gap would hold up all later ones."""
        with self._lock:
            rows = self._database.execute(
                "SELECT nonce FROM outbox WHERE chain_id = ? AND sender = ? AND nonce >= ?",
                (chain_id, sender, chain_nonce),
            ).fetchall()
        taken = {row[0] for row in rows}
        while chain_nonce in taken:
            chain_nonce += 1
        return chain_nonce

    def add(
        self,
        chain_id: int,
        sender: Address,
        key: str,
        call_digest: Digest,
        chain_nonce: int,
        sign: Callable[[int], Signed],
    ) -> tuple[OutboxEntry, bool]:
        """Keep a new transaction, signed with the next nonce; or give the one that is kept under this key.

        Returns:
            The kept transaction, and whether it is new.
        """
        with self._exclusive():
            if (kept := self.find(chain_id, sender, key)) is not None:
                return kept, False
            nonce = self.next_nonce(chain_id, sender, chain_nonce)
            entry = OutboxEntry(key, nonce, call_digest, sign(nonce))
            self._database.execute(
                f"INSERT INTO outbox (chain_id, sender, {COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (chain_id, sender, key, nonce, call_digest, entry.signed.transaction_hash, entry.signed.raw),
            )
            return entry, True

    def retire(self, chain_id: int, sender: Address, key: str) -> None:
        """Free the key of a transaction that a contract refused. Its bytes stay: they fill their nonce."""
        with self._exclusive():
            self._database.execute(
                "UPDATE outbox SET key = key || ' refused at nonce ' || nonce "
                "WHERE chain_id = ? AND sender = ? AND key = ?",
                (chain_id, sender, key),
            )

    def discard(self, chain_id: int, sender: Address, key: str) -> None:
        """Forget a transaction that no node has taken, or whose nonce another one used; its key is free again."""
        with self._exclusive():
            self._database.execute(
                "DELETE FROM outbox WHERE chain_id = ? AND sender = ? AND key = ?", (chain_id, sender, key)
            )

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._database.execute("ROLLBACK")
                raise
            self._database.execute("COMMIT")

    def _select(self, where: str, values: tuple[object, ...]) -> list[OutboxEntry]:
        with self._lock:
            rows = self._database.execute(f"SELECT {COLUMNS} FROM outbox WHERE {where}", values).fetchall()
        return [
            OutboxEntry(key, nonce, Digest(call_digest), Signed(raw, Digest(transaction_hash)))
            for key, nonce, call_digest, transaction_hash, raw in rows
        ]
