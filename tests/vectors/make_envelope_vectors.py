"""The envelope a second time, in memory and with nothing of consilia imported, and vectors made with it.

It follows docs/formats/envelope.md line by line. Tests hold the real implementation against it, and use it to
seal what an honest sender never would.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from pathlib import Path

from blake3 import blake3
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from eth_keys import keys
from eth_utils import keccak

ORDER = 0xFFFFFFFF_FFFFFFFF_FFFFFFFF_FFFFFFFE_BAAEDCE6_AF48A03B_BFD25E8C_D0364141
CONTEXT = {
    "chain_id": 1337,
    "contract": "0x" + "11" * 20,
    "task_id": 7,
    "round_index": 3,
    "owner": "0x" + "22" * 20,
    "kind": 3,
    "schema_version": 1,
}


def extract(salt: bytes, ikm: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), ikm, "sha256")


def expand(prk: bytes, info: bytes, size: int, algorithm: str = "sha256") -> bytes:
    out = block = b""
    counter = 0
    while len(out) < size:
        counter += 1
        block = hmac.digest(prk, block + info + bytes([counter]), algorithm)
        out += block
    return out[:size]


def sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def encode_context(context: dict[str, int | str]) -> bytes:
    return (
        b"consilia/context/v1"
        + context["chain_id"].to_bytes(8, "big")
        + bytes.fromhex(context["contract"][2:])
        + context["task_id"].to_bytes(8, "big")
        + context["round_index"].to_bytes(4, "big")
        + bytes.fromhex(context["owner"][2:])
        + context["kind"].to_bytes(2, "big")
        + context["schema_version"].to_bytes(2, "big")
    )


def hpke_seal(recipient: bytes, plaintext: bytes, info: bytes, seed: bytes) -> bytes:
    def labeled_extract(suite: bytes, salt: bytes, label: bytes, ikm: bytes) -> bytes:
        return extract(salt, b"HPKE-v1" + suite + label + ikm)

    def labeled_expand(suite: bytes, prk: bytes, label: bytes, info: bytes, size: int) -> bytes:
        return expand(prk, size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info, size)

    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    ephemeral = X25519PrivateKey.from_private_bytes(
        labeled_expand(kem, labeled_extract(kem, b"", b"dkp_prk", seed), b"sk", b"", 32)
    )
    enc = ephemeral.public_key().public_bytes_raw()
    exchanged = ephemeral.exchange(X25519PublicKey.from_public_bytes(recipient))
    shared = labeled_expand(
        kem, labeled_extract(kem, b"", b"eae_prk", exchanged), b"shared_secret", enc + recipient, 32
    )
    context = (
        b"\x00"
        + labeled_extract(suite, b"", b"psk_id_hash", b"")
        + labeled_extract(suite, b"", b"info_hash", info)
    )
    secret = labeled_extract(suite, shared, b"secret", b"")
    key = labeled_expand(suite, secret, b"key", context, 32)
    return enc + AESGCM(key).encrypt(
        labeled_expand(suite, secret, b"base_nonce", context, 12), plaintext, b""
    )


def merkle(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, by its own recursive definition."""
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0])
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return sha256(b"\x01" + merkle(leaves[:split]) + merkle(leaves[split:]))


@dataclass
class Message:
    """An envelope with its parts, any of which a cheat may replace before it goes on."""

    sigma: bytes
    frame: bytes
    stanzas: list[bytes]
    salt: bytes | None = None

    def envelope(self, plaintext: bytes) -> bytes:
        prk = extract(b"consilia/cev1/keys", self.sigma)
        header = self.frame + b"".join(self.stanzas)
        header_digest = sha256(header)
        salt = self.salt or expand(prk, b"salt" + header_digest, 24)
        key = expand(prk, b"body" + header_digest, 32)
        label = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\x00"
        derived = expand(key, label + salt + header_digest, 76, "sha512")
        chunks = [plaintext[at : at + 16384] for at in range(0, len(plaintext) + 1, 16384)]
        base = int.from_bytes(derived[32:44], "big")
        sealed = [
            AESGCM(derived[:32]).encrypt((base ^ index).to_bytes(12, "big"), chunk, None)
            for index, chunk in enumerate(chunks)
        ]
        return header + salt + derived[44:] + b"".join(sealed)


def derive_sigma(rho: bytes, plaintext: bytes, context: bytes) -> bytes:
    wide = expand(extract(b"consilia/cev1/sigma", rho + blake3(plaintext).digest()), sha256(context), 48)
    return (int.from_bytes(wide, "big") % (ORDER - 1) + 1).to_bytes(32, "big")


def prepare(sigma: bytes, size: int, recipients: list[bytes], context: bytes) -> Message:
    ordered = sorted(recipients)
    frame = (
        b"CSLAENV1\x00\x20\x0e\x00"
        + len(ordered).to_bytes(2, "big")
        + size.to_bytes(8, "big")
        + sha256(context)
        + b"".join(map(sha256, ordered))
    )
    prk = extract(b"consilia/cev1/keys", sigma)
    stanzas = [
        hpke_seal(
            key,
            sigma,
            b"consilia/cev1" + sha256(frame),
            expand(prk, b"eph" + sha256(frame) + sha256(key), 32),
        )
        for key in ordered
    ]
    return Message(sigma, frame, stanzas)


def root_of(envelope: bytes) -> bytes:
    recipients = int.from_bytes(envelope[12:14], "big")
    header_end = 54 + 112 * recipients
    body = envelope[header_end + 56 :]
    leaves = [body[at : at + 1049600] for at in range(0, len(body), 1049600)]
    prefix = envelope[header_end : header_end + 56]
    return sha256(b"CEV1root" + sha256(envelope[:header_end]) + prefix + envelope[14:22] + merkle(leaves))


def plaintext_of(size: int) -> bytes:
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def spoilings(recipients: int, size: int) -> list[dict[str, object]]:
    """Ways to spoil an envelope, each with words that the refusal must contain."""
    header_end = 54 + 112 * recipients
    return [
        {"name": "magic", "at": 0, "xor": 1, "expect": "no envelope"},
        {"name": "kem", "at": 9, "xor": 1, "expect": "key encapsulation"},
        {"name": "chunk size", "at": 10, "xor": 1, "expect": "bytes 10 and 11"},
        {"name": "reserved byte", "at": 11, "xor": 1, "expect": "bytes 10 and 11"},
        {"name": "context digest", "at": 22, "xor": 128, "expect": "another context"},
        {"name": "key id", "at": 54, "xor": 1, "expect": "other recipients"},
        {"name": "salt", "at": header_end, "xor": 1, "expect": "salt or commitment"},
        {"name": "commitment", "at": header_end + 24, "xor": 1, "expect": "salt or commitment"},
        {"name": "first byte of the body", "at": header_end + 56, "xor": 1, "expect": "chunk 0"},
        {"name": "trailing byte", "append": "00", "expect": "after its end"},
        {"name": "cut in the last tag", "cut": 1, "expect": "chunk 0" if size else "was cut"},
        {"name": "cut in the frame", "cut": header_end + 56 + 16 + size - 20, "expect": "in its frame"},
    ]


def make_case(name: str, size: int, secrets: list[bytes]) -> dict[str, object]:
    recipients = [X25519PrivateKey.from_private_bytes(key).public_key().public_bytes_raw() for key in secrets]
    rho = sha256(b"rho of " + name.encode())
    plaintext, context = plaintext_of(size), encode_context(CONTEXT)
    sigma = derive_sigma(rho, plaintext, context)
    envelope = prepare(sigma, size, recipients, context).envelope(plaintext)
    case: dict[str, object] = {
        "name": name,
        "expect": "success",
        "plaintext_bytes": size,
        "identities": [key.hex() for key in secrets],
        "context": CONTEXT,
        "rho": rho.hex(),
        "sigma": sigma.hex(),
        "root": root_of(envelope).hex(),
        "key_hash": keccak(keys.PrivateKey(sigma).public_key.to_bytes()).hex(),
        "envelope_bytes": len(envelope),
        "envelope_sha256": sha256(envelope).hex(),
    }
    if size < 64:
        case["envelope"] = envelope.hex()
        case["spoiled"] = spoilings(len(secrets), size)
    return case


def make_vectors() -> dict[str, object]:
    keys_of = [sha256(b"identity %d" % index) for index in range(4)]
    return {
        "format": "docs/formats/envelope.md",
        "cases": [
            make_case("empty, one recipient", 0, keys_of[:1]),
            make_case("one byte, two recipients", 1, keys_of[:2]),
            make_case("a short chunk, four recipients", 50, keys_of),
            make_case("a byte less than a chunk", 16383, keys_of[:2]),
            make_case("a whole chunk", 16384, keys_of[:2]),
            make_case("a byte more than a chunk", 16385, keys_of[:2]),
            make_case("a byte less than a leaf", (1 << 20) - 1, keys_of[:1]),
            make_case("a whole leaf", 1 << 20, keys_of[:3]),
            make_case("a tree of three leaves", (2 << 20) + 12345, keys_of[:2]),
            make_case("a tree of six leaves", 5 << 20, keys_of[:2]),
        ],
    }


if __name__ == "__main__":
    path = Path(__file__).with_name("envelope.json")
    path.write_text(json.dumps(make_vectors(), indent=1) + "\n")
