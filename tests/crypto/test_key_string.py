"""The key string: everybody opens its own entry, nobody another's."""

from __future__ import annotations

import hashlib

import pytest

from consilia.crypto.key_string import open_key_string, seal_key_string
from consilia.crypto.keys import Identity
from consilia.errors import EnvelopeError
from tests.crypto.sealing import CONTEXT, HOSPITAL, SERVER, STRANGER, flipped

INFO = CONTEXT.encode()
HOSPITALS = [Identity.from_bytes(hashlib.sha256(bytes([n])).digest()) for n in range(4)]
TASK_KEYS = {hospital.recipient: Identity.generate() for hospital in HOSPITALS}
DATA = seal_key_string(TASK_KEYS, INFO)
ENTRIES = [DATA[at : at + 112] for at in range(10, len(DATA), 112)]


def _joined(entries: list[bytes], count: int | None = None) -> bytes:
    return DATA[:8] + (len(entries) if count is None else count).to_bytes(2, "big") + b"".join(entries)


def _place(hospital: Identity) -> int:
    key_id = hashlib.sha256(hospital.recipient).digest()
    return next(place for place, entry in enumerate(ENTRIES) if entry[:32] == key_id)


@pytest.mark.parametrize("hospital", HOSPITALS, ids=repr)
def test_every_hospital_opens_its_own_key(hospital):
    opened = open_key_string(DATA, hospital, INFO)
    assert opened.secret_bytes == TASK_KEYS[hospital.recipient].secret_bytes
    assert opened.recipient == TASK_KEYS[hospital.recipient].recipient


def test_no_task_secret_is_in_the_clear():
    assert not any(task_key.secret_bytes in DATA for task_key in TASK_KEYS.values())
    assert seal_key_string(TASK_KEYS, INFO) != DATA


def test_who_has_not_enrolled_opens_nothing():
    with pytest.raises(EnvelopeError, match="no entry"):
        open_key_string(DATA, STRANGER, INFO)


def test_another_context_opens_nothing():
    with pytest.raises(EnvelopeError, match="does not open"):
        open_key_string(DATA, HOSPITALS[0], INFO + b"\x00")


def test_a_neighbour_s_entry_under_one_s_own_name_does_not_open():
    own, other = _place(HOSPITALS[0]), _place(HOSPITALS[1])
    entries = list(ENTRIES)
    entries[own] = ENTRIES[own][:32] + ENTRIES[other][32:]
    with pytest.raises(EnvelopeError, match="does not open"):
        open_key_string(_joined(entries), HOSPITALS[0], INFO)


def test_every_changed_byte_of_one_s_own_entry_and_of_the_head_is_noticed():
    start = 10 + 112 * _place(HOSPITALS[2])
    for at in [*range(10), *range(start, start + 112)]:
        with pytest.raises(EnvelopeError):
            open_key_string(flipped(DATA, at), HOSPITALS[2], INFO)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        DATA[:9],
        DATA[:-1],
        DATA + b"\x00",
        _joined([]),
        _joined(ENTRIES, 3),
        _joined(ENTRIES[::-1]),
        _joined([ENTRIES[0], *ENTRIES]),
    ],
    ids=["empty", "head cut", "cut", "longer", "no entries", "miscounted", "unordered", "twice"],
)
def test_what_is_not_canonical_is_refused(data):
    for hospital in HOSPITALS:
        with pytest.raises(EnvelopeError):
            open_key_string(data, hospital, INFO)


@pytest.mark.parametrize(
    "recipient", [bytes(32), bytes(31), b"\xff" * 32], ids=["low order", "short", "large"]
)
def test_nothing_is_sealed_to_a_malformed_key(recipient):
    with pytest.raises(EnvelopeError):
        seal_key_string({HOSPITAL.recipient: SERVER, recipient: SERVER}, INFO)
    with pytest.raises(EnvelopeError):
        seal_key_string({}, INFO)
