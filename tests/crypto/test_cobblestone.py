"""The body of an envelope against the C2SP chunked-encryption vectors."""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from pathlib import Path

import pytest

from consilia.artifact import CHUNK_BYTES
from consilia.crypto.cobblestone import SALT_BYTES, ChunkCipher
from consilia.errors import EnvelopeError

PREFIX_BYTES = SALT_BYTES + 32


def _vectors() -> list:
    found = []
    for bits in (128, 256):
        name = f"c2sp_chunked_encryption_aes_{bits}_gcm_test.json"
        document = json.loads((Path(__file__).parents[1] / "vectors" / name).read_text())
        tests = [test for group in document["testGroups"] for test in group["tests"]]
        found += [pytest.param(test, id=f"{bits}-{test['tcId']}-{test['comment']}") for test in tests]
    return found


def _message(test: dict) -> bytes:
    data = bytes.fromhex(test["ct"])
    return zlib.decompress(data) if data[:1] == b"\x78" else data


def _open(test: dict, out: io.BytesIO) -> None:
    stream = io.BytesIO(_message(test))
    prefix = stream.read(PREFIX_BYTES)
    cipher = ChunkCipher(bytes.fromhex(test["key"]), prefix[:SALT_BYTES], bytes.fromhex(test["ctx"]))
    cipher.check_prefix(prefix)
    for leaf in cipher.decrypt(stream):
        out.write(leaf.data)


@pytest.mark.parametrize("test", _vectors())
def test_c2sp_vector(test):
    out = io.BytesIO()
    if test["result"] == "valid":
        _open(test, out)
        assert hashlib.sha512(out.getvalue()).hexdigest() == test["msgSha512"]
        assert len(out.getvalue()) == test["msgLength"]
        assert _sealed_again(test, out.getvalue()) == _message(test)
        return
    with pytest.raises(EnvelopeError):
        _open(test, out)
    # What was handed on before the refusal is a beginning of the longest authentic one that the vector knows.
    assert len(out.getvalue()) <= test.get("msgLength", 0)
    if len(out.getvalue()) == test.get("msgLength"):
        assert hashlib.sha512(out.getvalue()).hexdigest() == test["msgSha512"]


def _sealed_again(test: dict, plaintext: bytes) -> bytes:
    salt = _message(test)[:SALT_BYTES]
    cipher = ChunkCipher(bytes.fromhex(test["key"]), salt, bytes.fromhex(test["ctx"]))
    return cipher.prefix + b"".join(bytes(leaf.data) for leaf in cipher.encrypt(io.BytesIO(plaintext)))


def test_the_vectors_are_all_there():
    results = [test.values[0]["result"] for test in _vectors()]
    assert len(results) == 70
    assert 0 < results.count("valid") < 70


@pytest.mark.parametrize(("key_bytes", "salt_bytes"), [(24, 24), (0, 24), (32, 23), (32, 32)])
def test_keys_and_salts_of_another_size_are_refused(key_bytes, salt_bytes):
    with pytest.raises(EnvelopeError, match="bytes wanted"):
        ChunkCipher(bytes(key_bytes), bytes(salt_bytes), b"")


def test_no_two_chunks_share_a_nonce():
    cipher = ChunkCipher(bytes(32), bytes(24), b"")
    body = b"".join(bytes(leaf.data) for leaf in cipher.encrypt(io.BytesIO(bytes(130 * CHUNK_BYTES))))
    chunks = {body[at : at + CHUNK_BYTES] for at in range(0, 130 * (CHUNK_BYTES + 16), CHUNK_BYTES + 16)}
    assert len(chunks) == 130
