"""The object store on memory: parts and an index, so that nothing half or unverified is ever seen."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import GenericError, NotSupportedError, PermissionDeniedError
from obstore.store import MemoryStore

from consilia.crypto.envelope import open_envelope
from consilia.errors import (
    EnvelopeError,
    ObjectDamagedError,
    ObjectMissingError,
    StoreError,
    StoreUnreachableError,
)
from consilia.store import objects as objects_module
from consilia.store import requests
from consilia.store.directory import DirectoryStore
from consilia.store.index import PART_BYTES
from consilia.store.objects import ObjectStore
from consilia.store.verified import copy_object, object_bytes
from consilia.values import Digest
from tests.crypto.sealing import CONTEXT, HOSPITAL, RECIPIENTS, flipped, plaintext_of, seal_bytes

ABSENT = Digest.of(b"absent")
UPLOAD = Digest.of(b"an upload")
PLAINTEXT = plaintext_of(2 * PART_BYTES + 1_000_000)
ENVELOPE, SEALED = seal_bytes(PLAINTEXT)
OTHER_ENVELOPE, OTHER_SEALED = seal_bytes(PLAINTEXT, rho=b"o" * 32)
SMALL_ENVELOPE, SMALL_SEALED = seal_bytes(b"small")


@pytest.fixture
def memory() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def store(memory: MemoryStore) -> ObjectStore:
    return ObjectStore(memory, "memory", patience_seconds=0.5)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "update.envelope"
    path.write_bytes(ENVELOPE)
    return path


def paths(memory: MemoryStore) -> list[str]:
    return sorted(entry["path"] for page in obstore.list(memory) for entry in page)


def parts(memory: MemoryStore) -> list[str]:
    return [path for path in paths(memory) if path.startswith("parts/")]


def wait_for_parts(memory: MemoryStore, count: int) -> None:
    """They are sent by threads of their own."""
    while len(parts(memory)) < count:
        time.sleep(0.01)


def index_path(root: Digest) -> str:
    return f"objects/{root.hex()[:2]}/{root.hex()}"


def write(store: ObjectStore, envelope: bytes, root: Digest, upload: Digest | None = None) -> int:
    """Write an envelope; how many parts were sent."""
    with store.writer(upload) as incoming:
        incoming.stream.write(envelope)
        incoming.commit(root)
    return incoming.sent_parts


@pytest.mark.parametrize("size", [0, 1, 1 << 20, 8 << 20, (8 << 20) + 1, 20_000_000])
def test_what_goes_in_comes_out(store, memory, tmp_path, size):
    envelope, sealed = seal_bytes(plaintext_of(size))
    assert not store.has(sealed.root)
    write(store, envelope, sealed.root)
    assert store.has(sealed.root) and list(store.roots()) == [sealed.root]
    store.get(sealed.root, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == envelope
    with store.reader(sealed.root) as stream:
        assert stream.read(100) == envelope[:100]
        assert stream.read() == envelope[100:]
        assert stream.read(1) == b""
    assert object_bytes(store, sealed.root) == len(envelope)
    store.delete(sealed.root)
    store.delete(sealed.root)
    assert paths(memory) == [] and not store.has(sealed.root)


def test_an_envelope_opens_straight_from_the_reader(store):
    write(store, ENVELOPE, SEALED.root)
    out = io.BytesIO()
    with store.reader(SEALED.root) as stream:
        open_envelope(stream, out, HOSPITAL, RECIPIENTS, CONTEXT, SEALED.root)
    assert out.getvalue() == PLAINTEXT


def test_the_store_sees_ciphertext_alone(store, memory):
    write(store, ENVELOPE, SEALED.root)
    everything = b"".join(bytes(obstore.get(memory, path).bytes()) for path in paths(memory))
    assert PLAINTEXT[:64] not in everything and SEALED.secret not in everything


def test_an_envelope_is_seen_only_after_its_writer_committed(store, memory):
    with store.writer() as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.stream.flush()
        assert not store.has(SEALED.root) and list(store.roots()) == []
        incoming.commit(SEALED.root)
        assert store.has(SEALED.root)


def test_a_writer_that_fails_leaves_nothing(store, memory):
    with pytest.raises(ZeroDivisionError), store.writer() as incoming:
        incoming.stream.write(ENVELOPE)
        raise ZeroDivisionError
    assert paths(memory) == []


def test_an_upload_that_was_cut_off_sends_only_what_is_missing(store, memory):
    with pytest.raises(ZeroDivisionError), store.writer(UPLOAD) as incoming:
        incoming.stream.write(ENVELOPE[: PART_BYTES + 500_000 + len(ENVELOPE) - len(PLAINTEXT)])
        incoming.stream.flush()
        wait_for_parts(memory, 1)
        raise ZeroDivisionError
    assert incoming.sent_parts == 1 and len(parts(memory)) == 1
    assert list(store.roots()) == []
    assert write(store, ENVELOPE, SEALED.root, UPLOAD) == 2
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)
    assert store.abandoned(-60) == []


def test_parts_of_other_bytes_do_not_count_as_sent(store, memory):
    """The plaintext changed before the upload went on: nothing of the old one gets into the new one."""
    with pytest.raises(ZeroDivisionError), store.writer(UPLOAD) as incoming:
        incoming.stream.write(OTHER_ENVELOPE)
        incoming.stream.flush()
        raise ZeroDivisionError
    assert write(store, ENVELOPE, SEALED.root, UPLOAD) == 3
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_a_part_cut_short_does_not_count_as_sent(store, memory):
    with pytest.raises(ZeroDivisionError), store.writer(UPLOAD) as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.stream.flush()
        wait_for_parts(memory, 2)
        raise ZeroDivisionError
    obstore.put(memory, parts(memory)[0], b"cut")
    assert write(store, ENVELOPE, SEALED.root, UPLOAD) == 2
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_old_parts_are_sent_again_so_that_gc_leaves_them(store, memory, monkeypatch):
    with pytest.raises(ZeroDivisionError), store.writer(UPLOAD) as incoming:
        incoming.stream.write(ENVELOPE)
        raise ZeroDivisionError
    monkeypatch.setattr(objects_module, "RESUMED_SECONDS", -60)
    assert write(store, ENVELOPE, SEALED.root, UPLOAD) == 3


def test_a_second_writer_leaves_the_first_object_alone(store, memory):
    write(store, ENVELOPE, SEALED.root)
    before = paths(memory)
    write(store, ENVELOPE, SEALED.root)
    assert paths(memory) == before
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_the_same_upload_finished_twice_keeps_its_parts(store, memory):
    """As when the answer to the index got lost, and the request was made again."""
    write(store, ENVELOPE, SEALED.root, UPLOAD)
    write(store, ENVELOPE, SEALED.root, UPLOAD)
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


@pytest.mark.parametrize(
    "data",
    [PLAINTEXT, b"", OTHER_ENVELOPE, ENVELOPE[:-1], ENVELOPE + b"\x00", flipped(ENVELOPE, 5_000_000)],
    ids=["plaintext", "empty", "another", "cut", "longer", "flipped"],
)
@pytest.mark.parametrize("way", ["put", "writer"])
def test_nothing_but_the_envelope_of_that_root_gets_in(store, tmp_path, data, way):
    (tmp_path / "wrong").write_bytes(data)
    with pytest.raises((ObjectDamagedError, EnvelopeError)):
        if way == "put":
            store.put(SEALED.root, tmp_path / "wrong")
        else:
            write(store, data, SEALED.root)
    assert not store.has(SEALED.root) and list(store.roots()) == []


def test_a_missing_object_is_named(store, tmp_path):
    with pytest.raises(ObjectMissingError, match=str(ABSENT)):
        store.get(ABSENT, tmp_path / "target")
    with pytest.raises(ObjectMissingError, match=str(ABSENT)), store.reader(ABSENT):
        pass
    assert not (tmp_path / "target").exists()


def spoil(memory: MemoryStore, what: str) -> None:
    """What a store can do to an object."""
    index = index_path(SEALED.root)
    whole = bytes(obstore.get(memory, index).bytes())
    names = parts(memory)
    first = bytes(obstore.get(memory, names[0]).bytes())
    if what == "a part lost":
        obstore.delete(memory, names[1])
    elif what == "a part cut":
        obstore.put(memory, names[1], bytes(obstore.get(memory, names[1]).bytes())[:-1])
    elif what == "a part longer":
        obstore.put(memory, names[2], bytes(obstore.get(memory, names[2]).bytes()) + b"\x00")
    elif what == "a bit of a part":
        obstore.put(memory, names[1], flipped(bytes(obstore.get(memory, names[1]).bytes()), 2_000_000))
    elif what == "two parts swapped":
        second = bytes(obstore.get(memory, names[1]).bytes())
        obstore.put(memory, names[0], second)
        obstore.put(memory, names[1], first)
    elif what == "two objects swapped":
        obstore.put(memory, index, bytes(obstore.get(memory, index_path(OTHER_SEALED.root)).bytes()))
    elif what == "the index of nothing":
        obstore.put(memory, index, b"")
    elif what == "an index cut":
        obstore.put(memory, index, whole[:-32])
    else:
        place = {"the magic": 0, "the upload": 20, "the frame": 60, "a leaf digest": len(whole) - 40}[what]
        obstore.put(memory, index, flipped(whole, place))


SPOILED = ["a part lost", "a part cut", "a part longer", "a bit of a part", "two parts swapped"]
SPOILED += ["two objects swapped", "the index of nothing", "an index cut"]
SPOILED += ["the magic", "the upload", "the frame", "a leaf digest"]


@pytest.mark.parametrize("what", SPOILED)
def test_no_byte_of_a_damaged_object_is_handed_out(store, memory, tmp_path, what):
    """Whatever the store does, a reader sees true bytes and then an error that names the object."""
    write(store, ENVELOPE, SEALED.root)
    names = parts(memory)
    write(store, OTHER_ENVELOPE, OTHER_SEALED.root)
    for path in parts(memory):
        if path not in names:
            obstore.delete(memory, path)
    spoil(memory, what)
    target = tmp_path / "target"
    target.write_bytes(b"what was there before")
    with pytest.raises(ObjectDamagedError, match=str(SEALED.root)):
        store.get(SEALED.root, target)
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_bytes() == b"what was there before"
    seen = io.BytesIO()
    with pytest.raises(ObjectDamagedError, match=str(SEALED.root)), store.reader(SEALED.root) as stream:
        while block := stream.read(100_000):
            seen.write(block)
    assert ENVELOPE.startswith(seen.getvalue()) and len(seen.getvalue()) < len(ENVELOPE)

    store.delete(SEALED.root)
    write(store, ENVELOPE, SEALED.root)
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_what_uploads_left_is_found_and_discarded(store, memory):
    write(store, SMALL_ENVELOPE, SMALL_SEALED.root)
    with pytest.raises(ZeroDivisionError), store.writer(UPLOAD) as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.stream.flush()
        wait_for_parts(memory, 1)
        raise ZeroDivisionError
    assert store.abandoned(3600) == []
    assert store.abandoned(-60) == [UPLOAD.hex()]
    store.discard(UPLOAD.hex())
    assert store.abandoned(-60) == [] and list(store.roots()) == [SMALL_SEALED.root]
    assert object_bytes(store, SMALL_SEALED.root) == len(SMALL_ENVELOPE)


@pytest.mark.parametrize("what", ["the magic", "the upload", "the frame", "an index cut"])
def test_the_parts_of_a_damaged_index_are_not_taken_for_garbage(store, memory, what):
    """The object may be needed, and its index be repaired: nothing is called abandoned until that is done."""
    write(store, ENVELOPE, SEALED.root)
    spoil(memory, what)
    with pytest.raises(ObjectDamagedError, match=str(SEALED.root)):
        store.abandoned(-60)


def test_roots_pass_over_what_is_no_object(store, memory):
    write(store, SMALL_ENVELOPE, SMALL_SEALED.root)
    for path in ("README", "objects/README", f"objects/00/{SEALED.root.hex()}", "parts/x", "parts/x/y"):
        obstore.put(memory, path, b"?")
    assert list(store.roots()) == [SMALL_SEALED.root]
    assert store.abandoned(-60) == []


def test_objects_are_copied_between_stores_both_ways(store, tmp_path, source):
    folder = DirectoryStore(tmp_path / "store")
    folder.put(SEALED.root, source)
    assert copy_object(folder, store, SEALED.root) == len(ENVELOPE)
    assert copy_object(folder, store, SEALED.root) == 0
    back = DirectoryStore(tmp_path / "back")
    assert copy_object(store, back, SEALED.root) == len(ENVELOPE)
    assert object_bytes(back, SEALED.root) == len(ENVELOPE)


def test_a_damaged_object_is_not_copied(store, tmp_path, source):
    folder = DirectoryStore(tmp_path / "store")
    folder.put(SEALED.root, source)
    path = tmp_path / "store" / SEALED.root.hex()[:2] / SEALED.root.hex()
    path.write_bytes(flipped(ENVELOPE, -100 + len(ENVELOPE)))
    with pytest.raises(ObjectDamagedError, match=str(SEALED.root)):
        copy_object(folder, store, SEALED.root)
    assert not store.has(SEALED.root)


# Requests


class Failing:
    """obstore's answers, after some failures. The real ones are met in test_s3.py; this counts attempts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0
        self._real = getattr(obstore, name)
        monkeypatch.setattr(requests.obstore, name, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return self._real(*arguments, **named)


def test_a_request_is_made_again_until_it_is_answered(store, monkeypatch):
    pauses: list[float] = []
    monkeypatch.setattr(requests, "pause", lambda seconds, stop: pauses.append(seconds))
    failing = Failing(monkeypatch, "put", *[GenericError("connection reset")] * 2)
    write(store, SMALL_ENVELOPE, SMALL_SEALED.root)
    assert failing.calls == 4 and len(pauses) == 2
    assert 0 < pauses[0] <= requests.FIRST_PAUSE_SECONDS < pauses[1] * 2


def test_patience_ends_with_an_error_that_says_what_to_do(store, memory, monkeypatch):
    failing = Failing(monkeypatch, "get", *[GenericError("connection reset\nDebug { }")] * 1000)
    with pytest.raises(StoreUnreachableError, match=r"memory did not answer.*endpoint") as caught:
        store.get(SEALED.root, Path("/nowhere"))
    assert caught.value.exit_code == 3 and "Debug" not in str(caught.value)
    assert 2 <= failing.calls < 10


def test_refused_credentials_are_not_tried_again(store, monkeypatch):
    failing = Failing(monkeypatch, "get", PermissionDeniedError("<Code>AccessDenied</Code>"))
    with pytest.raises(StoreError, match=r"refuses these credentials.*AccessDenied") as caught:
        store.get(SEALED.root, Path("/nowhere"))
    assert failing.calls == 1 and not isinstance(caught.value, StoreUnreachableError)


def test_a_server_without_conditional_puts_is_asked_first(store, monkeypatch):
    refused = NotSupportedError("no If-None-Match here")
    Failing(monkeypatch, "put")
    write(store, SMALL_ENVELOPE, SMALL_SEALED.root)
    before = list(store.objects())
    real = obstore.put

    def without_conditions(*arguments: Any, mode: str = "overwrite", **named: Any) -> Any:
        if mode == "create":
            raise refused
        return real(*arguments, **named)

    monkeypatch.setattr(requests.obstore, "put", without_conditions)
    write(store, SMALL_ENVELOPE, SMALL_SEALED.root)
    assert list(store.objects()) == before
    write(store, ENVELOPE, SEALED.root)
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_a_server_that_ignores_the_condition_still_gives_a_whole_object(store, memory, monkeypatch):
    """The later index wins; it names parts of its own, and those of the earlier one are left for gc."""
    real = obstore.put
    monkeypatch.setattr(requests.obstore, "put", lambda *a, mode="overwrite", **named: real(*a, **named))
    write(store, ENVELOPE, SEALED.root)
    write(store, ENVELOPE, SEALED.root)
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)
    assert len(store.abandoned(-60)) == 1


def test_the_bytes_in_a_bucket_are_those_of_the_format(store, memory):
    """docs/store.md, computed here from the envelope alone: another program reads what this one wrote."""
    leaf_bytes, prefix_bytes = 64 * (16384 + 16), 24 + 32
    opening_bytes = 22 + 32 + 3 * (32 + 80) + prefix_bytes  # three recipients
    body = ENVELOPE[opening_bytes:]
    leaves = [
        hashlib.sha256(b"\x00" + body[at : at + leaf_bytes]).digest()
        for at in range(0, len(body), leaf_bytes)
    ]
    write(store, ENVELOPE, SEALED.root, UPLOAD)
    index = bytes(obstore.get(memory, index_path(SEALED.root)).bytes())
    assert index == b"CSLAIDX1" + UPLOAD + ENVELOPE[:opening_bytes] + b"".join(leaves)
    for number in range(3):
        name = hashlib.sha256(b"".join(leaves[2 * number : 2 * number + 2])).hexdigest()[:32]
        part = bytes(obstore.get(memory, f"parts/{UPLOAD.hex()}/{number:08d}-{name}").bytes())
        assert part == body[2_099_200 * number : 2_099_200 * (number + 1)]
    assert len(paths(memory)) == 4
