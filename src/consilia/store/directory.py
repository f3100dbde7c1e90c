"""A store in a directory, which several processes may share, through obstore's local file system.

An object is written under `incoming/` and gets its name only when it is whole and has its root, by a rename
that fails where the name is taken: no crash, full disk or second writer leaves half an object. Its bytes go in and
out as those of a file: that took half of the time of passing them through obstore (docs/benchmarks.md).
"""

from __future__ import annotations

import io
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore

from consilia.errors import ObjectMissingError, StoreError, StoreUnreachableError
from consilia.store import StoredObject
from consilia.store.verified import checked_blocks, fetch_object
from consilia.values import Digest

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_ABANDONED_SECONDS = 24 * 3600
_FOLDER_NAME = re.compile("[0-9a-f]{2}")
_OBJECT_NAME = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})")


class DirectoryStore:
    """An `ArtifactStore` in a directory, made if it is missing."""

    def __init__(self, path: Path) -> None:
        """Open the store and sweep out what crashed writers left in it more than a day ago.

        Raises:
            StoreUnreachableError: the directory can be neither found nor made.
        """
        self._path = path
        self._incoming = path / "incoming"
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            self._objects = LocalStore(path)
            self._sweep()
        except (OSError, BaseError, StoreError) as error:
            raise StoreUnreachableError(f"the store {path} cannot be used: {_first_line(error)}") from error

    def put(self, root: Digest, source: Path) -> None:
        """See `ArtifactStore.put`. Proof against a dying process; after a power cut, `get` tells."""
        if self.has(root):
            return
        try:
            with source.open("rb") as file, self.writer() as incoming:
                for block in checked_blocks(file, root):
                    incoming.stream.write(block)
                incoming.commit(root)
        except OSError as error:
            raise StoreError(
                f"{source} cannot be put into the store {self._path}: {_first_line(error)}"
            ) from error

    @contextmanager
    def writer(self, upload: Digest | None = None) -> Iterator[StagedFile]:
        """See `ArtifactStore.writer`. An OSError while writing is the caller's to name."""
        staged = self._incoming / secrets.token_hex(16)
        try:
            with staged.open("xb") as stream:
                yield StagedFile(self._objects, stream, f"{self._incoming.name}/{staged.name}")
        finally:
            staged.unlink(missing_ok=True)

    def get(self, root: Digest, target: Path) -> None:
        """See `ArtifactStore.get`."""
        fetch_object(self, root, target)

    @contextmanager
    def reader(self, root: Digest) -> Iterator[BinaryIO]:
        """See `ArtifactStore.reader`."""
        with self._errors(root):
            stream = _ObjectReader(self._path / _object_name(root), root)
        with stream:
            yield stream

    def has(self, root: Digest) -> bool:
        """See `ArtifactStore.has`."""
        try:
            with self._errors(root):
                obstore.head(self._objects, _object_name(root))
        except ObjectMissingError:
            return False
        return True

    def delete(self, root: Digest) -> None:
        """See `ArtifactStore.delete`."""
        with suppress(ObjectMissingError), self._errors(root):
            obstore.delete(self._objects, _object_name(root))

    def objects(self) -> Iterator[StoredObject]:
        """See `ArtifactStore.objects`. What is not named like an object is passed over, and not looked into."""
        for folder in self._entries(self._path):
            if _FOLDER_NAME.fullmatch(folder.name):
                for entry in self._entries(folder):
                    if _OBJECT_NAME.fullmatch(f"{folder.name}/{entry.name}"):
                        yield from self._stored(entry)

    def roots(self) -> Iterator[Digest]:
        """See `ArtifactStore.roots`."""
        return (found.root for found in self.objects())

    def abandoned(self, older_than_seconds: float) -> list[str]:
        """See `ArtifactStore.abandoned`."""
        oldest = time.time() - older_than_seconds
        found = []
        for staged in self._entries(self._incoming):
            with self._failures(f"upload {staged.name}"), suppress(FileNotFoundError):  # it has just finished
                status = staged.lstat()
                if stat.S_ISREG(status.st_mode) and status.st_mtime < oldest:  # a folder is none of ours
                    found.append(staged.name)
        return found

    def discard(self, abandoned: str) -> None:
        """See `ArtifactStore.discard`."""
        with self._failures(f"upload {abandoned}"):
            (self._incoming / abandoned).unlink(missing_ok=True)

    def _sweep(self) -> None:
        for name in self.abandoned(_ABANDONED_SECONDS):
            with suppress(StoreError):  # somebody else's, in a folder that many share; it only takes room
                self.discard(name)

    def _entries(self, folder: Path) -> list[Path]:
        with self._failures(f"its folder {folder.name}"), suppress(FileNotFoundError, NotADirectoryError):
            return sorted(folder.iterdir())
        return []

    def _stored(self, entry: Path) -> Iterator[StoredObject]:
        with self._failures(f"object {entry.name}"), suppress(FileNotFoundError):  # deleted meanwhile
            status = entry.stat()
            if stat.S_ISREG(status.st_mode):
                yield StoredObject(Digest.from_hex(entry.name), status.st_mtime)

    @contextmanager
    def _errors(self, root: Digest) -> Iterator[None]:
        with self._failures(f"object {root}"):
            try:
                yield
            except FileNotFoundError as error:
                raise ObjectMissingError(f"the store {self._path} has no object {root}") from error

    @contextmanager
    def _failures(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, BaseError) as error:
            raise StoreError(f"the store {self._path} failed on {what}: {_first_line(error)}") from error


class StagedFile:
    """An envelope under `incoming/`."""

    def __init__(self, objects: LocalStore, stream: BinaryIO, name: str) -> None:
        self.stream = stream
        self._objects = objects
        self._name = name

    def commit(self, root: Digest) -> None:
        """See `Incoming.commit`."""
        self.stream.flush()
        with suppress(AlreadyExistsError):  # another writer was faster, with the same bytes
            obstore.rename(self._objects, self._name, _object_name(root), overwrite=False)


class _ObjectReader(io.FileIO):
    """Reads an object as its file does; what the disk fails on, the store does."""

    def __init__(self, path: Path, root: Digest) -> None:
        super().__init__(path)
        self._root = root

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(-1 if size is None else size) or b""
        except OSError as error:
            raise self._unreadable(error) from error

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        try:
            return super().readinto(buffer) or 0
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> StoreError:
        return StoreError(f"object {self._root} cannot be read: {_first_line(error)}")


def _object_name(root: Digest) -> str:
    return f"{root.hex()[:2]}/{root.hex()}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
