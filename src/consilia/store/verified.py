"""Bytes on their way to or from a store, compared with the root that they are asked for by."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

from consilia.artifact import Readable, RootHasher
from consilia.errors import EnvelopeError, ObjectDamagedError, StoreError
from consilia.store import ArtifactStore
from consilia.values import Digest

BLOCK_BYTES = 1 << 20


def checked_blocks(source: Readable, root: Digest) -> Iterator[bytes]:
    """Pass on the bytes of an envelope, and fail at the end, or before, unless they have this root.

    Raises:
        ObjectDamagedError: they do not.
    """
    hasher = RootHasher()
    try:
        while block := source.read(BLOCK_BYTES):
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


def object_bytes(store: ArtifactStore, root: Digest) -> int:
    """Read an object from its first byte to its last, check that it has its root, and return its size.

    Raises:
        ObjectMissingError: no object has this root.
        ObjectDamagedError: the object's bytes do not.
    """
    with store.reader(root) as stream:
        return sum(len(block) for block in checked_blocks(stream, root))


def fetch_object(store: ArtifactStore, root: Digest, target: Path) -> None:
    """Copy an object to `target`, which appears only when it is whole and has this root.

    Raises:
        ObjectMissingError: no object has this root.
        ObjectDamagedError: the object's bytes do not.
        StoreError: `target` cannot be written.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        with store.reader(root) as source, temporary.open("xb") as file:
            for block in checked_blocks(source, root):
                file.write(block)
        temporary.replace(target)
    except OSError as error:
        raise StoreError(f"object {root} cannot be copied to {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def copy_object(source: ArtifactStore, target: ArtifactStore, root: Digest) -> int:
    """Copy an object between stores, and return its size, or 0 if the target has it; a damaged one never arrives.

    Called again after it was cut off, it goes on where it was as far as the target can.

    Raises:
        ObjectMissingError: the source has no such object.
        ObjectDamagedError: the source's object does not have its root.
    """
    if target.has(root):
        return 0
    copied = 0
    with source.reader(root) as stream, target.writer(Digest.of(b"consilia/put" + root)) as incoming:
        for block in checked_blocks(stream, root):
            copied += len(block)
            incoming.stream.write(block)
        incoming.commit(root)
    return copied
