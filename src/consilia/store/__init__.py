"""Where envelopes lie, named by their roots. A store sees ciphertext alone, and is not trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from consilia.values import Digest


class Incoming(Protocol):
    """An envelope on its way into a store: nobody sees it before `commit`."""

    stream: BinaryIO
    """Where its bytes are written, from the first to the last."""

    def commit(self, root: Digest) -> None:
        """Give it its name; one of this root that is there already is left alone.

        The store takes the writer's word for the root: sealing has hashed the same bytes, and every reader checks.
        """


@dataclass(frozen=True)
class StoredObject:
    """An object as a listing tells of it, without a look into it."""

    root: Digest
    modified_seconds: float
    """Unix time at which it got its name."""


class ArtifactStore(Protocol):
    """What the roles ask of a store: a directory (directory.py), or a bucket that machines share (objects.py).

    Every method raises StoreError when the store refuses, StoreUnreachableError when it does not answer.
    """

    def put(self, root: Digest, source: Path) -> None:
        """Copy the envelope in `source` into the store; one that is there already is left alone.

        Raises:
            ObjectDamagedError: `source` is not the envelope with this root. Nothing else ever gets in.
        """

    def writer(self, upload: Digest | None = None) -> AbstractContextManager[Incoming]:
        """Take in an envelope as it is being sealed, without a copy elsewhere; left uncommitted, nobody ever sees it.

        Args:
            upload: names this upload. The same bytes written again under its name, after a crash, are sent only
                as far as they are not there yet. A directory, which is near, begins afresh.
        """

    def get(self, root: Digest, target: Path) -> None:
        """Copy an envelope to `target`, which appears only when it is whole and has this root.

        Raises:
            ObjectMissingError: no object has this root.
            ObjectDamagedError: the object's bytes do not.
        """

    def reader(self, root: Digest) -> AbstractContextManager[BinaryIO]:
        """A stream of the object's bytes, NOT verified as a whole: for opening the envelope, which checks the root.

        Raises:
            ObjectMissingError: no object has this root.
        """

    def has(self, root: Digest) -> bool:
        """Whether there is an object with this root; its bytes are not looked at."""

    def delete(self, root: Digest) -> None:
        """Remove an object; none of this root is no error."""

    def objects(self) -> Iterator[StoredObject]:
        """All objects, in no particular order."""

    def roots(self) -> Iterator[Digest]:
        """The roots of all objects, in no particular order."""

    def abandoned(self, older_than_seconds: float) -> list[str]:
        """What uploads left that nobody finished and nobody has touched for that long."""

    def discard(self, abandoned: str) -> None:
        """Remove one of `abandoned`."""
