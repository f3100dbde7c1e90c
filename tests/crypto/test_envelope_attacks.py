"""Attacks on the envelope, by the network, the store, a stranger, and a sender who cheats.

A cheating sender also registers the root of what it made: such envelopes fail although their root is right.
"""

from __future__ import annotations

import dataclasses
import io
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.artifact import CHUNK_BYTES, LEAF_BYTES, SEALED_CHUNK_BYTES, artifact_root
from consilia.crypto.envelope import (
    SECP256K1_ORDER,
    key_hash,
    open_envelope,
    open_with_secret,
    reseal_root,
    seal,
)
from consilia.errors import EnvelopeError
from consilia.values import ArtifactKind, Digest
from tests.crypto.sealing import (
    AUDITOR,
    CONTEXT,
    HOSPITAL,
    RECIPIENTS,
    RHO,
    SERVER,
    STRANGER,
    flipped,
    open_bytes,
    plaintext_of,
    seal_bytes,
)
from tests.vectors import make_envelope_vectors as reference

HEADER_BYTES = 54 + 112 * len(RECIPIENTS)
BODY_AT = HEADER_BYTES + 56
SMALL = plaintext_of(100)
SMALL_ENVELOPE, SMALL_SEALED = seal_bytes(SMALL)


def assert_refused(envelope: bytes, root: bytes) -> None:
    """Neither the recipient nor somebody with the secret opens it, and no changed byte comes out."""
    for attempt in (_open_as_recipient, _open_with_secret):
        out = io.BytesIO()
        with pytest.raises(EnvelopeError):
            attempt(envelope, out, Digest(root))
        assert SMALL.startswith(out.getvalue())


def _open_as_recipient(envelope: bytes, out: io.BytesIO, root: Digest) -> None:
    open_envelope(io.BytesIO(envelope), out, HOSPITAL, RECIPIENTS, CONTEXT, root)


def _open_with_secret(envelope: bytes, out: io.BytesIO, root: Digest) -> None:
    open_with_secret(io.BytesIO(envelope), out, SMALL_SEALED.secret, RECIPIENTS, CONTEXT, root)


def root_or_none(envelope: bytes) -> Digest | None:
    try:
        return artifact_root(io.BytesIO(envelope))
    except EnvelopeError:
        return None


# The network and the store


@pytest.mark.parametrize("at", range(BODY_AT))
def test_every_byte_before_the_body_counts(at):
    spoiled = flipped(SMALL_ENVELOPE, at, 0x80)
    assert_refused(spoiled, SMALL_SEALED.root)
    assert root_or_none(spoiled) != SMALL_SEALED.root
    # Even where the cheat could get the root of the spoiled envelope registered.
    assert_refused(spoiled, root_or_none(spoiled) or SMALL_SEALED.root)


@given(st.integers(0, len(SMALL_ENVELOPE) * 8 - 1))
def test_any_bit_flip_fails(bit):
    spoiled = flipped(SMALL_ENVELOPE, bit // 8, 1 << bit % 8)
    assert_refused(spoiled, SMALL_SEALED.root)
    assert root_or_none(spoiled) != SMALL_SEALED.root


def test_every_truncation_fails():
    for size in range(len(SMALL_ENVELOPE)):
        assert_refused(SMALL_ENVELOPE[:size], SMALL_SEALED.root)
        assert root_or_none(SMALL_ENVELOPE[:size]) is None


@pytest.mark.parametrize("size", [0, 100, CHUNK_BYTES - 1, CHUNK_BYTES, 1 << 20])
@pytest.mark.parametrize("tail", [b"\x00", bytes(16), bytes(SEALED_CHUNK_BYTES), "its own last chunk"])
def test_anything_after_the_end_fails(size, tail):
    envelope, sealed = seal_bytes(plaintext_of(size))
    last_chunk = envelope[len(envelope) - size % CHUNK_BYTES - 16 :]
    longer = envelope + (last_chunk if isinstance(tail, str) else tail)
    with pytest.raises(EnvelopeError):
        open_bytes(longer, sealed.root)
    assert root_or_none(longer) is None


LONG = plaintext_of((1 << 20) + 5 * CHUNK_BYTES + 77)
LONG_ENVELOPE, LONG_SEALED = seal_bytes(LONG)
LONG_BODY = LONG_ENVELOPE[BODY_AT:]
CHUNKS = [LONG_BODY[at : at + SEALED_CHUNK_BYTES] for at in range(0, len(LONG_BODY), SEALED_CHUNK_BYTES)]


@pytest.mark.parametrize("chunks", [1, 2, 63, 64, 65, 68, 69])
@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_truncation_at_chunk_and_leaf_boundaries_fails(chunks, difference):
    cut = LONG_ENVELOPE[: BODY_AT + chunks * SEALED_CHUNK_BYTES + difference]
    with pytest.raises(EnvelopeError):
        open_bytes(cut, LONG_SEALED.root)
    assert root_or_none(cut) is None


def _swapped(chunks: list[bytes], one: int, other: int) -> list[bytes]:
    moved = list(chunks)
    moved[one], moved[other] = moved[other], moved[one]
    return moved


@pytest.mark.parametrize(
    "chunks",
    [
        _swapped(CHUNKS, 0, 1),
        _swapped(CHUNKS, 3, 67),
        CHUNKS[64:128] + CHUNKS[:64],
        CHUNKS[1:],
        CHUNKS[:5] + CHUNKS[6:],
        CHUNKS[:5] + CHUNKS[4:],
        [*CHUNKS[:-2], CHUNKS[-1]],
        [CHUNKS[0]] * len(CHUNKS),
    ],
    ids=[
        "swap",
        "swap over leaves",
        "move leaves",
        "drop first",
        "drop",
        "repeat",
        "drop last whole",
        "all one",
    ],
)
def test_chunks_out_of_order_fail_and_only_a_true_beginning_was_written(chunks):
    envelope = LONG_ENVELOPE[:BODY_AT] + b"".join(chunks)
    for root in (LONG_SEALED.root, root_or_none(envelope) or LONG_SEALED.root):
        out = io.BytesIO()
        with pytest.raises(EnvelopeError):
            open_envelope(io.BytesIO(envelope), out, HOSPITAL, RECIPIENTS, CONTEXT, root)
        assert LONG.startswith(out.getvalue())


@pytest.mark.parametrize("at", [0, SEALED_CHUNK_BYTES, LEAF_BYTES - 1, LEAF_BYTES, len(LONG_BODY) - 1])
def test_no_byte_of_a_damaged_chunk_is_handed_on(at):
    out = io.BytesIO()
    with pytest.raises(EnvelopeError, match="chunk"):
        _open_as_recipient(flipped(LONG_ENVELOPE, BODY_AT + at), out, LONG_SEALED.root)
    assert LONG.startswith(out.getvalue())
    assert len(out.getvalue()) <= at // SEALED_CHUNK_BYTES * CHUNK_BYTES


def test_two_stanzas_swapped_fail():
    first, second = HEADER_BYTES - 240, HEADER_BYTES - 160
    swapped = b"".join(
        (
            SMALL_ENVELOPE[:first],
            SMALL_ENVELOPE[second : second + 80],
            SMALL_ENVELOPE[first:second],
            SMALL_ENVELOPE[second + 80 :],
        )
    )
    assert_refused(swapped, SMALL_SEALED.root)
    assert_refused(swapped, root_or_none(swapped))


def test_another_whole_envelope_under_this_root_fails():
    other, other_sealed = seal_bytes(SMALL, rho=bytes(32))
    with pytest.raises(EnvelopeError, match=f"has the root {other_sealed.root}"):
        open_bytes(other, SMALL_SEALED.root)


@pytest.mark.parametrize("data", [b"", b"CSLAENV1", b"PK\x03\x04" + bytes(500), bytes(500), os.urandom(500)])
def test_what_is_no_envelope_is_refused(data):
    assert_refused(data, SMALL_SEALED.root)
    assert root_or_none(data) is None


# A stranger, and the wrong place


def test_who_is_no_recipient_opens_nothing():
    with pytest.raises(EnvelopeError, match="not sealed for the recipient"):
        open_bytes(SMALL_ENVELOPE, SMALL_SEALED.root, STRANGER)
    out = io.BytesIO()
    with pytest.raises(EnvelopeError):
        open_with_secret(
            io.BytesIO(SMALL_ENVELOPE), out, bytes(31) + b"\x01", RECIPIENTS, CONTEXT, SMALL_SEALED.root
        )
    assert out.getvalue() == b""


@pytest.mark.parametrize(
    "recipients",
    [RECIPIENTS[:2], [*RECIPIENTS, STRANGER.recipient], [*RECIPIENTS[:2], STRANGER.recipient]],
    ids=["one less", "one more", "another"],
)
def test_a_list_of_recipients_other_than_agreed_is_refused(recipients):
    with pytest.raises(EnvelopeError, match="other recipients"):
        open_bytes(SMALL_ENVELOPE, SMALL_SEALED.root, recipients=recipients)
    envelope, sealed = seal_bytes(SMALL, recipients)
    with pytest.raises(EnvelopeError, match="other recipients"):
        open_bytes(envelope, sealed.root)


@pytest.mark.parametrize(
    "change",
    [
        {"chain_id": 1},
        {"contract": "0x" + "12" * 20},
        {"task_id": 8},
        {"round_index": 4},
        {"owner": "0x" + "23" * 20},
        {"kind": ArtifactKind.MODEL},
        {"schema_version": 2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_replay_in_another_context_fails(change):
    elsewhere = dataclasses.replace(CONTEXT, **change)
    with pytest.raises(EnvelopeError, match="another context"):
        open_bytes(SMALL_ENVELOPE, SMALL_SEALED.root, context=elsewhere)
    assert reseal_root(io.BytesIO(SMALL), SMALL_SEALED.secret, RECIPIENTS, elsewhere) != SMALL_SEALED.root
    # Nor does it help to write the other context's digest over the old one.
    forged = SMALL_ENVELOPE[:22] + Digest.of(elsewhere.encode()) + SMALL_ENVELOPE[54:]
    for root in (SMALL_SEALED.root, root_or_none(forged)):
        with pytest.raises(EnvelopeError):
            open_bytes(forged, root, context=elsewhere)


@pytest.mark.parametrize("address", ["0x" + "11" * 19, "0x" + "11" * 21, "0x"])
def test_a_context_with_shifted_fields_cannot_be_encoded(address):
    with pytest.raises(ValueError, match="20 bytes"):
        dataclasses.replace(CONTEXT, contract=address).encode()


# Who watches


def test_equal_plaintexts_sealed_twice_share_nothing_past_the_frame():
    plaintext = bytes(40000)
    one, _ = seal_bytes(plaintext, rho=os.urandom(32))
    other, _ = seal_bytes(plaintext, rho=os.urandom(32))
    frame_bytes = 54 + 32 * len(RECIPIENTS)
    assert one[:frame_bytes] == other[:frame_bytes]
    windows = {one[at : at + 8] for at in range(frame_bytes, len(one) - 8)}
    assert not any(other[at : at + 8] in windows for at in range(frame_bytes, len(other) - 8))


def test_a_broken_random_source_still_gives_other_data_and_places_other_keys():
    secrets = {
        seal_bytes(plaintext, context=context)[1].secret
        for plaintext in (b"a", b"b", b"")
        for context in (CONTEXT, dataclasses.replace(CONTEXT, round_index=4))
    }
    assert len(secrets) == 6


# A sender who cheats, and registers the root of what it made


def cheat(plaintext: bytes = SMALL, sigma: bytes = SMALL_SEALED.secret) -> reference.Message:
    return reference.prepare(sigma, len(plaintext), RECIPIENTS, CONTEXT.encode())


def refused_for_everybody(envelope: bytes, match: str) -> None:
    root = reference.root_of(envelope)
    for identity in (HOSPITAL, SERVER, AUDITOR):
        with pytest.raises(EnvelopeError, match=match):
            open_bytes(envelope, root, identity)


def test_the_second_implementation_is_a_good_one():
    assert cheat().envelope(SMALL) == SMALL_ENVELOPE


@pytest.mark.parametrize("place", range(len(RECIPIENTS)))
def test_one_recipient_given_another_secret_is_noticed_by_all(place):
    message = cheat()
    info = b"consilia/cev1" + reference.sha256(message.frame)
    other = reference.hpke_seal(sorted(RECIPIENTS)[place], bytes(31) + b"\x05", info, bytes(32))
    message.stanzas[place] = other
    refused_for_everybody(message.envelope(SMALL), "stanzas are not")


def test_one_recipient_shut_out_is_noticed_by_the_others():
    message = cheat()
    message.stanzas[0] = bytes(80)
    refused_for_everybody(message.envelope(SMALL), "stanzas are not|does not open")


def test_a_stanza_with_other_randomness_is_not_recomputable_and_refused():
    message = cheat()
    info = b"consilia/cev1" + reference.sha256(message.frame)
    message.stanzas[1] = reference.hpke_seal(sorted(RECIPIENTS)[1], message.sigma, info, os.urandom(32))
    refused_for_everybody(message.envelope(SMALL), "stanzas are not")


def test_a_chosen_salt_is_refused():
    message = cheat()
    message.salt = bytes(24)
    refused_for_everybody(message.envelope(SMALL), "salt or commitment")


@pytest.mark.parametrize("number", [0, SECP256K1_ORDER, SECP256K1_ORDER + 5, 2**256 - 1])
def test_a_secret_that_is_no_number_of_the_curve_is_refused(number):
    secret = number.to_bytes(32, "big")
    refused_for_everybody(cheat(sigma=secret).envelope(SMALL), "between 1 and the order")
    out = io.BytesIO()
    with pytest.raises(EnvelopeError, match="between 1 and the order"):
        _open_as_recipient(cheat(sigma=secret).envelope(SMALL), out, SMALL_SEALED.root)
    assert out.getvalue() == b""
    with pytest.raises(EnvelopeError, match="between 1 and the order"):
        key_hash(secret)
    with pytest.raises(EnvelopeError, match="between 1 and the order"):
        reseal_root(io.BytesIO(SMALL), secret, RECIPIENTS, CONTEXT)


@pytest.mark.parametrize("announced", [0, 99, 101, 1 << 40, 2**64 - 1])
def test_a_length_that_is_not_the_body_s_is_refused(announced):
    message = reference.prepare(SMALL_SEALED.secret, announced, RECIPIENTS, CONTEXT.encode())
    refused_for_everybody(message.envelope(SMALL), "after its end|lacks its last")


# What the sender is kept from doing

LOW_ORDER = [
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
    bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
]


@pytest.mark.parametrize("key", LOW_ORDER, ids=bytes.hex)
def test_nothing_is_sealed_to_a_key_of_low_order(key):
    with pytest.raises(EnvelopeError, match="low order"):
        seal_bytes(SMALL, [HOSPITAL.recipient, key])


@pytest.mark.parametrize(
    ("recipients", "words"),
    [
        ([], "1 to 65535"),
        ([HOSPITAL.recipient, HOSPITAL.recipient], "twice"),
        ([HOSPITAL.recipient[:31]], "canonical"),
        ([HOSPITAL.recipient + b"\x00"], "canonical"),
        ([flipped(HOSPITAL.recipient, 31, 0x80)], "canonical"),
        ([(2**255 - 19 + 9).to_bytes(32, "little")], "canonical"),
    ],
    ids=["none", "twice", "short", "long", "top bit", "not reduced"],
)
def test_malformed_recipients_are_refused(recipients, words):
    with pytest.raises(EnvelopeError, match=words):
        seal_bytes(SMALL, recipients)


def test_rho_of_another_size_is_refused():
    with pytest.raises(EnvelopeError, match="rho"):
        seal_bytes(SMALL, rho=RHO[:31])


class Changing(io.BytesIO):
    """A file that somebody writes to while it is being sealed."""

    def seek(self, *args: int) -> int:
        self.write(b"more")
        return super().seek(*args)


def test_a_plaintext_that_grows_meanwhile_is_refused():
    with pytest.raises(EnvelopeError, match="after its end"):
        seal(Changing(SMALL), io.BytesIO(), RECIPIENTS, CONTEXT, rho=RHO)
