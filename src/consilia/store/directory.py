"""A store in a directory, which several processes may share.

An object is written under `incoming/` and gets its name only when it is whole and has its root, by a hard
link that fails where the name is taken: no crash, full disk or second writer leaves half an object.
"""

from __future__ import annotations

import io
import os
import re
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from consilia.artifact import RootHasher
from consilia.errors import (
    EnvelopeError,
    ObjectDamagedError,
    ObjectMissingError,
    StoreError,
    StoreUnreachableError,
)
from consilia.values import Digest

_BLOCK_BYTES = 1 << 20
_ABANDONED_SECONDS = 24 * 3600
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
            self._sweep()
        except OSError as error:
            raise StoreUnreachableError(f"the store {path} cannot be used: {_first_line(error)}") from error

    def put(self, root: Digest, source: Path) -> None:
        """See `ArtifactStore.put`. Proof against a dying process; after a power cut, `get` tells."""
        if self.has(root):
            return
        try:
            with source.open("rb") as file, self.writer() as incoming:
                for block in _checked_blocks(file, root):
                    incoming.stream.write(block)
                incoming.commit(root)
        except OSError as error:
            raise StoreError(
                f"{source} cannot be put into the store {self._path}: {_first_line(error)}"
            ) from error

    @contextmanager
    def writer(self) -> Iterator[StagedFile]:
        """See `ArtifactStore.writer`. An OSError while writing is the caller's to name."""
        staged = self._incoming / secrets.token_hex(16)
        try:
            with staged.open("xb") as stream:
                yield StagedFile(stream, staged, self._object)
        finally:
            staged.unlink(missing_ok=True)

    def get(self, root: Digest, target: Path) -> None:
        """See `ArtifactStore.get`."""
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with self.reader(root) as source, temporary.open("xb") as file:
                for block in _checked_blocks(source, root):
                    file.write(block)
            temporary.replace(target)
        except OSError as error:
            raise StoreError(f"object {root} cannot be copied to {target}: {_first_line(error)}") from error
        finally:
            temporary.unlink(missing_ok=True)

    @contextmanager
    def reader(self, root: Digest) -> Iterator[BinaryIO]:
        """See `ArtifactStore.reader`."""
        with self._errors(root):
            stream = _ObjectReader(self._object(root), root)
        with stream:
            yield stream

    def has(self, root: Digest) -> bool:
        """See `ArtifactStore.has`."""
        return self._object(root).is_file()

    def delete(self, root: Digest) -> None:
        """See `ArtifactStore.delete`."""
        with self._errors(root):
            self._object(root).unlink(missing_ok=True)

    def roots(self) -> Iterator[Digest]:
        """See `ArtifactStore.roots`. Files that are not named like an object are passed over."""
        for path in self._path.glob("??/*"):
            if named := _OBJECT_NAME.fullmatch(f"{path.parent.name}/{path.name}"):
                yield Digest.from_hex(named[2])

    def _object(self, root: Digest) -> Path:
        return self._path / root.hex()[:2] / root.hex()

    def _sweep(self) -> None:
        oldest = time.time() - _ABANDONED_SECONDS
        for staged in self._incoming.iterdir():
            try:
                if staged.stat().st_mtime < oldest:
                    staged.unlink()
            except FileNotFoundError:
                continue  # its writer has just finished

    @contextmanager
    def _errors(self, root: Digest) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissingError(f"the store {self._path} has no object {root}") from error
        except OSError as error:
            raise StoreError(
                f"the store {self._path} failed on object {root}: {_first_line(error)}"
            ) from error


class StagedFile:
    """An envelope under `incoming/`."""

    def __init__(self, stream: BinaryIO, path: Path, name_of: Callable[[Digest], Path]) -> None:
        self.stream = stream
        self._path = path
        self._name_of = name_of

    def commit(self, root: Digest) -> None:
        """See `Incoming.commit`."""
        self.stream.flush()
        name = self._name_of(root)
        name.parent.mkdir(exist_ok=True)
        with suppress(FileExistsError):  # another writer was faster, with the same bytes
            os.link(self._path, name)


class _ObjectReader(io.FileIO):
    """Reads an object as its file does; what the disk fails on, the store does."""

    def __init__(self, path: Path, root: Digest) -> None:
        super().__init__(path)
        self._root = root

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return super().read(-1 if size is None else size) or b""
        except OSError as error:
            raise StoreError(f"object {self._root} cannot be read: {_first_line(error)}") from error


def _checked_blocks(source: BinaryIO, root: Digest) -> Iterator[bytes]:
    """Pass on the bytes of an envelope, and fail at the end, or before, unless they have this root."""
    hasher = RootHasher()
    try:
        while block := source.read(_BLOCK_BYTES):
            hasher.update(block)
            yield block
        found = hasher.root()
    except EnvelopeError as error:
        raise ObjectDamagedError(
            f"object {root} is damaged: {error}; delete it and put it in again"
        ) from error
    if found != root:
        raise ObjectDamagedError(
            f"object {root} is damaged: its bytes have the root {found}; delete it and put it in again"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
