"""What a party must not forget: task keys, sealed artifacts and facts, on disk before it acts."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilia.values import Address, Digest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS task_keys (
    task_id INTEGER NOT NULL, hospital TEXT NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (task_id, hospital));
CREATE TABLE IF NOT EXISTS artifacts (
    name TEXT PRIMARY KEY, root BLOB NOT NULL, key_hash BLOB NOT NULL, size INTEGER NOT NULL,
    secret BLOB NOT NULL);
"""


@dataclass(frozen=True)
class SealedArtifact:
    """One's own envelope: its names on the ledger, and the secret that rebuilds it."""

    root: Digest
    key_hash: Digest
    size: int
    secret: bytes = field(repr=False)


class State:
    """A party's memory. Every write is on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        path.touch(mode=0o600)  # before SQLite creates it with the umask's rights: it will hold secrets
        self._lock = threading.Lock()
        self._sql = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._sql.execute("PRAGMA journal_mode=WAL")
        self._sql.execute("PRAGMA synchronous=FULL")
        self._sql.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._sql.close()

    def fact(self, name: str) -> str | None:
        """What was remembered under a name."""
        row = self._one("SELECT value FROM facts WHERE name = ?", name)
        return None if row is None else str(row[0])

    def remember(self, name: str, value: str) -> None:
        """Remember a text under a name, in place of what was there."""
        self._write("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)

    def task_keys(self, task_id: int) -> dict[Address, bytes]:
        """The secret halves of a task's temporary keys that this server made, by hospital."""
        with self._lock:
            rows = self._sql.execute(
                "SELECT hospital, secret FROM task_keys WHERE task_id = ?", (task_id,)
            ).fetchall()
        return {hospital: bytes(secret) for hospital, secret in rows}

    def keep_task_keys(self, task_id: int, secrets: dict[Address, bytes]) -> None:
        """Keep new task keys; one that is there already stays, because it may be on the ledger."""
        with self._transaction() as sql:
            sql.executemany(
                "INSERT OR IGNORE INTO task_keys VALUES (?, ?, ?)",
                [(task_id, hospital, secret) for hospital, secret in secrets.items()],
            )

    def artifact(self, name: str) -> SealedArtifact | None:
        """One's own sealed artifact of that name."""
        query = "SELECT root, key_hash, size, secret FROM artifacts WHERE name = ?"
        row = self._one(query, name)
        if row is None:
            return None
        root, key_hash, size, secret = row
        return SealedArtifact(Digest(root), Digest(key_hash), size, secret)

    def keep_artifact(self, name: str, artifact: SealedArtifact) -> None:
        """Keep a sealed artifact's names and secret."""
        self._write(
            "INSERT OR REPLACE INTO artifacts VALUES (?, ?, ?, ?, ?)",
            name,
            bytes(artifact.root),
            bytes(artifact.key_hash),
            artifact.size,
            artifact.secret,
        )

    def _one(self, query: str, *values: object) -> tuple[Any, ...] | None:
        with self._lock:
            row: tuple[Any, ...] | None = self._sql.execute(query, values).fetchone()
        return row

    def _write(self, query: str, *values: object) -> None:
        with self._lock:
            self._sql.execute(query, values)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._sql.execute("BEGIN IMMEDIATE")
            try:
                yield self._sql
            except BaseException:
                self._sql.execute("ROLLBACK")
                raise
            self._sql.execute("COMMIT")
