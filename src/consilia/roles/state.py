"""What a party must not forget: task keys, sealed artifacts and facts, on disk before it acts."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilia.errors import HomeError
from consilia.ledger.outbox import open_database
from consilia.values import Address, Digest

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS task_keys (
    task_id INTEGER NOT NULL, hospital TEXT NOT NULL, secret BLOB NOT NULL, PRIMARY KEY (task_id, hospital));
CREATE TABLE IF NOT EXISTS artifacts (
    name TEXT PRIMARY KEY, root BLOB NOT NULL, key_hash BLOB NOT NULL, size INTEGER NOT NULL,
    secret BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS consulted (
    image BLOB PRIMARY KEY, patient TEXT NOT NULL, role TEXT NOT NULL, query TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS consulted_marks (mark BLOB PRIMARY KEY, query TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS drafts (name TEXT PRIMARY KEY, rho BLOB NOT NULL, upload BLOB NOT NULL);
"""


@dataclass(frozen=True)
class SealedArtifact:
    """One's own envelope: its names on the ledger, and the secret that rebuilds it."""

    root: Digest
    key_hash: Digest
    size: int
    secret: bytes = field(repr=False)


@dataclass(frozen=True)
class ConsultedImage:
    """An image that was in a diagnosis query: never again in another one, in whatever role."""

    image: Digest
    """SHA-256 of its canonical pixels, so that a renamed copy is known again."""
    patient: str
    role: str
    """`real`, `audit` or `cover`."""
    marks: tuple[Digest, ...] = ()
    """Of its pixels before a model's window and size, and of its identity: another model's view is the same image."""


@dataclass(frozen=True)
class Draft:
    """What an artifact is being sealed with. The same after a crash: so the same bytes, and the upload goes on."""

    rho: bytes = field(repr=False)
    upload: Digest
    """Names the upload in the store; nothing can be told from it."""


class State:
    """A party's memory. Every write is on disk when the call returns."""

    def __init__(self, path: Path) -> None:
        """Open the file, or make it.

        Raises:
            HomeError: it is damaged or no database, or the disk refuses.
        """
        path.touch(mode=0o600)  # before SQLite creates it with the umask's rights: it will hold secrets
        self._lock = threading.Lock()
        # what is deleted is overwritten: rho, and erased secrets
        self._sql = open_database(path, _SCHEMA, "secure_delete=ON")

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

    def remember_once(self, name: str, value: str) -> str:
        """Remember a text unless there is one under this name; what is there now, also from another process."""
        self._write("INSERT OR IGNORE INTO facts VALUES (?, ?)", name, value)
        kept = self.fact(name)
        assert kept is not None
        return kept

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
        return self._artifact("name = ?", name)

    def artifact_of_root(self, root: Digest) -> SealedArtifact | None:
        """One's own sealed artifact of that root."""
        return self._artifact("root = ?", bytes(root))

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

    def artifact_roots(self) -> set[Digest]:
        """The roots of all of one's own sealed artifacts."""
        with self._lock:
            rows = self._sql.execute("SELECT root FROM artifacts").fetchall()
        return {Digest(root) for (root,) in rows}

    def artifact_names(self, root: Digest) -> list[str]:
        """The names under which one's own sealed artifacts of that root are kept."""
        with self._lock:
            rows = self._sql.execute("SELECT name FROM artifacts WHERE root = ?", (bytes(root),)).fetchall()
        return [name for (name,) in rows]

    def erase_artifact(self, root: Digest) -> None:
        """Destroy all that was kept of an artifact: its secret, its draft, and the facts and salts under its name.

        The pages are overwritten, in the file and in the write-ahead log. Copies of the file, and the spare blocks
        of a flash disk, are out of reach.
        """
        with self._transaction() as sql:
            names = sql.execute("SELECT name FROM artifacts WHERE root = ?", (bytes(root),)).fetchall()
            for (name,) in names:
                sql.execute("DELETE FROM drafts WHERE name = ?", (name,))
                sql.execute("DELETE FROM facts WHERE name = ? OR substr(name, -?) = ?",
                            (name, len(name) + 1, f"/{name}"))  # fmt: skip
                sql.execute("DELETE FROM artifacts WHERE name = ?", (name,))
        with self._lock:
            busy, _, _ = self._sql.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if busy:
            raise HomeError(
                "the state is in use, so what was erased may still be in its write-ahead log; stop the party's process "
                "and erase again"
            )

    def consulted(self) -> dict[Digest, tuple[ConsultedImage, str]]:
        """All images that were ever in a query, each with its query."""
        with self._lock:
            rows = self._sql.execute("SELECT image, patient, role, query FROM consulted").fetchall()
        return {
            Digest(image): (ConsultedImage(Digest(image), patient, role), query)
            for image, patient, role, query in rows
        }

    def spent_marks(self) -> set[Digest]:
        """All that images which were ever in a query are known again by."""
        with self._lock:
            rows = self._sql.execute(
                "SELECT image FROM consulted UNION SELECT mark FROM consulted_marks"
            ).fetchall()
        return {Digest(mark) for (mark,) in rows}

    def claim_images(self, query: str, images: Sequence[ConsultedImage]) -> None:
        """Spend images for a query, all or none: on disk when this returns, and so before anybody sees them.

        Raises:
            HomeError: one was in a query before, perhaps of another process a moment ago.
        """
        rows = [(bytes(item.image), item.patient, item.role, query) for item in images]
        marks = [(bytes(mark), query) for item in images for mark in item.marks]
        try:
            with self._transaction() as sql:
                sql.executemany("INSERT INTO consulted VALUES (?, ?, ?, ?)", rows)
                sql.executemany("INSERT INTO consulted_marks VALUES (?, ?)", marks)
        except sqlite3.IntegrityError as error:
            raise HomeError(
                "an image of this query was in another one: what is used twice shows which one is real"
            ) from error

    def draft(self, name: str) -> Draft:
        """What to seal an artifact with: kept from the first call until `forget_draft`."""
        query = "SELECT rho, upload FROM drafts WHERE name = ?"
        with self._transaction() as sql:
            fresh = (name, os.urandom(32), os.urandom(32))
            sql.execute("INSERT OR IGNORE INTO drafts VALUES (?, ?, ?)", fresh)
            rho, upload = sql.execute(query, (name,)).fetchone()
        return Draft(rho, Digest(upload))

    def forget_draft(self, name: str) -> None:
        """The artifact is sealed and in the store."""
        self._write("DELETE FROM drafts WHERE name = ?", name)

    def _artifact(self, where: str, value: object) -> SealedArtifact | None:
        row = self._one(f"SELECT root, key_hash, size, secret FROM artifacts WHERE {where}", value)
        if row is None:
            return None
        root, key_hash, size, secret = row
        return SealedArtifact(Digest(root), Digest(key_hash), size, secret)

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
