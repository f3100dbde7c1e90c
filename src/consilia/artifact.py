"""What everybody may see of an envelope: its frame and its root, computed from ciphertext without any key.

The store checks the root on every read, the audit on every registered artifact. Every byte is in
docs/formats/envelope.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol, Self

from consilia.errors import EnvelopeError
from consilia.values import Digest

MAGIC = b"CSLAENV1"
KEM_X25519 = 0x0020
CHUNK_BITS = 14
CHUNK_BYTES = 1 << CHUNK_BITS
TAG_BYTES = 16
SEALED_CHUNK_BYTES = CHUNK_BYTES + TAG_BYTES
CHUNKS_A_LEAF = 64
LEAF_BYTES = CHUNKS_A_LEAF * SEALED_CHUNK_BYTES
"""Ciphertext under one leaf of the root's tree: 1 MiB of plaintext and its tags."""

STANZA_BYTES = 32 + 32 + TAG_BYTES
PREFIX_BYTES = 24 + 32
"""The salt and the commitment before the body."""

_LEAF_MARK = b"\x00"
_FIXED_BYTES = len(MAGIC) + 2 + 1 + 1 + 2 + 8


class Readable(Protocol):
    """All that is asked of a stream to read from; any `BinaryIO` is one."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end only."""


@dataclass(frozen=True)
class Frame:
    """The plain beginning of an envelope: how long, for which context, for which recipients."""

    plaintext_bytes: int
    context_digest: Digest
    key_ids: tuple[Digest, ...]
    """SHA-256 of each recipient's public key, in ascending order of the public keys."""

    @classmethod
    def of(cls, plaintext_bytes: int, context: bytes, recipients: Sequence[bytes]) -> Self:
        """The frame for `recipients` (public keys, 32 bytes each, in any order) in an encoded context."""
        key_ids = tuple(Digest.of(recipient) for recipient in sorted(recipients))
        return cls(plaintext_bytes, Digest.of(context), key_ids)

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """The frame at the beginning of `data`, which may go on after it.

        Raises:
            EnvelopeError: another magic, key encapsulation, chunk size or reserved byte, or too few bytes.
        """
        frame_bytes = _frame_bytes(data)
        if len(data) < frame_bytes:
            raise EnvelopeError(
                f"an envelope ends in its frame: {frame_bytes} bytes wanted, {len(data)} came"
            )
        digests = [Digest(data[at : at + 32]) for at in range(_FIXED_BYTES, frame_bytes, 32)]
        return cls(int.from_bytes(data[14:22], "big"), digests[0], tuple(digests[1:]))

    def encode(self) -> bytes:
        """The bytes of the frame."""
        return b"".join(
            (
                MAGIC,
                KEM_X25519.to_bytes(2, "big"),
                bytes((CHUNK_BITS, 0)),
                len(self.key_ids).to_bytes(2, "big"),
                self.plaintext_bytes.to_bytes(8, "big"),
                self.context_digest,
                *self.key_ids,
            )
        )

    @property
    def frame_bytes(self) -> int:
        """Size of the frame."""
        return _FIXED_BYTES + 32 + 32 * len(self.key_ids)

    @property
    def header_bytes(self) -> int:
        """Size of the frame and the stanzas."""
        return self.frame_bytes + STANZA_BYTES * len(self.key_ids)

    @property
    def body_bytes(self) -> int:
        """Size of the chunks with their tags."""
        return self.plaintext_bytes + TAG_BYTES * (self.plaintext_bytes // CHUNK_BYTES + 1)

    @property
    def envelope_bytes(self) -> int:
        """Size of the whole envelope."""
        return self.opening_bytes + self.body_bytes

    @property
    def opening_bytes(self) -> int:
        """Size of all that is before the body: the header, the salt and the commitment."""
        return self.header_bytes + PREFIX_BYTES

    @property
    def leaves(self) -> int:
        """How many leaves the root's tree has."""
        return -(-self.body_bytes // LEAF_BYTES)


def read_frame(stream: Readable) -> Frame:
    """Read the frame of an envelope and nothing after it.

    Raises:
        EnvelopeError: this is no envelope.
    """
    fixed = read_full(stream, _FIXED_BYTES)
    return Frame.parse(fixed + read_full(stream, _frame_bytes(fixed) - _FIXED_BYTES))


def read_full(stream: Readable, size: int) -> bytes:
    """Read `size` bytes, fewer only at the end: raw and remote streams may give less at a time."""
    data = stream.read(size)
    if len(data) == size or not data:
        return data
    parts = [data]
    missing = size - len(data)
    while missing and (data := stream.read(missing)):
        parts.append(data)
        missing -= len(data)
    return b"".join(parts)


def fill(stream: Readable, room: memoryview) -> int:
    """Read into `room` until it is full or the stream ends; how many bytes came."""
    read_into = getattr(stream, "readinto", None) or _reading_into(stream)
    came = 0
    while came < len(room) and (count := read_into(room[came:])):
        came += count
    return came


def _reading_into(stream: Readable) -> Callable[[memoryview], int]:
    def read_into(room: memoryview) -> int:
        data = stream.read(len(room))
        room[: len(data)] = data
        return len(data)

    return read_into


class RootHasher:
    """Computes the root of an envelope that comes in pieces of any size, in the memory of its header."""

    def __init__(self) -> None:
        self._opening = bytearray()  # header, salt and commitment, until they are complete
        self._opening_bytes = _FIXED_BYTES
        self._frame: Frame | None = None
        self._leaf_digests: list[bytes] = []
        self._leaf = hashlib.sha256(_LEAF_MARK)
        self._leaf_bytes = 0
        self._body_bytes_left = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes of the envelope.

        Raises:
            EnvelopeError: they are not the beginning of an envelope, or go on after its end.
        """
        view = memoryview(data).cast("B")
        while view and self._frame is None:
            view = self._take_opening(view)
        if len(view) > self._body_bytes_left:
            raise EnvelopeError(
                f"an envelope has {len(view) - self._body_bytes_left} bytes or more after its end"
            )
        self._body_bytes_left -= len(view)
        while view:
            view = self._take_leaf(view)

    def add_leaf(self, digest: bytes, size: int) -> None:
        """Take the next leaf, whole, by its `leaf_digest`: somebody else has hashed it meanwhile.

        Raises:
            EnvelopeError: the envelope has no leaf of this size here.
        """
        expected = 0 if self._leaf_bytes else min(LEAF_BYTES, self._body_bytes_left)
        if size < expected:
            raise EnvelopeError(f"an envelope lacks its last bytes: a leaf of {expected} wanted, {size} came")
        if size > expected:
            raise EnvelopeError(f"an envelope has {size - expected} bytes or more after its end")
        self._body_bytes_left -= size
        self._leaf_digests.append(digest)

    def root(self) -> Digest:
        """The root of the envelope, all of which has come.

        Raises:
            EnvelopeError: it has not.
        """
        if self._frame is None:
            raise EnvelopeError(f"an envelope ends in its header, after {len(self._opening)} bytes")
        if self._body_bytes_left:
            raise EnvelopeError(
                f"an envelope of {self._frame.envelope_bytes} bytes lacks its last {self._body_bytes_left}"
            )
        return root_of(self.opening, self.leaf_digests)

    @property
    def opening(self) -> bytes:
        """The header, the salt and the commitment; nothing until all of them have come."""
        return b"" if self._frame is None else bytes(self._opening)

    @property
    def leaf_digests(self) -> list[bytes]:
        """The digests of the leaves that have come, the last of which may not be complete."""
        return [*self._leaf_digests, self._leaf.digest()] if self._leaf_bytes else [*self._leaf_digests]

    def _take_opening(self, view: memoryview) -> memoryview:
        taken = view[: self._opening_bytes - len(self._opening)]
        self._opening += taken
        if len(self._opening) == _FIXED_BYTES:
            recipients = _recipients(bytes(self._opening))
            self._opening_bytes += 32 + (32 + STANZA_BYTES) * recipients + PREFIX_BYTES
        elif len(self._opening) == self._opening_bytes:
            self._frame = Frame.parse(bytes(self._opening))
            self._body_bytes_left = self._frame.body_bytes
        return view[len(taken) :]

    def _take_leaf(self, view: memoryview) -> memoryview:
        taken = view[: LEAF_BYTES - self._leaf_bytes]
        self._leaf.update(taken)
        self._leaf_bytes += len(taken)
        if self._leaf_bytes == LEAF_BYTES:
            self._leaf_digests.append(self._leaf.digest())
            self._leaf = hashlib.sha256(_LEAF_MARK)
            self._leaf_bytes = 0
        return view[len(taken) :]


def root_of(opening: bytes, leaf_digests: Sequence[bytes]) -> Digest:
    """The root of an envelope from all that is before its body, and the digest of each leaf of the body.

    Raises:
        EnvelopeError: `opening` is none.
    """
    return Digest.of(
        b"".join(
            (
                b"CEV1root",
                hashlib.sha256(opening[:-PREFIX_BYTES]).digest(),
                opening[-PREFIX_BYTES:],
                Frame.parse(opening).plaintext_bytes.to_bytes(8, "big"),
                _tree_digest(list(leaf_digests)),
            )
        )
    )


def leaf_digest(leaf: bytes | bytearray | memoryview) -> bytes:
    """The hash of a leaf of the root's tree, marked as one (RFC 6962, section 2.1)."""
    digest = hashlib.sha256(_LEAF_MARK)
    digest.update(leaf)
    return digest.digest()


def artifact_root(stream: BinaryIO) -> Digest:
    """The root of the envelope in `stream`, from where it stands to its end.

    Raises:
        EnvelopeError: this is no envelope, or one that is cut short or goes on after its end.
    """
    hasher = RootHasher()
    while data := stream.read(LEAF_BYTES):
        hasher.update(data)
    return hasher.root()


def _recipients(fixed: bytes) -> int:
    """Check the bytes before the context digest, and return how many recipients follow it."""
    if fixed[:8] != MAGIC:
        raise EnvelopeError(
            f"this is no envelope: it should begin with {MAGIC!r}, it begins with {fixed[:8]!r}"
        )
    if len(fixed) < _FIXED_BYTES:
        raise EnvelopeError(f"an envelope ends in its frame, after {len(fixed)} bytes")
    kem = int.from_bytes(fixed[8:10], "big")
    if kem != KEM_X25519:
        raise EnvelopeError(
            f"an envelope uses key encapsulation 0x{kem:04x}, only 0x{KEM_X25519:04x} is known"
        )
    if fixed[10] != CHUNK_BITS or fixed[11] != 0:
        raise EnvelopeError(
            f"an envelope's bytes 10 and 11 should be {CHUNK_BITS} and 0, they are {[*fixed[10:12]]}"
        )
    recipients = int.from_bytes(fixed[12:14], "big")
    if recipients == 0:
        raise EnvelopeError("an envelope has no recipient")
    return recipients


def _frame_bytes(fixed: bytes) -> int:
    return _FIXED_BYTES + 32 + 32 * _recipients(fixed)


def _tree_digest(digests: list[bytes]) -> bytes:
    """RFC 6962 section 2.1 over leaf digests; an odd one at the end of a level moves up as it is."""
    while len(digests) > 1:
        pairs = zip(digests[::2], digests[1::2], strict=False)
        parents = [hashlib.sha256(b"\x01" + left + right).digest() for left, right in pairs]
        digests = parents + digests[len(parents) * 2 :]
    return digests[0]
