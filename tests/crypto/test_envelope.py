"""The envelope does what it says: the vectors, round trips, re-computation, streaming in bounded memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.artifact import CHUNK_BYTES, Frame, RootHasher, artifact_root
from consilia.crypto.envelope import open_envelope, open_with_secret, reseal_root, seal
from consilia.crypto.keys import Identity
from consilia.errors import EnvelopeError
from consilia.values import ArtifactContext, ArtifactKind, Digest
from tests.crypto.sealing import (
    AUDITOR,
    CONTEXT,
    HOSPITAL,
    RECIPIENTS,
    RHO,
    SERVER,
    open_bytes,
    plaintext_of,
    seal_bytes,
)
from tests.vectors import make_envelope_vectors as reference

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "envelope.json").read_text())
SIZES = [
    0,
    1,
    1000,
    CHUNK_BYTES - 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    (1 << 20) - 1,
    1 << 20,
    (1 << 20) + 1,
    3 << 20,
]


def _named(case: dict) -> str:
    return case["name"]


def _of_case(case: dict) -> tuple[list[Identity], list[bytes], ArtifactContext]:
    identities = [Identity.from_bytes(bytes.fromhex(secret)) for secret in case["identities"]]
    context = ArtifactContext(**{**case["context"], "kind": ArtifactKind(case["context"]["kind"])})
    return identities, [identity.recipient for identity in identities], context


@pytest.mark.parametrize("case", VECTORS["cases"], ids=_named)
def test_vector_seals_to_the_same_bytes_and_opens_for_everybody(case):
    identities, recipients, context = _of_case(case)
    plaintext = plaintext_of(case["plaintext_bytes"])
    envelope, sealed = seal_bytes(plaintext, recipients, context, bytes.fromhex(case["rho"]))

    assert hashlib.sha256(envelope).hexdigest() == case["envelope_sha256"]
    assert envelope.hex() == case.get("envelope", envelope.hex())
    assert sealed.size == len(envelope) == case["envelope_bytes"]
    assert (sealed.secret.hex(), str(sealed.root)) == (case["sigma"], case["root"])
    assert str(sealed.key_hash) == case["key_hash"]
    for identity in identities:
        opened_plaintext, opened = open_bytes(envelope, sealed.root, identity, recipients, context)
        assert opened_plaintext == plaintext
        assert (opened.secret, opened.key_hash, opened.size) == (sealed.secret, sealed.key_hash, sealed.size)


@pytest.mark.parametrize(
    ("case", "spoiling"),
    [(case, spoiling) for case in VECTORS["cases"] for spoiling in case.get("spoiled", [])],
    ids=lambda value: value["name"],
)
def test_spoiled_vector_is_refused_in_the_words_foreseen(case, spoiling):
    identities, recipients, context = _of_case(case)
    spoiled = bytearray.fromhex(case["envelope"])
    if "at" in spoiling:
        spoiled[spoiling["at"]] ^= spoiling["xor"]
    spoiled = spoiled[: len(spoiled) - spoiling.get("cut", 0)] + bytes.fromhex(spoiling.get("append", ""))

    with pytest.raises(EnvelopeError, match=spoiling["expect"]):
        open_bytes(bytes(spoiled), bytes.fromhex(case["root"]), identities[0], recipients, context)


def test_vectors_are_what_their_generator_makes():
    assert reference.make_vectors() == VECTORS


@pytest.mark.parametrize("size", SIZES)
def test_round_trip_and_recomputation(size):
    plaintext = os.urandom(size)
    envelope, sealed = seal_bytes(plaintext, rho=os.urandom(32))

    assert sealed.size == len(envelope)
    assert artifact_root(io.BytesIO(envelope)) == sealed.root == reference.root_of(envelope)
    for identity in (HOSPITAL, SERVER, AUDITOR):
        assert open_bytes(envelope, sealed.root, identity)[0] == plaintext
    assert reseal_root(io.BytesIO(plaintext), sealed.secret, RECIPIENTS, CONTEXT) == sealed.root
    by_secret = io.BytesIO()
    open_with_secret(io.BytesIO(envelope), by_secret, sealed.secret, RECIPIENTS, CONTEXT, sealed.root)
    assert by_secret.getvalue() == plaintext


def test_the_order_of_recipients_does_not_matter():
    assert seal_bytes(b"weights", RECIPIENTS) == seal_bytes(b"weights", RECIPIENTS[::-1])
    envelope, sealed = seal_bytes(b"weights")
    assert open_bytes(envelope, sealed.root, recipients=RECIPIENTS[::-1])[0] == b"weights"


def test_seal_reads_from_where_the_stream_stands():
    stream, ciphertext = io.BytesIO(b"not this|weights"), io.BytesIO()
    stream.seek(9)
    sealed = seal(stream, ciphertext, RECIPIENTS, CONTEXT, rho=RHO)
    assert open_bytes(ciphertext.getvalue(), sealed.root)[0] == b"weights"
    stream.seek(9)
    assert reseal_root(stream, sealed.secret, RECIPIENTS, CONTEXT) == sealed.root


def test_reseal_root_tells_other_plaintexts_apart():
    _, sealed = seal_bytes(b"weights")
    for other in (b"weightt", b"weight", b"weights ", b""):
        assert reseal_root(io.BytesIO(other), sealed.secret, RECIPIENTS, CONTEXT) != sealed.root


def test_secrets_are_not_shown():
    envelope, sealed = seal_bytes(b"weights")
    _, opened = open_bytes(envelope, sealed.root)
    for shown in (repr(sealed), repr(opened), str(sealed)):
        assert sealed.secret.hex() not in shown
        assert repr(sealed.secret) not in shown


def test_frame_says_the_sizes():
    envelope, _ = seal_bytes(plaintext_of(40000))
    frame = Frame.parse(envelope)
    assert frame.plaintext_bytes == 40000
    assert frame.envelope_bytes == len(envelope)
    assert frame.encode() == envelope[: 54 + 32 * 3]


@given(st.binary(max_size=40000), st.lists(st.integers(1, 30000), max_size=8))
def test_root_is_the_same_in_any_chunking(plaintext, piece_sizes):
    envelope, sealed = seal_bytes(plaintext)
    hasher, at = RootHasher(), 0
    for size in piece_sizes:
        hasher.update(memoryview(envelope)[at : at + size])
        at += size
    hasher.update(bytearray(envelope[at:]))
    assert hasher.root() == sealed.root


class Dribble(io.BytesIO):
    """A stream that, like a socket, gives less than was asked for."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size, 997) if size is not None and size > 0 else size)


def test_streams_that_give_less_than_asked():
    plaintext = os.urandom(100_000)
    ciphertext, opened = io.BytesIO(), io.BytesIO()
    sealed = seal(Dribble(plaintext), ciphertext, RECIPIENTS, CONTEXT, rho=RHO)
    assert (ciphertext.getvalue(), sealed) == seal_bytes(plaintext)
    open_envelope(Dribble(ciphertext.getvalue()), opened, HOSPITAL, RECIPIENTS, CONTEXT, sealed.root)
    assert opened.getvalue() == plaintext


MEASURE = """
import os, sys
from pathlib import Path
from consilia.crypto.envelope import open_envelope, seal
from tests.crypto.sealing import CONTEXT, HOSPITAL, RECIPIENTS
def peak_kib():
    return int(next(l for l in open("/proc/self/status") if l.startswith("VmHWM")).split()[1])
home, before = Path(sys.argv[1]), peak_kib()
with (home / "plain").open("wb") as file:
    file.truncate(512 << 20)
with (home / "plain").open("rb") as plain, (home / "sealed").open("wb") as target:
    sealed = seal(plain, target, RECIPIENTS, CONTEXT, rho=os.urandom(32))
(home / "plain").unlink()
with (home / "sealed").open("rb") as source, open("/dev/null", "wb") as target:
    open_envelope(source, target, HOSPITAL, RECIPIENTS, CONTEXT, sealed.root)
print(peak_kib() - before)
"""


@pytest.mark.slow
def test_half_a_gigabyte_takes_a_few_megabytes_of_memory(tmp_path):
    ran = subprocess.run(
        [sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True
    )
    assert int(ran.stdout) < 32 * 1024


def test_digest_type_of_what_is_registered():
    _, sealed = seal_bytes(b"weights")
    assert isinstance(sealed.root, Digest)
    assert isinstance(sealed.key_hash, Digest)
