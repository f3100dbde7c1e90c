"""C2SP chunked encryption (Cobblestone): a stream in sealed 16 KiB chunks, none handed on unchecked.

Source: https://c2sp.org/chunked-encryption, version 1, with HKDF-Expand-SHA-512 as in its vectors.
"""

from __future__ import annotations

import hmac
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import starmap
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
    blocks_of,
    leaf_digest,
)
from consilia.errors import EnvelopeError

SALT_BYTES = 24
_BLOCK_BYTES = CHUNKS_A_LEAF * CHUNK_BYTES
_LABELS = {
    16: b"c2sp.org/chunked-encryption@v1+AEAD_AES_128_GCM\x00",
    32: b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00",
}


_LEAVES_AHEAD = 2
"""Leaves that have been through the cipher and are being hashed: enough to keep both busy."""


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
        self._rooms = [bytearray()] * (_LEAVES_AHEAD + 2)
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
        numbered = enumerate(blocks_of(plaintext, _BLOCK_BYTES))
        return self._hashed((sealed, sealed) for sealed in starmap(self._encrypt_leaf, numbered))

    def decrypt(self, leaves: Iterable[bytes]) -> Iterator[Leaf]:
        """Yield the plaintext in blocks of 1 MiB, the last one shorter.

        Args:
            leaves: the body in blocks of `LEAF_BYTES`, the last one shorter.

        Raises:
            EnvelopeError: a chunk is damaged, out of order, missing, or followed by something.
        """
        return self._hashed((self._decrypt_leaf(n, sealed), sealed) for n, sealed in enumerate(leaves))

    def _hashed(self, leaves: Iterable[tuple[memoryview, bytes | memoryview]]) -> Iterator[Leaf]:
        """Hash leaves in a thread of its own: that releases the interpreter lock, the cipher does not.

        The memory of a leaf is used again: fresh pages would cost the kernel as much as the cipher costs us.
        """
        waiting: deque[tuple[memoryview, int, Callable[[], bytes]]] = deque()

        def first_waiting() -> Leaf:
            data, sealed_bytes, digest = waiting.popleft()
            return Leaf(data, sealed_bytes, digest())

        with ThreadPoolExecutor(1) as hasher:
            for data, sealed in leaves:
                # the last leaf has nothing beside it to wait for, and most envelopes have no other
                last = len(sealed) < LEAF_BYTES
                digest = partial(leaf_digest, sealed) if last else hasher.submit(leaf_digest, sealed).result
                waiting.append((data, len(sealed), digest))
                if len(waiting) > _LEAVES_AHEAD:
                    yield first_waiting()
            while waiting:
                yield first_waiting()

    def _encrypt_leaf(self, number: int, block: bytes) -> memoryview:
        # A block that is not full ends the message, with a short chunk: empty where the length is a multiple.
        end = len(block) if len(block) == _BLOCK_BYTES else len(block) + 1
        starts = range(0, end, CHUNK_BYTES)
        source, leaf = memoryview(block), self._room(number, len(block) + TAG_BYTES * len(starts))
        for index, start in enumerate(starts):
            nonce = self._nonce(number * CHUNKS_A_LEAF + index)
            part = source[start : start + CHUNK_BYTES]
            at = index * SEALED_CHUNK_BYTES
            self._aead.encrypt_into(nonce, part, None, leaf[at : at + len(part) + TAG_BYTES])
        return leaf

    def _decrypt_leaf(self, number: int, leaf: bytes) -> memoryview:
        if len(leaf) < LEAF_BYTES and len(leaf) % SEALED_CHUNK_BYTES < TAG_BYTES:
            raise EnvelopeError("an envelope's body was cut: it does not end in a short chunk")
        starts = range(0, len(leaf), SEALED_CHUNK_BYTES)
        source, block = memoryview(leaf), self._room(number, len(leaf) - TAG_BYTES * len(starts))
        for index, start in enumerate(starts):
            chunk = number * CHUNKS_A_LEAF + index
            part = source[start : start + SEALED_CHUNK_BYTES]
            at = index * CHUNK_BYTES
            room = block[at : at + len(part) - TAG_BYTES]
            try:
                self._aead.decrypt_into(self._nonce(chunk), part, None, room)
            except InvalidTag as error:
                raise EnvelopeError(f"an envelope's chunk {chunk} was changed, moved or cut") from error
        return block

    def _room(self, number: int, size: int) -> memoryview:
        """Memory for a leaf: that of the one before which nobody holds any longer."""
        at = number % len(self._rooms)
        if number < len(self._rooms):
            self._rooms[at] = bytearray(size)  # the longest of a message come first
        return memoryview(self._rooms[at])[:size]

    def _nonce(self, chunk: int) -> bytes:
        return (self._base_nonce ^ chunk).to_bytes(12, "big")
