"""How an envelope lies in a bucket: its body in numbered parts, and an index that names and proves them.

The index is written last and makes the object. It holds what the root is made of, so whoever has the root checks
the index, and with the index every leaf of every part as it comes. Every byte: docs/formats/store.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from consilia.artifact import LEAF_BYTES, Frame, leaf_digest, root_of
from consilia.errors import EnvelopeError, ObjectDamagedError
from consilia.values import Digest

MAGIC = b"CSLAIDX1"
HEAD_BYTES = len(MAGIC) + 32
"""The magic and the upload's name: all that is needed to find an object's parts."""
LEAVES_A_PART = 2
PART_BYTES = LEAVES_A_PART * LEAF_BYTES
"""2 MiB of plaintext and their tags: a few parts in memory keep a party below 100 MB; 10 GB are 5000 requests."""


@dataclass(frozen=True)
class Index:
    """What is known of an object before its body is read."""

    upload: Digest
    """Names the folder of its parts."""
    opening: bytes
    """All of the envelope that is before its body."""
    leaf_digests: tuple[bytes, ...]

    @classmethod
    def parse(cls, data: bytes, root: Digest) -> Self:
        """Read the index of an object, and check it against the object's root.

        Raises:
            ObjectDamagedError: it is not the index of this object.
        """
        upload = upload_of(data, root)
        try:
            frame = Frame.parse(data[HEAD_BYTES:])
        except EnvelopeError as error:
            raise damaged(root, f"its index is none: {error}") from error
        leaves_at = HEAD_BYTES + frame.opening_bytes
        expected = leaves_at + 32 * frame.leaves
        if len(data) != expected:
            raise damaged(root, f"its index should have {expected} bytes, it has {len(data)}")
        leaves = tuple(data[at : at + 32] for at in range(leaves_at, expected, 32))
        index = cls(upload, data[HEAD_BYTES:leaves_at], leaves)
        if index.root != root:
            raise damaged(root, f"its index has the root {index.root}")
        return index

    def encode(self) -> bytes:
        """The bytes of the index."""
        return b"".join((MAGIC, self.upload, self.opening, *self.leaf_digests))

    @property
    def root(self) -> Digest:
        """The root of the envelope."""
        return root_of(self.opening, self.leaf_digests)

    @property
    def envelope_bytes(self) -> int:
        """Size of the whole envelope."""
        return len(self.opening) + self._body_bytes

    @property
    def parts(self) -> int:
        """How many parts the body has."""
        return -(-self._body_bytes // PART_BYTES)

    def part_bytes(self, number: int) -> int:
        """Size of a part; all but the last are full."""
        return min(PART_BYTES, self._body_bytes - number * PART_BYTES)

    def part_path(self, number: int) -> str:
        """Where a part lies."""
        return part_path(self.upload, number, self.leaf_digests)

    def proves(self, number: int, part: memoryview) -> bool:
        """Whether these are the bytes of a part."""
        found = [leaf_digest(part[at : at + LEAF_BYTES]) for at in range(0, len(part), LEAF_BYTES)]
        return len(part) == self.part_bytes(number) and found == list(_leaves(self.leaf_digests, number))

    @property
    def _body_bytes(self) -> int:
        return Frame.parse(self.opening).body_bytes


def part_path(upload: Digest, number: int, leaf_digests: Sequence[bytes]) -> str:
    """Where a part lies. Its name tells its bytes, so an upload that goes on knows what it need not send again."""
    told = Digest.of(b"".join(_leaves(leaf_digests, number)))
    return f"parts/{upload.hex()}/{number:08d}-{told.hex()[:32]}"


def _leaves(leaf_digests: Sequence[bytes], number: int) -> Sequence[bytes]:
    return leaf_digests[number * LEAVES_A_PART : (number + 1) * LEAVES_A_PART]


def upload_of(head: bytes, root: Digest) -> Digest:
    """The upload that an index names, from its first HEAD_BYTES.

    Raises:
        ObjectDamagedError: these begin no index.
    """
    if head[: len(MAGIC)] != MAGIC or len(head) < HEAD_BYTES:
        raise damaged(root, f"its index should begin with {MAGIC!r} and a name, it begins with {head[:8]!r}")
    return Digest(head[len(MAGIC) : HEAD_BYTES])


def damaged(root: Digest, why: str) -> ObjectDamagedError:
    """The error for an object whose bytes are not what its root says."""
    return ObjectDamagedError(f"object {root} is damaged: {why}; delete it and put it in again")
