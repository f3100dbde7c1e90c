"""The second opinion as values and equations (PROTOCOLS section 4, docs/protocols/diagnosis.md).

Steps: 0 offer, 1 ask, 2 answer, 3 open_audit, 4 score and accept (or challenge), 5 release.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from eth_abi.abi import encode
from eth_hash.auto import keccak

from consilia.errors import InputError, VerificationError
from consilia.protocols.findings import Codes, Finding, codes_of, codes_word, from_words, to_words
from consilia.values import Address, ArtifactContext, ArtifactKind, Digest


def _tag(name: str) -> bytes:
    return bytes(keccak(f"consilia/diagnosis/{name}/v1".encode()))


QUERY_TAG, LABEL_TAG, TRUTH_TAG = _tag("query"), _tag("label"), _tag("truth")
MARK_TAG, ANSWER_TAG, ROLES_TAG, PAD_TAG = _tag("mark"), _tag("answer"), _tag("roles"), _tag("pad")
"""What stands before everything that is hashed, here and in contracts/diagnosis.vy."""

MAX_IMAGES = 128

HEALTHY: Codes = ()
"""The diagnosis of an image on which there is nothing."""


class ImageRole(Enum):
    """What an image is in a query. The ledger learns which are audit images, and nothing more."""

    REAL = "real"
    AUDIT = "audit"
    COVER = "cover"


@dataclass(frozen=True)
class ImageFormat:
    """What a server takes: grey images of one size, one byte a pixel, rows from the top."""

    height: int
    width: int

    @property
    def image_bytes(self) -> int:
        """Bytes of one image."""
        return self.height * self.width


@dataclass(frozen=True)
class QueryImage:
    """One image that a hospital puts into a query; `truth` is known for an audit image alone.

    `pixels`: canonical, height x width bytes. `truth` of an audit image without any finding is ().
    """

    name: str
    """The hospital's own name for it; stays in its home."""
    role: ImageRole
    pixels: bytes = field(repr=False)
    truth: tuple[Finding, ...] | None = None


class QueryState(IntEnum):
    """Where a query stands; the numbers are those of contracts/diagnosis.vy."""

    ASKED = 1
    ANSWERED = 2
    OPENED = 3
    PASSED = 4
    """Enough matches; the hospital may challenge where boxes are until `deadline`."""
    ACCEPTED = 5
    RELEASED = 6
    """The server is paid, the hospital has its diagnosis."""
    FAILED = 7
    """Too few matches: the hospital has ERROR and its fee back."""
    STOPPED = 8
    """Somebody did not go on; who got what the closing event says."""

    @property
    def over(self) -> bool:
        """Whether nothing can happen any more."""
        return self >= QueryState.RELEASED


@dataclass(frozen=True)
class Place:
    """The chain and the contract that commitments hold for."""

    chain_id: int
    contract: Address

    def query_id(self, hospital: Address, salt: bytes) -> Digest:
        """A query's name: of one chain, contract, hospital and salt alone."""
        types = ["bytes32", "uint256", "address", "address", "bytes32"]
        return _hash(types, QUERY_TAG, self.chain_id, self.contract, hospital, salt)

    def query_context(self, query_id: Digest, hospital: Address) -> ArtifactContext:
        """What a sealed query is bound to."""
        return self._context(query_id, hospital, ArtifactKind.QUERY)

    def reports_context(self, query_id: Digest, server: Address) -> ArtifactContext:
        """What the sealed reports of a query are bound to."""
        return self._context(query_id, server, ArtifactKind.REPORTS)

    def _context(self, query_id: Digest, owner: Address, kind: ArtifactKind) -> ArtifactContext:
        number = int.from_bytes(query_id[:8], "big")  # the plaintext names the whole id
        return ArtifactContext(self.chain_id, self.contract, number, 0, owner, kind)


# Equations


def label_hash(query_id: Digest, position: int, label_secret: bytes, codes: Codes) -> Digest:
    """x_j of the true codes and y_j of the reported ones: equal if and only if the codes are."""
    types = ["bytes32", "bytes32", "uint256", "bytes32", "uint256"]
    return _hash(types, LABEL_TAG, query_id, position, label_secret, codes_word(codes))


def truth_mark(query_id: Digest, position: int, truth_salt: bytes, truth: Sequence[int]) -> Digest:
    """s_j: as good as random, and binds the true boxes for a challenge."""
    types = ["bytes32", "bytes32", "uint256", "bytes32", "uint256[8]"]
    return _hash(types, TRUTH_TAG, query_id, position, truth_salt, list(truth))


def label_commitment(mark: bytes, label: bytes) -> Digest:
    """L_j = H(s_j | x_j)."""
    return _hash(["bytes32"] * 3, MARK_TAG, mark, label)


def answer_commitment(answer_secret: bytes, answer: bytes) -> Digest:
    """A_j = H(u_j | y_j)."""
    return _hash(["bytes32"] * 3, ANSWER_TAG, answer_secret, answer)


def list_digest(items: Sequence[bytes]) -> Digest:
    """keccak of a list of 32 bytes each, as the contract takes it."""
    return _hash(["bytes32[]"], list(items))


def roles_commitment(query_id: Digest, salt: bytes, bitmap: int) -> Digest:
    """Binds which positions are audit images (bit j), until step 3 opens them."""
    return _hash(["bytes32", "bytes32", "bytes32", "uint256"], ROLES_TAG, query_id, salt, bitmap)


def encrypt_report(query_id: Digest, position: int, answer_secret: bytes, words: Sequence[int]) -> bytes:
    """c_j, 256 bytes: a report under a pad that u_j gives; the same again opens it.

    u_j is used for this alone, and fixed by A_j before anybody sees it.
    """
    types = ["bytes32", "bytes32", "uint256", "bytes32", "uint256"]
    pads = (_hash(types, PAD_TAG, query_id, position, answer_secret, i) for i in range(len(words)))
    return b"".join(
        (word ^ int.from_bytes(pad, "big")).to_bytes(32, "big") for word, pad in zip(words, pads, strict=True)
    )


def sealed_words(sealed: bytes) -> tuple[int, ...]:
    """The eight words of c_j."""
    return tuple(int.from_bytes(sealed[at : at + 32], "big") for at in range(0, len(sealed), 32))


def report_words(query_id: Digest, position: int, answer_secret: bytes, sealed: bytes) -> tuple[int, ...]:
    """The eight words in c_j, whatever they say."""
    return sealed_words(encrypt_report(query_id, position, answer_secret, sealed_words(sealed)))


def reports_digest(sealed: Sequence[bytes]) -> Digest:
    """W: keccak over the digests of all c_j; on the ledger with the answer."""
    return list_digest(report_digests(sealed))


def report_digests(sealed: Sequence[bytes]) -> list[Digest]:
    """w_j of each report."""
    return [Digest(keccak(item)) for item in sealed]


def _hash(types: Sequence[str], *values: object) -> Digest:
    return Digest(keccak(encode(types, values)))


# Step 1: the hospital asks


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


# Step 2: the server answers


@dataclass(frozen=True)
class OwnAnswer:
    """An answer as its server knows it: one report for each position, and the secret that all u_j come from."""

    query_id: Digest
    secret: bytes = field(repr=False)
    """32 bytes that this server keeps for all its answers."""
    label_secrets: tuple[bytes, ...] = field(repr=False)
    reports: tuple[tuple[Finding, ...], ...] = field(repr=False)

    def answer_secret(self, position: int) -> bytes:
        """u_j."""
        info = b"consilia/diagnosis/u/v1" + self.query_id + position.to_bytes(2, "big")
        return HKDFExpand(SHA256(), 32, info).derive(self.secret)

    def answer(self, position: int) -> Digest:
        """y_j."""
        codes = codes_of(self.reports[position])
        return label_hash(self.query_id, position, self.label_secrets[position], codes)

    def commitments(self) -> list[Digest]:
        """A_j of every position."""
        return [answer_commitment(self.answer_secret(j), self.answer(j)) for j in range(len(self.reports))]

    def sealed_reports(self) -> list[bytes]:
        """c_j of every position, 256 bytes each."""
        return [
            encrypt_report(self.query_id, j, self.answer_secret(j), to_words(report))
            for j, report in enumerate(self.reports)
        ]

    def opening(self, positions: Sequence[int]) -> tuple[list[bytes], list[Digest]]:
        """u_j and y_j of some positions."""
        return [self.answer_secret(j) for j in positions], [self.answer(j) for j in positions]


REPORT_BYTES = 256
REPORTS_MAGIC = b"CSLARPT1"


def write_reports(answer: OwnAnswer) -> bytes:
    """The plaintext of the reports' envelope: every c_j."""
    return REPORTS_MAGIC + answer.query_id + b"".join(answer.sealed_reports())


def read_reports(data: bytes, query_id: Digest, count: int, digest: Digest) -> list[bytes]:
    """Step 3: every c_j, which must be those that the ledger's W names.

    Raises:
        VerificationError: they are not.
    """
    body = data[40:]
    if data[:8] != REPORTS_MAGIC or data[8:40] != query_id or len(body) != REPORT_BYTES * count:
        raise VerificationError(f"expected {count} reports of this query: decline the answer")
    sealed = [body[at : at + REPORT_BYTES] for at in range(0, len(body), REPORT_BYTES)]
    if reports_digest(sealed) != digest:
        raise VerificationError("the reports in the store are not those of the ledger: decline the answer")
    return sealed


def positions_of(bitmap: int, count: int, audits: bool) -> list[int]:
    """The positions of audit images, or of hidden ones, ascending."""
    return [j for j in range(count) if bool(bitmap >> j & 1) == audits]


# Step 5: the hospital recovers


@dataclass(frozen=True)
class Diagnosis:
    """What the server found on one image: what the ledger's y_j says, with boxes and scores."""

    position: int
    findings: tuple[Finding, ...]

    @property
    def codes(self) -> Codes:
        """D'."""
        return codes_of(self.findings)


def recover(
    query_id: Digest, position: int, label_secret: bytes, answer_secret: bytes, answer: Digest, sealed: bytes
) -> Diagnosis:
    """Open a report with its u_j, and check that its codes are those of y_j.

    Raises:
        VerificationError: garbled, or another diagnosis than the server answered with.
    """
    findings = from_words(report_words(query_id, position, answer_secret, sealed))
    if label_hash(query_id, position, label_secret, codes_of(findings)) != answer:
        raise VerificationError("a report has other codes than the answer on the ledger: the server cheated")
    return Diagnosis(position, findings)


def codes_behind(
    query_id: Digest, position: int, label_secret: bytes, hashed: Digest, candidates: Iterable[Codes]
) -> Codes | None:
    """The diagnosis behind an x_j or y_j, by trying; only who has r_j can. None: no candidate.

    For a server it shows what an audit image was said to be; for a hospital, what a spoilt report was about.
    """
    tried = (codes for codes in candidates if label_hash(query_id, position, label_secret, codes) == hashed)
    return next(tried, None)
