"""C2SP chunked encryption (Cobblestone): a stream in sealed 16 KiB chunks, none handed on unchecked.

Source: https://c2sp.org/chunked-encryption, version 1, with HKDF-Expand-SHA-512 as in its vectors.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
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
from consilia.parallel import in_order

SALT_BYTES = 24
_BLOCK_BYTES = CHUNKS_A_LEAF * CHUNK_BYTES
_LABELS = {
    16: b"c2sp.org/chunked-encryption@v1+AEAD_AES_128_GCM\x00",
    32: b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00",
}


class Leaf(NamedTuple):
    """What became of 64 chunks, the last ones fewer: sealed, or opened."""

    data: bytearray
    sealed_bytes: int
    digest: bytes
    """`leaf_digest` of the sealed chunks, taken while they were in this core's cache."""


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
        return in_order(self._encrypt_leaf, enumerate(blocks_of(plaintext, _BLOCK_BYTES)))

    def decrypt(self, leaves: Iterable[bytes]) -> Iterator[Leaf]:
        """Yield the plaintext in blocks of 1 MiB, the last one shorter.

        Args:
            leaves: the body in blocks of `LEAF_BYTES`, the last one shorter.

        Raises:
            EnvelopeError: a chunk is damaged, out of order, missing, or followed by something.
        """
        return in_order(self._decrypt_leaf, enumerate(leaves))

    def _encrypt_leaf(self, numbered: tuple[int, bytes]) -> Leaf:
        number, block = numbered
        # A block that is not full ends the message, with a short chunk: empty where the length is a multiple.
        end = len(block) if len(block) == _BLOCK_BYTES else len(block) + 1
        starts = range(0, end, CHUNK_BYTES)
        leaf = bytearray(len(block) + TAG_BYTES * len(starts))
        source, room = memoryview(block), memoryview(leaf)
        for index, start in enumerate(starts):
            nonce = self._nonce(number * CHUNKS_A_LEAF + index)
            part = source[start : start + CHUNK_BYTES]
            at = index * SEALED_CHUNK_BYTES
            self._aead.encrypt_into(nonce, part, None, room[at : at + len(part) + TAG_BYTES])
        return Leaf(leaf, len(leaf), leaf_digest(leaf))

    def _decrypt_leaf(self, numbered: tuple[int, bytes]) -> Leaf:
        number, leaf = numbered
        if len(leaf) < LEAF_BYTES and len(leaf) % SEALED_CHUNK_BYTES < TAG_BYTES:
            raise EnvelopeError("an envelope's body was cut: it does not end in a short chunk")
        starts = range(0, len(leaf), SEALED_CHUNK_BYTES)
        block = bytearray(len(leaf) - TAG_BYTES * len(starts))
        source, room = memoryview(leaf), memoryview(block)
        for index, start in enumerate(starts):
            chunk = number * CHUNKS_A_LEAF + index
            part = source[start : start + SEALED_CHUNK_BYTES]
            at = index * CHUNK_BYTES
            try:
                self._aead.decrypt_into(self._nonce(chunk), part, None, room[at : at + len(part) - TAG_BYTES])
            except InvalidTag as error:
                raise EnvelopeError(f"an envelope's chunk {chunk} was changed, moved or cut") from error
        return Leaf(block, len(leaf), leaf_digest(leaf))

    def _nonce(self, chunk: int) -> bytes:
        return (self._base_nonce ^ chunk).to_bytes(12, "big")
