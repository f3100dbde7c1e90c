"""C2SP chunked encryption (Cobblestone): a stream in sealed 16 KiB chunks, none handed on unchecked.

Source: https://c2sp.org/chunked-encryption, version 1, with HKDF-Expand-SHA-512 as in its vectors.
"""

from __future__ import annotations

import hmac
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import NamedTuple

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from consilia.artifact import (
    CHUNK_BYTES,
    CHUNKS_A_LEAF,
    LEAF_BYTES,
    SEALED_CHUNK_BYTES,
    TAG_BYTES,
    Readable,
    fill,
    leaf_digest,
)
from consilia.errors import EnvelopeError

SALT_BYTES = 24
_BLOCK_BYTES = CHUNKS_A_LEAF * CHUNK_BYTES
_LABELS = {
    16: b"c2sp.org/chunked-encryption@v1+AEAD_AES_128_GCM\x00",
    32: b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00",
}

_WORKERS = min(4, os.cpu_count() or 1)
"""Threads a message. Hashing, two thirds of the work, releases the interpreter lock; the cipher does not: more than
four would wait for it."""
_ROOMS = _WORKERS + 2
"""Leaves in memory: one is read, one is written, and each worker has one."""


class Leaf(NamedTuple):
    """What became of 64 chunks, the last ones fewer: sealed, or opened."""

    data: memoryview
    """Valid until the next leaf is asked for."""
    sealed_bytes: int
    digest: bytes
    """`leaf_digest` of the sealed chunks."""


class ChunkCipher:
    """The keys of one message. Encrypting two messages with the same key and salt would reuse nonces."""

    def __init__(self, key: bytes, salt: bytes, context: bytes) -> None:
        """Derive the keys.

        Args:
            key: 32 bytes (Cobblestone-256; 16 for Cobblestone-128).
            salt: 24 bytes, never used twice with the same key.
            context: what the message is bound to.

        Raises:
            EnvelopeError: key or salt has another size.
        """
        if len(key) not in _LABELS or len(salt) != SALT_BYTES:
            raise EnvelopeError(
                f"a key of 16 or 32 and a salt of 24 bytes wanted, {len(key)} and {len(salt)} came"
            )
        info = _LABELS[len(key)] + salt + context
        derived = HKDFExpand(SHA512(), len(key) + 12 + 32, info).derive(key)
        self._aead = AESGCM(derived[: len(key)])
        self._base_nonce = int.from_bytes(derived[len(key) : len(key) + 12], "big")
        self._rooms: list[_Room] = []
        self.prefix = salt + derived[len(key) + 12 :]
        """Salt and commitment, the first 56 bytes of the message."""

    def check_prefix(self, prefix: bytes) -> None:
        """Compare the commitment before anything is decrypted: AES-GCM alone would open under a second key.

        Raises:
            EnvelopeError: sealed with another key, salt or context.
        """
        if not hmac.compare_digest(prefix, self.prefix):
            raise EnvelopeError(
                "an envelope's salt or commitment is not the one that its key and context give"
            )

    def encrypt(self, plaintext: Readable) -> Iterator[Leaf]:
        """Yield the body in leaves of `LEAF_BYTES`, the last one shorter."""

        def jobs() -> Iterator[_Job]:
            for number in count():
                room = self._room(number)
                size = fill(plaintext, room.block)
                # A block that is not full ends the message, with a short chunk: empty where nothing is left.
                last = size < _BLOCK_BYTES
                yield _Job(self._encrypt_leaf, number, room, size, last)
                if last:
                    return

        return _in_order(jobs())

    def decrypt(self, ciphertext: Readable, body_bytes: int | None = None) -> Iterator[Leaf]:
        """Yield the plaintext in blocks of 1 MiB, the last one shorter.

        Args:
            ciphertext: the body, from where it begins to its end.
            body_bytes: how many bytes it should have, where that is known.

        Raises:
            EnvelopeError: a chunk is damaged, out of order, missing, or followed by something.
        """

        def jobs() -> Iterator[_Job]:
            came = 0
            for number in count():
                room = self._room(number)
                size = fill(ciphertext, room.leaf)
                came += size
                if body_bytes is not None and came > body_bytes:
                    raise EnvelopeError(f"an envelope has {came - body_bytes} bytes or more after its end")
                last = size < LEAF_BYTES
                yield _Job(self._decrypt_leaf, number, room, size, last)
                if last:
                    return

        return _in_order(jobs())

    def _encrypt_leaf(self, number: int, room: _Room, size: int) -> Leaf:
        sealed_bytes = size + TAG_BYTES * min(CHUNKS_A_LEAF, size // CHUNK_BYTES + 1)
        for nonce, (part, sealed) in zip(self._nonces(number), room.chunks(sealed_bytes), strict=False):
            self._aead.encrypt_into(nonce, part, None, sealed)
        leaf = room.leaf[:sealed_bytes]
        return Leaf(leaf, sealed_bytes, leaf_digest(leaf))

    def _decrypt_leaf(self, number: int, room: _Room, size: int) -> Leaf:
        if size < LEAF_BYTES and size % SEALED_CHUNK_BYTES < TAG_BYTES:
            raise EnvelopeError("an envelope's body was cut: it does not end in a short chunk")
        chunks = room.chunks(size)
        for index, nonce, (part, sealed) in zip(count(), self._nonces(number), chunks, strict=False):
            try:
                self._aead.decrypt_into(nonce, sealed, None, part)
            except InvalidTag as error:
                chunk = number * CHUNKS_A_LEAF + index
                raise EnvelopeError(f"an envelope's chunk {chunk} was changed, moved or cut") from error
        block = room.block[: size - TAG_BYTES * len(chunks)]
        return Leaf(block, size, leaf_digest(room.leaf[:size]))

    def _room(self, number: int) -> _Room:
        """Memory for a leaf: that of the one before which nobody holds any longer."""
        if len(self._rooms) < min(number + 1, _ROOMS):
            self._rooms.append(_Room())
        return self._rooms[number % _ROOMS]

    def _nonces(self, number: int) -> list[bytes]:
        first = number * CHUNKS_A_LEAF
        return [
            (self._base_nonce ^ chunk).to_bytes(12, "big") for chunk in range(first, first + CHUNKS_A_LEAF)
        ]


class _Room:
    """Memory for a leaf, sealed and open, cut into its chunks once: 61,000 of them are a gigabyte.

    It serves again and again: fresh pages would cost the kernel as much as the cipher costs us.
    """

    def __init__(self) -> None:
        self.block = memoryview(bytearray(_BLOCK_BYTES))
        self.leaf = memoryview(bytearray(LEAF_BYTES))
        self._full: list[tuple[memoryview, memoryview]] = []

    def chunks(self, sealed_bytes: int) -> list[tuple[memoryview, memoryview]]:
        """Where each chunk of a leaf of this size lies, open and sealed."""
        if sealed_bytes < LEAF_BYTES:
            return self._cut(sealed_bytes)
        if not self._full:
            self._full = self._cut(LEAF_BYTES)
        return self._full

    def _cut(self, sealed_bytes: int) -> list[tuple[memoryview, memoryview]]:
        parts = []
        for index, start in enumerate(range(0, sealed_bytes, SEALED_CHUNK_BYTES)):
            sealed = self.leaf[start : min(start + SEALED_CHUNK_BYTES, sealed_bytes)]
            at = index * CHUNK_BYTES
            parts.append((self.block[at : at + len(sealed) - TAG_BYTES], sealed))
        return parts


class _Job(NamedTuple):
    """What is to be done to a leaf, and whether the message ends with it."""

    work: Callable[[int, _Room, int], Leaf]
    number: int
    room: _Room
    size: int
    last: bool

    def run(self) -> Leaf:
        return self.work(self.number, self.room, self.size)


def _in_order(jobs: Iterator[_Job]) -> Iterator[Leaf]:
    """Do the jobs in threads and hand on what comes of them in their order; read the next ones meanwhile."""
    waiting: deque[Callable[[], Leaf]] = deque()
    with ThreadPoolExecutor(_WORKERS) as workers:
        for job in jobs:
            # the last leaf has nothing beside it to wait for, and most envelopes have no other
            waiting.append(job.run if job.last else workers.submit(job.run).result)
            if len(waiting) == _ROOMS:
                yield waiting.popleft()()
        while waiting:
            yield waiting.popleft()()
