"""Step 1 of a second opinion: what a hospital asks, and what the server opens of it (docs/formats/query.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from consilia.errors import InputError, VerificationError
from consilia.protocols.diagnosis import (
    MAX_IMAGES,
    ImageFormat,
    ImageRole,
    Place,
    QueryImage,
    label_commitment,
    label_hash,
    roles_commitment,
    truth_mark,
)
from consilia.protocols.findings import codes_of, to_words
from consilia.values import Address, Digest


@dataclass(frozen=True)
class QuerySecrets:
    """Everything random of one query, out of 32 bytes that are on disk before the query is anywhere."""

    seed: bytes = field(repr=False)

    def salt(self) -> bytes:
        """Makes the query's id."""
        return self._derive("salt")

    def roles_salt(self) -> bytes:
        """Hides the bitmap."""
        return self._derive("roles")

    def label_secret(self, position: int) -> bytes:
        """r_j, which the server gets too."""
        return self._derive(f"label/{position}")

    def truth_salt(self, position: int) -> bytes:
        """Hides true boxes in s_j."""
        return self._derive(f"truth/{position}")

    def hidden_commitment(self, position: int) -> bytes:
        """L_j of a hidden image: nothing is behind it."""
        return self._derive(f"hidden/{position}")

    def order(self, count: int) -> list[int]:
        """A random order of the images: the place at position j belongs to image order[j]."""
        return sorted(range(count), key=lambda index: self._derive(f"order/{index}"))

    def _derive(self, name: str) -> bytes:
        return HKDFExpand(SHA256(), 32, b"consilia/diagnosis/seed/v1/" + name.encode()).derive(self.seed)


@dataclass(frozen=True)
class OwnQuery:
    """A query as its hospital knows it: images in the order of the query, and all that it committed to."""

    query_id: Digest
    threshold: int
    images: tuple[QueryImage, ...]
    secrets: QuerySecrets = field(repr=False)

    @property
    def bitmap(self) -> int:
        """Bit j: position j holds an audit image."""
        return sum(1 << j for j in self.audits)

    @property
    def audits(self) -> list[int]:
        """The positions of audit images, ascending."""
        return [j for j, image in enumerate(self.images) if image.role is ImageRole.AUDIT]

    @property
    def real(self) -> list[int]:
        """The positions of real cases, ascending."""
        return [j for j, image in enumerate(self.images) if image.role is ImageRole.REAL]

    def truth_words(self, position: int) -> tuple[int, ...]:
        """The true boxes of an audit image."""
        return to_words(self.images[position].truth or ())

    def mark(self, position: int) -> Digest:
        """s_j of an audit image."""
        salt = self.secrets.truth_salt(position)
        return truth_mark(self.query_id, position, salt, self.truth_words(position))

    def label(self, position: int) -> Digest:
        """x_j of an audit image."""
        codes = codes_of(self.images[position].truth or ())
        return label_hash(self.query_id, position, self.secrets.label_secret(position), codes)

    def commitments(self) -> list[Digest]:
        """L_j of every position."""
        return [
            label_commitment(self.mark(j), self.label(j))
            if image.role is ImageRole.AUDIT
            else Digest(self.secrets.hidden_commitment(j))
            for j, image in enumerate(self.images)
        ]

    def roles_commitment(self) -> Digest:
        """What step 1 says of the roles."""
        return roles_commitment(self.query_id, self.secrets.roles_salt(), self.bitmap)


def make_query(
    place: Place, hospital: Address, images: Sequence[QueryImage], threshold: int, seed: bytes
) -> OwnQuery:
    """Step 1: draw an order and every secret from `seed` (32 fresh random bytes, or those kept).

    Raises:
        InputError: no real case, no audit image, a truth where there should be none or none where there should be
            one, more than eight true boxes, images of several sizes, more than 128 of them.
    """
    secrets = QuerySecrets(seed)
    query = OwnQuery(
        place.query_id(hospital, secrets.salt()),
        threshold,
        tuple(images[index] for index in secrets.order(len(images))),
        secrets,
    )
    audits = len(query.audits)
    if not 0 < threshold <= audits or not query.real or len(images) > MAX_IMAGES:
        raise InputError(
            f"expected a real case and at least {max(threshold, 1)} audit images among at most {MAX_IMAGES}, "
            f"got {len(query.real)} and {audits} of {len(images)}"
        )
    if len({len(image.pixels) for image in images}) != 1:
        raise InputError("expected images of one size: another size would give an image away")
    for position, image in enumerate(query.images):
        if (image.role is ImageRole.AUDIT) != (image.truth is not None):
            raise InputError(f"{image.name}: expected a truth for an audit image, and for no other")
        query.truth_words(position)
    return query


PACKAGE_MAGIC = b"CSLAQRY1"


def write_package(query: OwnQuery, image_format: ImageFormat) -> bytes:
    """The query's plaintext, sealed to server and hospital (docs/formats/query.md).

    Raises:
        InputError: an image has another size.
    """
    for image in query.images:
        if len(image.pixels) != image_format.image_bytes:
            raise InputError(
                f"{image.name}: expected {image_format.height} x {image_format.width} pixels of one byte, "
                f"got {len(image.pixels)} bytes"
            )
    sizes = (len(query.images), image_format.height, image_format.width)
    head = PACKAGE_MAGIC + query.query_id + b"".join(size.to_bytes(2, "big") for size in sizes)
    secrets = b"".join(query.secrets.label_secret(j) for j in range(len(query.images)))
    return head + secrets + b"".join(image.pixels for image in query.images)


def package_bytes(count: int, image_format: ImageFormat) -> int:
    """How long a query's plaintext is."""
    return 46 + count * (32 + image_format.image_bytes)


@dataclass(frozen=True)
class Package:
    """A query as the server opens it: nothing tells one image from another."""

    query_id: Digest
    image_format: ImageFormat
    label_secrets: tuple[bytes, ...] = field(repr=False)
    pixels: tuple[bytes, ...] = field(repr=False)


def read_package(data: bytes, query_id: Digest, count: int, image_format: ImageFormat) -> Package:
    """Read a query's plaintext.

    Raises:
        VerificationError: it is not one of this query, with this number of images of this size.
    """
    head, expected = 46, package_bytes(count, image_format)
    sizes = tuple(int.from_bytes(data[at : at + 2], "big") for at in (40, 42, 44))
    if data[:8] != PACKAGE_MAGIC or data[8:40] != query_id:
        raise VerificationError("expected the images of this query: they belong to another, or to none")
    if sizes != (count, image_format.height, image_format.width) or len(data) != expected:
        raise VerificationError(
            f"expected {count} images of {image_format.height} x {image_format.width}, the query holds "
            f"{sizes[0]} of {sizes[1]} x {sizes[2]} in {len(data)} bytes, {expected} wanted"
        )
    secrets = tuple(data[head + 32 * j : head + 32 * (j + 1)] for j in range(count))
    start, size = head + 32 * count, image_format.image_bytes
    pixels = tuple(data[start + size * j : start + size * (j + 1)] for j in range(count))
    return Package(query_id, image_format, secrets, pixels)
