"""The second opinion as values and equations (PROTOCOLS section 4, docs/protocols/diagnosis.md).

Steps: 0 offer, 1 ask, 2 answer, 3 open_audit, 4 score and accept (or challenge), 5 release.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum

from eth_abi.abi import encode
from eth_hash.auto import keccak

from consilia.protocols.findings import Codes, Finding, codes_word
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


def positions_of(bitmap: int, count: int, audits: bool) -> list[int]:
    """The positions of audit images, or of hidden ones, ascending."""
    return [j for j in range(count) if bool(bitmap >> j & 1) == audits]
