"""The messages between nodes: their bytes, and a fuzzer that tries to get anything else past the decoder."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from consilia.errors import ChainError, MessageError
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.message import (
    MAX_ITEMS,
    MAX_MESSAGE_BYTES,
    MAX_TOLD,
    MAX_URL_BYTES,
    Kind,
    Message,
    Reply,
    Verdict,
    claimed_sender,
    seal_reply,
)
from consilia.ledger.embedded.node_key import NodeKey
from consilia.ledger.embedded.standing import (
    CUT_OFF_SECONDS,
    MESSAGE_BURST,
    MESSAGES_PER_SECOND,
    SLIPS_PER_MINUTE,
    STAMPS_REMEMBERED,
    Standing,
)

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "node-message.json").read_text())
NETWORK = bytes(range(32))
KEY = NodeKey(b"\1" * 32)
OTHER = NodeKey(b"\2" * 32)
URLS = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=MAX_URL_BYTES)


def patient(examples: int) -> hypothesis_settings:
    """As many examples as that, however slow the machine."""
    return hypothesis_settings(max_examples=examples, deadline=None)


MESSAGES = st.builds(
    Message,
    kind=st.sampled_from(list(Kind)),
    sender=st.just(KEY.address),
    recipient=st.binary(min_size=20, max_size=20),
    session=st.binary(min_size=16, max_size=16),
    stamp_us=st.integers(0, 2**64 - 1),
    told=st.lists(URLS, max_size=4).map(tuple),
    items=st.lists(st.binary(max_size=200), max_size=6).map(tuple),
)


@patient(60)
@given(MESSAGES)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    data = message.seal(NETWORK, KEY)
    assert Message.open(NETWORK, data) == replace(message, signer=KEY.address)
    assert claimed_sender(data) == KEY.address


@patient(60)
@given(MESSAGES, st.data())
def test_after_any_changed_byte_nobody_has_signed_it(message: Message, draw: st.DataObject) -> None:
    data = bytearray(message.seal(NETWORK, KEY))
    at = draw.draw(st.integers(0, len(data) - 1))
    data[at] ^= draw.draw(st.integers(1, 255))
    assert signer_of(bytes(data)) != KEY.address


def signer_of(data: bytes) -> bytes:
    """Whose message these bytes are; any 65 bytes may be a signature of somebody unknown."""
    try:
        return Message.open(NETWORK, data).signer
    except MessageError:
        return b""


@patient(60)
@given(MESSAGES, st.data())
def test_any_cut_or_trailing_byte_is_refused(message: Message, draw: st.DataObject) -> None:
    data = message.seal(NETWORK, KEY)
    cut = draw.draw(st.integers(0, len(data) - 1))
    for torn in (data[:cut], data + draw.draw(st.binary(min_size=1, max_size=80))):
        assert signer_of(torn) != KEY.address


@patient(400)
@given(st.binary(max_size=400))
def test_noise_is_refused_by_every_decoder(noise: bytes) -> None:
    for data in (noise, b"CSM1" + noise, b"CSM1\1" + noise):
        assert signer_of(data) not in (KEY.address, OTHER.address)
    with pytest.raises(ChainError):
        Block.decode(noise)
    try:  # any 65 bytes may be a signature of somebody unknown
        reply = Reply.open(NETWORK, b"request", b"CSR1" + noise)
    except MessageError:
        return
    assert reply.signer not in (KEY.address, OTHER.address)


@patient(300)
@given(st.binary(max_size=300), st.binary(min_size=32, max_size=32))
def test_signed_noise_is_refused_or_well_formed(noise: bytes, network: bytes) -> None:
    """A member signs whatever it likes: what the decoder takes must encode to the same bytes."""
    head = b"CSM1" + bytes([1 + noise[0] % 6 if noise else 1]) + KEY.address + bytes(36) + bytes(8)
    body = head + noise
    data = body + KEY.sign(sha256(b"consilia/node-message/v1" + network + body).digest())
    try:
        message = Message.open(network, data)
    except MessageError:
        return
    assert message.signer == KEY.address
    assert message.seal(network, KEY) == data


@patient(60)
@given(st.sampled_from(list(Verdict)), st.lists(st.binary(max_size=200), max_size=6).map(tuple))
def test_a_reply_is_of_one_request(verdict: Verdict, items: tuple[bytes, ...]) -> None:
    data = seal_reply(NETWORK, KEY, b"request", verdict, items)
    reply = Reply.open(NETWORK, b"request", data)
    assert (reply.verdict, reply.items, reply.signer) == (verdict, items, KEY.address)
    for network, request in ((NETWORK, b"another"), (bytes(32), b"request")):
        try:
            assert Reply.open(network, request, data).signer != KEY.address
        except MessageError:
            continue


def message(**changes: Any) -> Message:
    fields: dict[str, Any] = {
        "kind": Kind.HEAD,
        "sender": KEY.address,
        "recipient": OTHER.address,
        "session": bytes(16),
        "stamp_us": 1,
        "told": (),
        "items": (),
    }
    return Message(**(fields | changes))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (message(items=(b"",) * (MAX_ITEMS + 1)), "at most 1024 items"),
        (message(told=("http://x",) * (MAX_TOLD + 1)), "at most 128 items"),
        (message(told=("x" * (MAX_URL_BYTES + 1),)), "at most 100 ASCII bytes"),
        (message(told=("http://ä",)), "ASCII"),
        (message(items=(bytes(MAX_MESSAGE_BYTES),)), "got"),
    ],
)
def test_what_is_too_much_is_refused(wrong: Message, text: str) -> None:
    with pytest.raises(MessageError, match=text):
        Message.open(NETWORK, wrong.seal(NETWORK, KEY))


def test_another_chain_or_key_names_another_signer() -> None:
    assert Message.open(NETWORK, message().seal(NETWORK, OTHER)).signer == OTHER.address
    try:
        assert Message.open(bytes(32), message().seal(NETWORK, KEY)).signer != KEY.address
    except MessageError:  # not every digest fits every signature
        return


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: case["name"])
def test_the_vectors(case: dict[str, Any]) -> None:
    network, data = bytes.fromhex(case["network"]), bytes.fromhex(case["bytes"])
    if case["expect"] != "success":
        with pytest.raises(MessageError, match=case["expect"]):
            Message.open(network, data)
        return
    opened = Message.open(network, data)
    assert opened.kind.name == case["kind"]
    assert opened.sender.hex() == case["sender"]
    assert opened.signer.hex() == case["signer"]
    assert opened.recipient.hex() == case["recipient"]
    assert opened.session.hex() == case["session"]
    assert opened.stamp_us == case["stamp_us"]
    assert list(opened.told) == case["told"]
    assert [item.hex() for item in opened.items] == case["items"]


def test_a_key_is_neither_shown_nor_pickled() -> None:
    assert (b"\1" * 32).hex() not in repr(KEY)
    with pytest.raises(TypeError):
        pickle.dumps(KEY)
    with pytest.raises(ValueError):
        NodeKey(bytes(32))


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def test_the_allowance_refills_and_one_member_cannot_use_anothers() -> None:
    clock = Clock()
    standing = Standing(clock)
    assert [standing.allows(b"a", True, 100) for _ in range(MESSAGE_BURST)] == [True] * MESSAGE_BURST
    assert not standing.allows(b"a", True, 100)
    assert standing.allows(b"b", True, 100)
    clock.seconds += 1
    allowed = sum(standing.allows(b"a", True, 100) for _ in range(MESSAGE_BURST))
    assert allowed == MESSAGES_PER_SECOND
    standing.charge(b"b", True, 1 << 30)
    assert not standing.allows(b"b", True, 0)
    assert standing.allows(b"guest", False, 0)


def test_guests_share_one_small_allowance() -> None:
    standing = Standing(Clock())
    allowed = sum(standing.allows(bytes([number % 200]), False, 10) for number in range(1000))
    assert 0 < allowed < MESSAGE_BURST / 4
    assert standing.allows(b"a", True, 10)


def test_who_is_cut_off_comes_back_after_a_while() -> None:
    clock = Clock()
    standing = Standing(clock)
    standing.offend(b"a", "sent nonsense")
    assert standing.is_cut_off(b"a")
    assert standing.cut_off() == {b"a": "sent nonsense"}
    clock.seconds += CUT_OFF_SECONDS
    assert not standing.is_cut_off(b"a")


def test_slips_are_forgiven_after_a_minute() -> None:
    clock = Clock()
    standing = Standing(clock)
    for _ in range(3):
        for _ in range(SLIPS_PER_MINUTE):
            standing.slip(b"a", "late")
        assert not standing.is_cut_off(b"a")
        clock.seconds += 61
    for _ in range(SLIPS_PER_MINUTE + 1):
        standing.slip(b"a", "late")
    assert standing.is_cut_off(b"a")


@patient(60)
@given(st.lists(st.integers(1, 3 * STAMPS_REMEMBERED), max_size=60))
def test_a_stamp_is_taken_once(stamps: list[int]) -> None:
    standing = Standing()
    taken = [stamp for stamp in stamps if standing.is_fresh(b"a", stamp, 0)]
    assert len(taken) == len(set(taken)) == len(set(stamps))


def test_a_stamp_that_was_forgotten_is_not_taken_again() -> None:
    standing = Standing()
    many = range(1, 2 * STAMPS_REMEMBERED)
    assert all(standing.is_fresh(b"a", stamp, 0) for stamp in many)
    assert not any(standing.is_fresh(b"a", stamp, 0) for stamp in many)
