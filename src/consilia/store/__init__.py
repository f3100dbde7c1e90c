"""Where envelopes lie, named by their roots. A store sees ciphertext alone, and is not trusted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
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


class ArtifactStore(Protocol):
    """What the roles ask of a store: a directory today, object storage behind the same names.

    Every method raises StoreError when the store refuses, StoreUnreachableError when it does not answer.
    """

    def put(self, root: Digest, source: Path) -> None:
        """Copy the envelope in `source` into the store; one that is there already is left alone.

        Raises:
            ObjectDamagedError: `source` is not the envelope with this root. Nothing else ever gets in.
        """

    def writer(self) -> AbstractContextManager[Incoming]:
        """Take in an envelope as it is being sealed, without a copy elsewhere; left uncommitted, it is gone."""

    def get(self, root: Digest, target: Path) -> None:
        """Copy an envelope to `target`, which appears only when it is whole and has this root.

        Raises:
            ObjectMissingError: no object has this root.
            ObjectDamagedError: the object's bytes do not.
        """

    def reader(self, root: Digest) -> AbstractContextManager[BinaryIO]:
        """A stream of the object's bytes, NOT verified: for opening the envelope, which checks the root.

        Raises:
            ObjectMissingError: no object has this root.
        """

    def has(self, root: Digest) -> bool:
        """Whether there is an object with this root; its bytes are not looked at."""

    def delete(self, root: Digest) -> None:
        """Remove an object; none of this root is no error."""

    def roots(self) -> Iterator[Digest]:
        """The roots of all objects, in no particular order."""
