"""The directory store: what goes in comes out, or an error that names it; nobody sees half an object."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from consilia.artifact import artifact_root
from consilia.crypto.envelope import open_envelope
from consilia.errors import (
    EnvelopeError,
    ObjectDamagedError,
    ObjectMissingError,
    StoreError,
    StoreUnreachableError,
)
from consilia.store import ArtifactStore
from consilia.store.directory import DirectoryStore
from consilia.values import Digest
from tests.crypto.sealing import CONTEXT, HOSPITAL, RECIPIENTS, flipped, plaintext_of, seal_bytes

ABSENT = Digest.of(b"absent")
PLAINTEXT = plaintext_of(3_000_000)
ENVELOPE, SEALED = seal_bytes(PLAINTEXT)
OTHER_ENVELOPE, OTHER_SEALED = seal_bytes(b"another")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(home: Path) -> DirectoryStore:
    return DirectoryStore(home)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "update.envelope"
    path.write_bytes(ENVELOPE)
    return path


def object_path(home: Path, root: Digest) -> Path:
    return home / root.hex()[:2] / root.hex()


def assert_clean(home: Path) -> None:
    assert list((home / "incoming").iterdir()) == []


def test_what_goes_in_comes_out(store: ArtifactStore, home, source, tmp_path):
    assert not store.has(SEALED.root)
    store.put(SEALED.root, source)
    assert store.has(SEALED.root)
    assert list(store.roots()) == [SEALED.root]
    store.get(SEALED.root, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == ENVELOPE
    with store.reader(SEALED.root) as stream:
        assert stream.read(100) == ENVELOPE[:100]
        assert stream.read() == ENVELOPE[100:]
        assert stream.read(1) == b""
    assert_clean(home)
    store.delete(SEALED.root)
    store.delete(SEALED.root)
    assert not store.has(SEALED.root)
    assert list(store.roots()) == []


def test_an_envelope_opens_straight_from_the_reader(store, source):
    store.put(SEALED.root, source)
    out = io.BytesIO()
    with store.reader(SEALED.root) as stream:
        open_envelope(stream, out, HOSPITAL, RECIPIENTS, CONTEXT, SEALED.root)
    assert out.getvalue() == PLAINTEXT


def test_an_envelope_is_seen_only_after_its_writer_committed(store, home):
    with store.writer() as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.stream.flush()
        assert not store.has(SEALED.root)
        assert list(store.roots()) == []
        incoming.commit(SEALED.root)
        assert object_path(home, SEALED.root).read_bytes() == ENVELOPE
    assert object_path(home, SEALED.root).read_bytes() == ENVELOPE
    assert_clean(home)


def test_a_writer_that_fails_leaves_nothing(store, home):
    with pytest.raises(ZeroDivisionError), store.writer() as incoming:
        incoming.stream.write(ENVELOPE)
        raise ZeroDivisionError
    assert list(store.roots()) == []
    assert_clean(home)


def test_a_writer_leaves_alone_what_is_there(store, home, source):
    store.put(SEALED.root, source)
    before = object_path(home, SEALED.root).stat().st_ino
    with store.writer() as incoming:
        incoming.stream.write(b"cut")
        incoming.commit(SEALED.root)
    assert object_path(home, SEALED.root).stat().st_ino == before
    assert object_path(home, SEALED.root).read_bytes() == ENVELOPE
    assert_clean(home)


def test_a_second_store_on_the_same_directory_sees_it(store, home, source):
    store.put(SEALED.root, source)
    assert DirectoryStore(home).has(SEALED.root)


@pytest.mark.parametrize("use", ["get", "reader"])
def test_a_missing_object_is_named(store, tmp_path, use):
    with pytest.raises(ObjectMissingError, match=str(ABSENT)):
        if use == "get":
            store.get(ABSENT, tmp_path / "target")
        else:
            with store.reader(ABSENT):
                pass
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: flipped(data, 0),
        lambda data: flipped(data, 12),
        lambda data: flipped(data, 100),
        lambda data: flipped(data, len(data) // 2),
        lambda data: flipped(data, len(data) - 1),
        lambda data: data[:-1],
        lambda data: data[:30],
        lambda data: b"",
        lambda data: data + b"\x00",
        lambda _: OTHER_ENVELOPE,
        lambda _: PLAINTEXT,
    ],
    ids=[
        "magic",
        "n",
        "key id",
        "middle",
        "end",
        "cut",
        "cut early",
        "emptied",
        "longer",
        "swapped",
        "plaintext",
    ],
)
def test_a_damaged_object_is_an_error_that_names_it(store, home, source, tmp_path, spoil):
    store.put(SEALED.root, source)
    object_path(home, SEALED.root).write_bytes(spoil(ENVELOPE))
    target = tmp_path / "target"
    target.write_bytes(b"what was there before")

    with pytest.raises(ObjectDamagedError, match=str(SEALED.root)):
        store.get(SEALED.root, target)
    assert target.read_bytes() == b"what was there before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store", "target", "update.envelope"]
    # The reader does not look; opening does.
    with store.reader(SEALED.root) as stream, pytest.raises(EnvelopeError):
        open_envelope(stream, io.BytesIO(), HOSPITAL, RECIPIENTS, CONTEXT, SEALED.root)


def test_a_damaged_object_can_be_deleted_and_put_in_again(store, home, source, tmp_path):
    store.put(SEALED.root, source)
    object_path(home, SEALED.root).write_bytes(b"")
    store.delete(SEALED.root)
    store.put(SEALED.root, source)
    store.get(SEALED.root, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == ENVELOPE


@pytest.mark.parametrize(
    "data",
    [PLAINTEXT, b"", OTHER_ENVELOPE, ENVELOPE[:-1], ENVELOPE + b"\x00", flipped(ENVELOPE, 2_000_000)],
    ids=["plaintext", "empty", "another", "cut", "longer", "flipped"],
)
def test_nothing_but_the_envelope_of_that_root_gets_in(store, home, tmp_path, data):
    (tmp_path / "wrong").write_bytes(data)
    with pytest.raises(ObjectDamagedError, match=str(SEALED.root)):
        store.put(SEALED.root, tmp_path / "wrong")
    assert not store.has(SEALED.root)
    assert [path for path in home.rglob("*") if path.is_file()] == []


def test_what_is_there_is_left_alone(store, home, source):
    store.put(SEALED.root, source)
    path = object_path(home, SEALED.root)
    before = path.stat()
    source.write_bytes(OTHER_ENVELOPE)
    store.put(SEALED.root, source)
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert path.read_bytes() == ENVELOPE
    assert_clean(home)


def test_who_comes_second_in_a_race_does_not_replace_the_first(store, home, source, monkeypatch):
    store.put(SEALED.root, source)
    before = object_path(home, SEALED.root).stat().st_ino
    monkeypatch.setattr(DirectoryStore, "has", lambda *_: False)
    store.put(SEALED.root, source)
    assert object_path(home, SEALED.root).stat().st_ino == before
    assert_clean(home)


def test_writers_in_many_threads_agree_on_one_object(home, source, monkeypatch):
    # All of them find nothing there at first: the race is decided by the link alone.
    writers = 8
    together = threading.Barrier(writers)

    def not_yet(*_: object) -> bool:
        together.wait()
        return False

    with monkeypatch.context() as patch, ThreadPoolExecutor(writers) as threads:
        patch.setattr(DirectoryStore, "has", not_yet)
        list(threads.map(lambda _: DirectoryStore(home).put(SEALED.root, source), range(writers)))
    assert list(DirectoryStore(home).roots()) == [SEALED.root]
    assert object_path(home, SEALED.root).read_bytes() == ENVELOPE
    assert_clean(home)


PUT = """
import resource, sys
from pathlib import Path
from consilia.store.directory import DirectoryStore
from consilia.values import Digest
if len(sys.argv) > 4:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
store = DirectoryStore(Path(sys.argv[1]))
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
store.put(Digest.from_hex(sys.argv[2]), Path(sys.argv[3]))
"""


def start_put(home: Path, root: Digest, source: Path, *more: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", PUT, str(home), root.hex(), str(source), *more],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_writers_in_several_processes_agree_on_one_object(home, source):
    processes = [start_put(home, SEALED.root, source) for _ in range(4)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors) == (0, "")
    assert list(DirectoryStore(home).roots()) == [SEALED.root]
    with object_path(home, SEALED.root).open("rb") as stream:
        assert artifact_root(stream) == SEALED.root
    assert_clean(home)


def test_a_writer_killed_in_the_middle_leaves_nothing_to_be_seen(home, source, tmp_path):
    big = plaintext_of(20 << 20)
    envelope, sealed = seal_bytes(big)
    pipe = tmp_path / "slow.envelope"
    os.mkfifo(pipe)
    process = start_put(home, sealed.root, pipe)
    process.stdin.write("go\n")
    process.stdin.flush()
    try:
        with pipe.open("wb") as slow:
            slow.write(envelope[: 15 << 20])
            slow.flush()
            deadline = time.monotonic() + 60
            while not any(path.stat().st_size for path in (home / "incoming").iterdir()):
                assert time.monotonic() < deadline, "nothing was staged"
                time.sleep(0.01)
            store = DirectoryStore(home)
            assert not store.has(sealed.root)
            assert list(store.roots()) == []
            process.send_signal(signal.SIGKILL)
            process.wait(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert not store.has(sealed.root)
    assert list(store.roots()) == []
    with pytest.raises(ObjectMissingError):
        store.get(sealed.root, tmp_path / "target")

    source.write_bytes(envelope)
    store.put(sealed.root, source)
    store.get(sealed.root, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == envelope


def test_a_full_disk_leaves_nothing_to_be_seen(home, source):
    process = start_put(home, SEALED.root, source, str(1 << 20))
    _, errors = process.communicate("go\n", timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1].startswith("consilia.errors.StoreError")
    assert not DirectoryStore(home).has(SEALED.root)
    assert list(DirectoryStore(home).roots()) == []


def test_what_crashed_writers_left_is_swept_out_after_a_day(store, home):
    old, fresh = home / "incoming" / "old#1", home / "incoming" / "fresh"
    old.write_bytes(b"half")
    fresh.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(old, (two_days_ago, two_days_ago))
    DirectoryStore(home)
    assert (old.exists(), fresh.exists()) == (False, True)


def test_roots_pass_over_what_is_no_object(store, home, source):
    store.put(SEALED.root, source)
    (home / "README").write_text("ciphertext")
    (home / "incoming" / "half").write_bytes(b"half")
    wrong_folder = home / "00" / SEALED.root.hex()
    wrong_folder.parent.mkdir(exist_ok=True)
    wrong_folder.write_bytes(b"")
    assert list(store.roots()) == [SEALED.root]


def test_a_source_that_is_not_there_is_named(store, tmp_path):
    with pytest.raises(StoreError, match="no-such-file") as caught:
        store.put(SEALED.root, tmp_path / "no-such-file")
    assert not isinstance(caught.value, ObjectMissingError)


def test_a_target_that_cannot_be_written_is_named(store, source, tmp_path):
    store.put(SEALED.root, source)
    with pytest.raises(StoreError, match="nowhere") as caught:
        store.get(SEALED.root, tmp_path / "nowhere" / "target")
    assert not isinstance(caught.value, ObjectMissingError)


def test_a_store_that_cannot_be_made_is_unreachable(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(StoreUnreachableError, match="cannot be used"):
        DirectoryStore(tmp_path / "file" / "store")
