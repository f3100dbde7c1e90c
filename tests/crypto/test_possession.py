"""Proof of possession of a recipient key: HPKE's auth mode against RFC 9180 A.1.3, and the ways to cheat."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from consilia.crypto import hpke
from consilia.crypto.keys import Identity
from consilia.crypto.possession import ENTRY_BYTES, LABEL, prove, verify
from consilia.errors import EnvelopeError, VerificationError
from consilia.values import Digest

FILE = Path(__file__).parents[1] / "vectors" / "rfc9180_a13_auth.json"
VECTOR = {n: bytes.fromhex(v) for n, v in json.loads(FILE.read_text()).items() if n != "source"}
STATEMENT = Digest.of(b"this record, in this registry")


def test_rfc_9180_a13_both_ways() -> None:
    sender, receiver = Identity.from_bytes(VECTOR["skSm"]), Identity.from_bytes(VECTOR["skRm"])
    assert (sender.recipient, receiver.recipient) == (VECTOR["pkSm"], VECTOR["pkRm"])
    options = {"aad": VECTOR["aad"], "aead": hpke.AES_128_GCM}
    sealed = hpke.seal_authenticated(
        VECTOR["pkRm"], VECTOR["pt"], VECTOR["info"], sender, sender.recipient, VECTOR["ikmE"], **options
    )
    assert sealed == VECTOR["pkEm"] + VECTOR["ct"]
    opened = hpke.open_authenticated(
        sealed, receiver, VECTOR["pkRm"], VECTOR["info"], VECTOR["pkSm"], **options
    )
    assert opened == VECTOR["pt"]


@pytest.fixture
def newcomer() -> Identity:
    return Identity.generate()


@pytest.fixture
def members() -> list[Identity]:
    return [Identity.generate() for _ in range(3)]


def test_each_member_is_convinced_by_its_own_entry(newcomer: Identity, members: list[Identity]) -> None:
    proofs = prove(newcomer, newcomer.recipient, [member.recipient for member in members], STATEMENT)
    assert len(proofs) == 3 * ENTRY_BYTES
    for member in members:
        verify(proofs, member, newcomer.recipient, STATEMENT)


def test_who_lists_anothers_key_convinces_nobody(newcomer: Identity, members: list[Identity]) -> None:
    impostor, verifier = Identity.generate(), members[0]
    proofs = prove(impostor, impostor.recipient, [verifier.recipient], STATEMENT)
    with pytest.raises(VerificationError, match="does not show that the applicant holds"):
        verify(proofs, verifier, newcomer.recipient, STATEMENT)


def test_colluding_members_cannot_forge_for_another(newcomer: Identity, members: list[Identity]) -> None:
    """Who has two members' secret keys can fool those two, and still not the third."""
    base = hpke.seal(members[2].recipient, b"", LABEL + STATEMENT)  # what needs no secret key at all
    for entry in (
        members[2].recipient + base,
        members[2].recipient
        + prove(members[0], members[0].recipient, [members[2].recipient], STATEMENT)[32:],
        members[2].recipient + prove(newcomer, newcomer.recipient, [members[1].recipient], STATEMENT)[32:],
    ):
        with pytest.raises(VerificationError, match="does not show that the applicant holds"):
            verify(entry, members[2], newcomer.recipient, STATEMENT)


def test_a_proof_is_worth_nothing_for_another_record(newcomer: Identity, members: list[Identity]) -> None:
    proofs = prove(newcomer, newcomer.recipient, [members[0].recipient], STATEMENT)
    with pytest.raises(VerificationError):
        verify(proofs, members[0], newcomer.recipient, Digest.of(b"another record"))


def test_every_bit_counts(newcomer: Identity, members: list[Identity]) -> None:
    proofs = bytearray(prove(newcomer, newcomer.recipient, [members[0].recipient], STATEMENT))
    for at in range(32, len(proofs)):
        changed = bytes(proofs[:at]) + bytes([proofs[at] ^ 1]) + bytes(proofs[at + 1 :])
        with pytest.raises(VerificationError):
            verify(changed, members[0], newcomer.recipient, STATEMENT)


def test_malformed_proofs_and_missing_entries_are_named(newcomer: Identity, members: list[Identity]) -> None:
    proofs = prove(newcomer, newcomer.recipient, [members[0].recipient], STATEMENT)
    with pytest.raises(VerificationError, match="no entry for this member"):
        verify(proofs, members[1], newcomer.recipient, STATEMENT)
    for malformed in (proofs[:-1], proofs + b"\x00", os.urandom(ENTRY_BYTES * 65)):
        with pytest.raises(VerificationError, match="expected proofs of 80 bytes each"):
            verify(malformed, members[0], newcomer.recipient, STATEMENT)


def test_a_member_with_a_useless_key_keeps_nobody_out(newcomer: Identity, members: list[Identity]) -> None:
    useless = [b"\x01" + bytes(31), b"\xff" * 32]
    proofs = prove(newcomer, newcomer.recipient, [*useless, members[0].recipient], STATEMENT)
    assert len(proofs) == ENTRY_BYTES
    verify(proofs, members[0], newcomer.recipient, STATEMENT)


def test_a_claimed_key_of_low_order_proves_nothing(members: list[Identity]) -> None:
    newcomer = Identity.generate()
    proofs = prove(newcomer, newcomer.recipient, [members[0].recipient], STATEMENT)
    with pytest.raises(VerificationError):
        verify(proofs, members[0], b"\x01" + bytes(31), STATEMENT)


def test_short_messages_are_refused() -> None:
    with pytest.raises(EnvelopeError):
        hpke.open_authenticated(bytes(47), Identity.generate(), bytes(32), b"", Identity.generate().recipient)
