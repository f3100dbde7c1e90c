"""The envelope: sealed for several recipients, bound to its context, and re-computable by whoever opens it.

Every byte and why it is there: docs/formats/envelope.md. The steps here carry that page's names.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO

import coincurve
from blake3 import blake3
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand
from eth_hash.auto import keccak

from consilia.artifact import PREFIX_BYTES, STANZA_BYTES, Frame, RootHasher, fill, read_frame, read_full
from consilia.crypto import hpke
from consilia.crypto.cobblestone import SALT_BYTES, ChunkCipher
from consilia.crypto.custody import Opener
from consilia.errors import EnvelopeError
from consilia.values import ArtifactContext, Digest

SECP256K1_ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
_DIGEST_BYTES = 2 << 20
"""Read at a time for the plaintext's digest, while those before are hashed."""


@dataclass(frozen=True)
class Sealed:
    """What the sender registers of an envelope, and the secret that opens it."""

    root: Digest
    key_hash: Digest
    size: int
    """Bytes of the whole envelope."""
    secret: bytes = field(repr=False)
    """Sigma: hand it over to let somebody else open this envelope."""


@dataclass(frozen=True)
class Opened:
    """An envelope that was opened, rebuilt and has the root asked for; compare the rest with the ledger."""

    key_hash: Digest
    size: int
    """Bytes of the whole envelope."""
    secret: bytes = field(repr=False)


def seal(
    plaintext: BinaryIO,
    ciphertext: BinaryIO,
    recipients: Sequence[bytes],
    context: ArtifactContext,
    *,
    rho: bytes,
) -> Sealed:
    """Seal a stream, read twice from where it stands, for `recipients`.

    Args:
        plaintext: seekable.
        recipients: X25519 public keys, 32 bytes each, in any order; the owner's too, to open it again.
        rho: 32 fresh random bytes, to be forgotten.

    Raises:
        EnvelopeError: a recipient is malformed, of low order or named twice; the plaintext changed meanwhile.
    """
    if len(rho) != 32:
        raise EnvelopeError(f"rho should be 32 random bytes, {len(rho)} came")
    start = plaintext.tell()
    digest, plaintext_bytes = _digest_and_size(plaintext)
    plaintext.seek(start)
    secret = _derive_secret(rho, digest, context)
    frame = Frame.of(plaintext_bytes, context.encode(), recipients)
    root = _encrypt(plaintext, ciphertext, secret, frame, recipients)
    return Sealed(root, key_hash(secret), frame.envelope_bytes, secret)


def open_envelope(
    ciphertext: BinaryIO,
    plaintext: BinaryIO,
    identity: Opener,
    recipients: Sequence[bytes],
    context: ArtifactContext,
    root: Digest,
) -> Opened:
    """Open an envelope as one of its recipients, and check that it is the one registered as `root`.

    The plaintext is complete and the registered one only after the call has returned: write it to a temporary
    file, and delete that when the call raises.

    Args:
        recipients: all public keys that it must be sealed for, in any order.

    Raises:
        EnvelopeError: malformed, damaged, for others, of another context, or not rebuilt byte for byte.
    """
    frame, header = _read_header(ciphertext, recipients, context)
    secret = _open_stanza(frame, header, identity, recipients)
    return _decrypt(ciphertext, plaintext, secret, frame, header, recipients, root)


def read_secret(
    ciphertext: BinaryIO, identity: Opener, recipients: Sequence[bytes], context: ArtifactContext
) -> bytes:
    """The secret (sigma) that an envelope holds for one of its recipients; the body is not looked at.

    Raises:
        EnvelopeError: the head is malformed, for others, of another context, or holds no such secret.
    """
    frame, header = _read_header(ciphertext, recipients, context)
    return _open_stanza(frame, header, identity, recipients)


def open_with_secret(
    ciphertext: BinaryIO,
    plaintext: BinaryIO,
    secret: bytes,
    recipients: Sequence[bytes],
    context: ArtifactContext,
    root: Digest,
) -> Opened:
    """Open an envelope as somebody who was given its secret (sigma); otherwise as `open_envelope`."""
    frame, header = _read_header(ciphertext, recipients, context)
    return _decrypt(ciphertext, plaintext, secret, frame, header, recipients, root)


def reseal_root(
    plaintext: BinaryIO, secret: bytes, recipients: Sequence[bytes], context: ArtifactContext
) -> Digest:
    """Encrypt again and return the root: the source paper's check that this plaintext is what was registered.

    Args:
        plaintext: seekable; read from where it stands to its end.

    Raises:
        EnvelopeError: `secret` or a recipient cannot be one.
    """
    start = plaintext.tell()
    plaintext_bytes = plaintext.seek(0, io.SEEK_END) - start
    plaintext.seek(start)
    frame = Frame.of(plaintext_bytes, context.encode(), recipients)
    return _encrypt(plaintext, None, secret, frame, recipients)


def key_hash(secret: bytes) -> Digest:
    """keccak256(x | y) of secret * G on secp256k1: what the ledger keeps of an envelope's secret.

    Raises:
        EnvelopeError: the secret is not 32 bytes between 1 and the order of the curve less 1.
    """
    _check_secret(secret)
    point = coincurve.PublicKey.from_valid_secret(secret).format(compressed=False)
    return Digest(keccak(point[1:]))


@dataclass(frozen=True)
class _Keys:
    """All that follows from a secret and a frame: the rebuilt header, and the cipher of the body."""

    header: bytes
    cipher: ChunkCipher


def _derive_keys(secret: bytes, frame: Frame, recipients: Sequence[bytes]) -> _Keys:
    hpke.check_recipients(recipients)
    _check_secret(secret)
    prk = HKDF.extract(SHA256(), b"consilia/cev1/keys", secret)
    encoded = frame.encode()
    info = _stanza_info(encoded)
    frame_digest = hashlib.sha256(encoded).digest()
    stanzas = [
        hpke.seal_derandomised(recipient, secret, info, _expand(prk, b"eph" + frame_digest + key_id, 32))
        for recipient, key_id in zip(sorted(recipients), frame.key_ids, strict=True)
    ]
    header = b"".join((encoded, *stanzas))
    header_digest = hashlib.sha256(header).digest()
    salt = _expand(prk, b"salt" + header_digest, SALT_BYTES)
    return _Keys(header, ChunkCipher(_expand(prk, b"body" + header_digest, 32), salt, header_digest))


def _encrypt(
    plaintext: BinaryIO,
    ciphertext: BinaryIO | None,
    secret: bytes,
    frame: Frame,
    recipients: Sequence[bytes],
) -> Digest:
    """Encrypt into `ciphertext`, or nowhere, and return the root."""
    keys = _derive_keys(secret, frame, recipients)
    hasher = RootHasher()
    for part in (keys.header, keys.cipher.prefix):
        hasher.update(part)
        if ciphertext is not None:
            ciphertext.write(part)
    for leaf in keys.cipher.encrypt(plaintext):
        hasher.add_leaf(leaf.digest, leaf.sealed_bytes)
        if ciphertext is not None:
            ciphertext.write(leaf.data)
    return hasher.root()


def _decrypt(
    ciphertext: BinaryIO,
    plaintext: BinaryIO,
    secret: bytes,
    frame: Frame,
    header: bytes,
    recipients: Sequence[bytes],
    root: Digest,
) -> Opened:
    """Rebuild the header, decrypt what follows it, and compare length and root at the end."""
    keys = _derive_keys(secret, frame, recipients)
    # Every stanza, not only one's own: a sender that gives each recipient another secret is caught by all.
    if header != keys.header:
        raise EnvelopeError(
            "an envelope's stanzas are not those that its secret gives: the sender cheated or it is damaged"
        )
    hasher = RootHasher()
    hasher.update(header)
    prefix = read_full(ciphertext, PREFIX_BYTES)
    keys.cipher.check_prefix(prefix)
    hasher.update(prefix)
    for leaf in keys.cipher.decrypt(ciphertext, frame.body_bytes):
        hasher.add_leaf(leaf.digest, leaf.sealed_bytes)
        plaintext.write(leaf.data)
    found = hasher.root()
    if found != root:
        raise EnvelopeError(f"an envelope is whole but has the root {found}, and {root} was asked for")
    return Opened(key_hash(secret), frame.envelope_bytes, secret)


def _read_header(
    ciphertext: BinaryIO, recipients: Sequence[bytes], context: ArtifactContext
) -> tuple[Frame, bytes]:
    """Read frame and stanzas; refuse a frame that is not for just this context and these recipients."""
    hpke.check_recipients(recipients)
    frame = read_frame(ciphertext)
    expected = Frame.of(frame.plaintext_bytes, context.encode(), recipients)
    if frame.context_digest != expected.context_digest:
        raise EnvelopeError(f"an envelope was sealed for another context than {context}")
    if frame.key_ids != expected.key_ids:
        raise EnvelopeError(f"an envelope is sealed for other recipients than the {len(recipients)} expected")
    stanzas = read_full(ciphertext, STANZA_BYTES * len(recipients))
    return frame, frame.encode() + stanzas


def _open_stanza(frame: Frame, header: bytes, identity: Opener, recipients: Sequence[bytes]) -> bytes:
    own = next((key for key in identity.recipients if key in recipients), None)
    if own is None:
        raise EnvelopeError(f"an envelope is not sealed for the recipient {identity.recipient.hex()}")
    stanzas_at = frame.header_bytes - STANZA_BYTES * len(recipients)
    at = stanzas_at + STANZA_BYTES * sorted(recipients).index(own)
    info = _stanza_info(header[:stanzas_at])
    return hpke.open_sealed(header[at : at + STANZA_BYTES], identity, own, info)


def _digest_and_size(plaintext: BinaryIO) -> tuple[bytes, int]:
    rooms = [memoryview(bytearray(_DIGEST_BYTES))]
    size = fill(plaintext, rooms[0])
    if size < _DIGEST_BYTES:
        return blake3(rooms[0][:size]).digest(), size
    rooms.append(memoryview(bytearray(_DIGEST_BYTES)))
    hasher = blake3(max_threads=blake3.AUTO)
    with ThreadPoolExecutor(1) as beside:
        hashed = beside.submit(hasher.update, rooms[0])
        while came := fill(plaintext, rooms[1]):
            hashed.result()
            hashed = beside.submit(hasher.update, rooms[1][:came])
            rooms.reverse()
            size += came
        hashed.result()
    return hasher.digest(), size


def _derive_secret(rho: bytes, digest: bytes, context: ArtifactContext) -> bytes:
    """Sigma, as a number between 1 and the curve's order less 1; 48 bytes make the bias of `mod` negligible.

    The plaintext's digest is a hedge: with a broken source of rho, other data still get another key.
    """
    prk = HKDF.extract(SHA256(), b"consilia/cev1/sigma", rho + digest)
    wide = _expand(prk, hashlib.sha256(context.encode()).digest(), 48)
    return (int.from_bytes(wide, "big") % (SECP256K1_ORDER - 1) + 1).to_bytes(32, "big")


def _check_secret(secret: bytes) -> None:
    # From a cheat, 0 or a number past the order would decrypt well but have no key hash, or somebody else's.
    if len(secret) != 32 or not 0 < int.from_bytes(secret, "big") < SECP256K1_ORDER:
        raise EnvelopeError(
            "an envelope's secret should be 32 bytes between 1 and the order of secp256k1 less 1"
        )


def _stanza_info(encoded_frame: bytes) -> bytes:
    return b"consilia/cev1" + hashlib.sha256(encoded_frame).digest()


def _expand(prk: bytes, info: bytes, size: int) -> bytes:
    return HKDFExpand(SHA256(), size, info).derive(prk)
