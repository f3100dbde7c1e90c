"""HPKE (RFC 9180) with X25519 and an ephemeral key derived from a seed, so that it can be rebuilt.

Libraries draw the ephemeral key themselves. An envelope's stanza must come out the same for everyone who
knows the envelope's secret; and the recipient's key may be in a token that gives out nothing but shared secrets. So
both directions are written here, from the library's primitives, and tested against its own. The library has no auth
mode, in which the sender shows that it holds a secret key: that is here, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from consilia.crypto.custody import Opener
from consilia.errors import EnvelopeError

_FIELD_PRIME = 2**255 - 19
_KEM_SUITE = b"KEM" + (0x0020).to_bytes(2, "big")
_BASE_MODE, _AUTH_MODE = b"\x00", b"\x02"
_TAG_BYTES = 16
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)


@dataclass(frozen=True)
class Aead:
    """An AEAD of RFC 9180 section 7.3: its number in the registry, and the size of its key."""

    number: int
    key_bytes: int


AES_128_GCM = Aead(0x0001, 16)
AES_256_GCM = Aead(0x0002, 32)


def seal_derandomised(
    recipient: bytes,
    plaintext: bytes,
    info: bytes,
    seed: bytes,
    *,
    aad: bytes = b"",
    aead: Aead = AES_256_GCM,
) -> bytes:
    """Seal one message with an ephemeral key derived from `seed` (RFC 9180 sections 6.1 and 7.1.3).

    Args:
        recipient: the X25519 public key, 32 bytes.
        seed: at least 32 bytes, secret and never used for another message.
        aead: AES-128 only to check the published vectors.

    Returns:
        `enc` (32 bytes), ciphertext and tag.

    Raises:
        EnvelopeError: the public key is malformed or of low order.
    """
    ephemeral = derive_key_pair(seed)
    enc = ephemeral.public_key().public_bytes_raw()
    key, nonce = key_schedule(shared_secret(recipient, ephemeral), info, aead)
    return enc + AESGCM(key).encrypt(nonce, plaintext, aad)


def seal(recipient: bytes, plaintext: bytes, info: bytes) -> bytes:
    """Seal one message with a random ephemeral key.

    Raises:
        EnvelopeError: the public key is malformed or of low order.
    """
    check_recipients([recipient])
    try:
        return _SUITE.encrypt(plaintext, X25519PublicKey.from_public_bytes(recipient), info)
    except ValueError as error:
        raise _low_order(recipient) from error


def open_sealed(ciphertext: bytes, opener: Opener, recipient: bytes, info: bytes) -> bytes:
    """Open a message (Decap of RFC 9180 section 4.1); the secret key stays where `opener` keeps it.

    Args:
        recipient: which of the opener's keys it is sealed to.

    Raises:
        EnvelopeError: damaged, for another key, or with another `info`.
    """
    enc, body = ciphertext[:32], ciphertext[32:]
    if len(body) < _TAG_BYTES:
        raise EnvelopeError(f"a sealed key has {32 + _TAG_BYTES} bytes or more, this has {len(ciphertext)}")
    exchanged = opener.exchange(recipient, enc)
    if not any(exchanged):  # RFC 9180 section 7.1.4; not every token checks it itself
        raise EnvelopeError(f"a sealed key does not open: it came with {enc.hex()}, of low order")
    key, nonce = key_schedule(_extract_and_expand(exchanged, enc, recipient), info, AES_256_GCM)
    try:
        return AESGCM(key).decrypt(nonce, body, b"")
    except InvalidTag as error:
        raise EnvelopeError(
            "a sealed key does not open: damaged, for another recipient, or elsewhere"
        ) from error


def check_recipients(recipients: Sequence[bytes]) -> None:
    """Refuse public keys that are not 32 canonical bytes, no key at all, and a key named twice.

    X25519 ignores the top bit and reduces the rest: without this check one key would have several names.

    Raises:
        EnvelopeError: with the key in hex.
    """
    if not recipients or len(recipients) > 0xFFFF:
        raise EnvelopeError(f"an artifact is sealed for 1 to 65535 recipients, {len(recipients)} came")
    for recipient in recipients:
        if len(recipient) != 32 or int.from_bytes(recipient, "little") >= _FIELD_PRIME:
            raise EnvelopeError(
                f"a recipient should be a canonical X25519 public key, {recipient.hex()} is not"
            )
    if len(set(recipients)) != len(recipients):
        raise EnvelopeError("a recipient is named twice; name each once")


def derive_key_pair(seed: bytes) -> X25519PrivateKey:
    """DeriveKeyPair of RFC 9180 section 7.1.3 for X25519."""
    prk = _labeled_extract(_KEM_SUITE, b"", b"dkp_prk", seed)
    return X25519PrivateKey.from_private_bytes(_labeled_expand(_KEM_SUITE, prk, b"sk", b"", 32))


def _exchange(ephemeral: X25519PrivateKey, recipient: bytes) -> bytes:
    try:
        return ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    except ValueError as error:
        raise _low_order(recipient) from error


def shared_secret(recipient: bytes, ephemeral: X25519PrivateKey) -> bytes:
    """The shared secret of Encap (RFC 9180 section 4.1) with a given ephemeral key."""
    exchanged = _exchange(ephemeral, recipient)
    return _extract_and_expand(exchanged, ephemeral.public_key().public_bytes_raw(), recipient)


def key_schedule(shared: bytes, info: bytes, aead: Aead, mode: bytes = _BASE_MODE) -> tuple[bytes, bytes]:
    """Key and nonce of the first message (RFC 9180 section 5.1)."""
    suite = b"HPKE" + b"".join(number.to_bytes(2, "big") for number in (0x0020, 0x0001, aead.number))
    context = b"".join(
        (
            mode,
            _labeled_extract(suite, b"", b"psk_id_hash", b""),
            _labeled_extract(suite, b"", b"info_hash", info),
        )
    )
    secret = _labeled_extract(suite, shared, b"secret", b"")
    key = _labeled_expand(suite, secret, b"key", context, aead.key_bytes)
    return key, _labeled_expand(suite, secret, b"base_nonce", context, 12)


def seal_authenticated(
    recipient: bytes,
    plaintext: bytes,
    info: bytes,
    opener: Opener,
    sender: bytes,
    seed: bytes,
    *,
    aad: bytes = b"",
    aead: Aead = AES_256_GCM,
) -> bytes:
    """Seal one message in auth mode (RFC 9180 section 5.1.3): who opens it knows that `sender`'s secret was at hand.

    Args:
        recipient: the X25519 public key, 32 bytes.
        sender: which of the opener's keys it comes from, 32 bytes.
        seed: at least 32 bytes, secret and never used for another message.
        aead: AES-128 only to check the published vectors.

    Returns:
        `enc` (32 bytes), ciphertext and tag.

    Raises:
        EnvelopeError: the public key is malformed or of low order.
    """
    check_recipients([recipient])
    ephemeral = derive_key_pair(seed)
    enc = ephemeral.public_key().public_bytes_raw()
    exchanged = _exchange(ephemeral, recipient)
    shared = _extract_and_expand(exchanged + opener.exchange(sender, recipient), enc, recipient + sender)
    key, nonce = key_schedule(shared, info, aead, _AUTH_MODE)
    return enc + AESGCM(key).encrypt(nonce, plaintext, aad)


def open_authenticated(
    ciphertext: bytes,
    opener: Opener,
    recipient: bytes,
    info: bytes,
    sender: bytes,
    *,
    aad: bytes = b"",
    aead: Aead = AES_256_GCM,
) -> bytes:
    """Open a message of `seal_authenticated`.

    Args:
        recipient: which of the opener's keys it is sealed to.
        sender: the public key whose secret half the sender must have held, 32 bytes.

    Raises:
        EnvelopeError: damaged, for another key, with another `info`, or by another sender.
    """
    check_recipients([sender])
    enc, body = ciphertext[:32], ciphertext[32:]
    if len(body) < _TAG_BYTES:
        raise EnvelopeError(
            f"a sealed message has {32 + _TAG_BYTES} bytes or more, this has {len(ciphertext)}"
        )
    exchanged = [opener.exchange(recipient, public) for public in (enc, sender)]
    if not all(map(any, exchanged)):  # RFC 9180 section 7.1.4; not every token checks it itself
        raise EnvelopeError("an authenticated message does not open: it came with a key of low order")
    shared = _extract_and_expand(b"".join(exchanged), enc, recipient + sender)
    key, nonce = key_schedule(shared, info, aead, _AUTH_MODE)
    try:
        return AESGCM(key).decrypt(nonce, body, aad)
    except InvalidTag as error:
        raise EnvelopeError(
            "an authenticated message does not open: damaged, for another recipient, or not by this sender"
        ) from error


def _extract_and_expand(exchanged: bytes, enc: bytes, public_keys: bytes) -> bytes:
    """ExtractAndExpand of DHKEM (RFC 9180 section 4.1); in auth mode the sender's key follows the recipient's."""
    prk = _labeled_extract(_KEM_SUITE, b"", b"eae_prk", exchanged)
    return _labeled_expand(_KEM_SUITE, prk, b"shared_secret", enc + public_keys, 32)


def _labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
    return HKDF.extract(SHA256(), salt, b"HPKE-v1" + suite + label + ikm)


def _labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
    labeled_info = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return HKDFExpand(SHA256(), size, labeled_info).derive(prk)


def _low_order(recipient: bytes) -> EnvelopeError:
    # An all-zero shared secret would be known to everybody (RFC 9180 section 7.1.4).
    return EnvelopeError(
        f"recipient {recipient.hex()} is a public key of low order; nothing may be sealed to it"
    )
