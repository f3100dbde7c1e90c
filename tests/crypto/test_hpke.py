"""HPKE against RFC 9180 A.1, and against the library's own implementation, both ways."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hpke as library
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from consilia.crypto import hpke
from consilia.crypto.keys import Identity
from consilia.errors import EnvelopeError

VECTOR = {
    name: value if name == "source" else bytes.fromhex(value)
    for name, value in json.loads(
        (Path(__file__).parents[1] / "vectors" / "rfc9180_a1.json").read_text()
    ).items()
}
SUITE = library.Suite(library.KEM.X25519, library.KDF.HKDF_SHA256, library.AEAD.AES_256_GCM)


def test_rfc_9180_a1_step_by_step():
    ephemeral = hpke.derive_key_pair(VECTOR["ikmE"])
    assert ephemeral.private_bytes_raw() == VECTOR["skEm"]
    assert ephemeral.public_key().public_bytes_raw() == VECTOR["pkEm"]
    recipient = hpke.derive_key_pair(VECTOR["ikmR"])
    assert recipient.private_bytes_raw() == VECTOR["skRm"]
    assert recipient.public_key().public_bytes_raw() == VECTOR["pkRm"]
    shared = hpke.shared_secret(VECTOR["pkRm"], ephemeral)
    assert shared == VECTOR["shared_secret"]
    assert hpke.key_schedule(shared, VECTOR["info"], hpke.AES_128_GCM) == (
        VECTOR["key"],
        VECTOR["base_nonce"],
    )


def test_rfc_9180_a1_as_a_whole():
    sealed = hpke.seal_derandomised(
        VECTOR["pkRm"],
        VECTOR["pt"],
        VECTOR["info"],
        VECTOR["ikmE"],
        aad=VECTOR["aad"],
        aead=hpke.AES_128_GCM,
    )
    assert sealed == VECTOR["enc"] + VECTOR["ct"]


@pytest.mark.parametrize("size", [0, 1, 32, 1000])
def test_the_library_opens_what_we_seal_and_we_what_it_seals(size):
    key, message, info = X25519PrivateKey.generate(), os.urandom(size), b"where and what"
    recipient = key.public_key().public_bytes_raw()
    ours = hpke.seal_derandomised(recipient, message, info, os.urandom(32))
    assert SUITE.decrypt(ours, key, info) == message
    theirs = SUITE.encrypt(message, X25519PublicKey.from_public_bytes(recipient), info)
    assert len(theirs) == len(ours)
    assert hpke.open_sealed(theirs, Identity(key), recipient, info) == message


def test_sealing_depends_on_seed_recipient_and_info_alone():
    recipient, other = (
        X25519PrivateKey.from_private_bytes(bytes([n]) * 32).public_key().public_bytes_raw() for n in (1, 2)
    )
    first = hpke.seal_derandomised(recipient, b"m", b"info", bytes(32))
    assert hpke.seal_derandomised(recipient, b"m", b"info", bytes(32)) == first
    assert hpke.seal_derandomised(recipient, b"m", b"info", bytes([1]) * 32)[:32] != first[:32]
    assert hpke.seal_derandomised(other, b"m", b"info", bytes(32))[32:] != first[32:]
    assert hpke.seal_derandomised(recipient, b"m", b"other", bytes(32))[32:] != first[32:]


def test_wrong_key_wrong_info_and_every_changed_byte_are_refused():
    key = Identity.generate()
    sealed = hpke.seal(key.recipient, b"secret", b"info")
    assert hpke.open_sealed(sealed, key, key.recipient, b"info") == b"secret"
    spoiled = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    for data in [*spoiled, b"", sealed[:31], sealed[:-1], sealed + b"\x00", bytes(len(sealed))]:
        with pytest.raises(EnvelopeError):
            hpke.open_sealed(data, key, key.recipient, b"info")
    for other, info in ((Identity.generate(), b"info"), (key, b"elsewhere")):
        with pytest.raises(EnvelopeError):
            hpke.open_sealed(sealed, other, other.recipient, info)


class CarelessToken(Identity):
    """A token that does not check what X25519 gives it."""

    def exchange(self, recipient: bytes, public_key: bytes) -> bytes:
        return bytes(32)


def test_a_secret_that_everybody_knows_opens_nothing_though_the_token_gives_it():
    # whoever sends a key of low order knows the shared secret of zeros, and so could seal as if to anybody
    token = CarelessToken.from_bytes(bytes(range(32)))
    enc = bytes(32)
    key, nonce = hpke.key_schedule(
        hpke._extract_and_expand(bytes(32), enc, token.recipient), b"info", hpke.AES_256_GCM
    )
    forged = enc + AESGCM(key).encrypt(nonce, b"forged", b"")
    with pytest.raises(EnvelopeError, match="low order"):
        hpke.open_sealed(forged, token, token.recipient, b"info")


@pytest.mark.parametrize("key", [bytes(32), b"\x01" + bytes(31)], ids=bytes.hex)
def test_low_order_keys_are_refused_both_ways_of_sealing(key):
    with pytest.raises(EnvelopeError, match="low order"):
        hpke.seal_derandomised(key, b"m", b"", bytes(32))
    with pytest.raises(EnvelopeError, match="low order"):
        hpke.seal(key, b"m", b"")
