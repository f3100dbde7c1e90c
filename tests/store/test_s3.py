"""The object store on a real S3 server, through a wire that loses, slows, cuts and changes what goes over it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import obstore
import pytest

from consilia.errors import ObjectDamagedError, StoreError, StoreUnreachableError
from consilia.roles.stores import open_store
from consilia.store import ArtifactStore
from consilia.store.bucket import Bucket, Credentials, connect
from consilia.store.index import PART_BYTES
from consilia.store.verified import object_bytes
from consilia.values import Digest
from tests.ceph import REGION, S3Server, section_toml
from tests.crypto.sealing import plaintext_of, seal_bytes
from tests.faulty_wire import FaultyWire

pytestmark = [pytest.mark.network, pytest.mark.slow]

UPLOAD = Digest.of(b"an upload")
ENVELOPE, SEALED = seal_bytes(plaintext_of(17_800_000))
OTHER_ENVELOPE, OTHER_SEALED = seal_bytes(plaintext_of(17_800_000), rho=b"o" * 32)


@pytest.fixture
def bucket(s3_server: S3Server) -> str:
    return s3_server.new_bucket()


@pytest.fixture
def wire(s3_server: S3Server) -> Iterator[FaultyWire]:
    with FaultyWire(s3_server.endpoint) as made:
        yield made


def store_behind(server: S3Server, bucket: str, endpoint: str, patience_seconds: float = 30) -> ArtifactStore:
    place = Bucket(f"s3://{bucket}/consortium", endpoint, REGION, patience_seconds)
    return connect(place, Credentials(server.access_key, server.secret_key))


@pytest.fixture
def store(s3_server: S3Server, bucket: str, tmp_path: Path) -> ArtifactStore:
    return open_store(s3_server.section(tmp_path, bucket))


def write(store: ArtifactStore, upload: Digest | None = None) -> None:
    with store.writer(upload) as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.commit(SEALED.root)


def test_what_goes_in_comes_out(store, tmp_path):
    write(store)
    write(store)
    assert list(store.roots()) == [SEALED.root] and store.abandoned(-3600) == []
    store.get(SEALED.root, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == ENVELOPE
    [stored] = store.objects()
    assert abs(stored.modified_seconds - time.time()) < 600
    store.delete(SEALED.root)
    assert not store.has(SEALED.root) and list(store.roots()) == []


def test_writers_in_many_threads_agree_on_one_object(store, s3_server, bucket):
    """All find nothing there at first; If-None-Match decides, and the others' parts are taken away."""
    together = threading.Barrier(4)

    def race(_: int) -> None:
        with store.writer() as incoming:
            incoming.stream.write(ENVELOPE)
            together.wait()
            incoming.commit(SEALED.root)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(race, range(4)))
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)
    everything = [entry["path"] for page in obstore.list(s3_server.objects(bucket)) for entry in page]
    assert len(everything) == 1 + -(-17_800_000 // PART_BYTES)


def test_the_server_keeps_what_is_there(s3_server, bucket):
    """The condition itself, as this server has it: the index of another writer does not replace one."""
    objects = s3_server.objects(bucket)
    obstore.put(objects, "a", b"first", mode="create")
    with pytest.raises(obstore.exceptions.AlreadyExistsError):
        obstore.put(objects, "a", b"second", mode="create")
    assert bytes(obstore.get(objects, "a").bytes()) == b"first"


@pytest.mark.parametrize("swapped", ["objects", "parts"])
def test_a_store_that_swaps_two_objects_is_found_out(store, s3_server, bucket, tmp_path, swapped):
    write(store)
    with store.writer() as incoming:
        incoming.stream.write(OTHER_ENVELOPE)
        incoming.commit(OTHER_SEALED.root)
    objects = s3_server.objects(bucket)
    names = [e["path"] for page in obstore.list(objects, f"consortium/{swapped}") for e in page]
    if swapped == "parts":
        names = [name for name in names if "/00000001-" in name]
    first, second = names
    held = bytes(obstore.get(objects, first).bytes())
    obstore.put(objects, first, bytes(obstore.get(objects, second).bytes()))
    obstore.put(objects, second, held)
    for root in (SEALED.root, OTHER_SEALED.root):
        with pytest.raises(ObjectDamagedError, match=str(root)):
            store.get(root, tmp_path / "target")
    assert not (tmp_path / "target").exists()


# Wrong settings


def test_wrong_credentials_are_refused_without_a_word_of_them(s3_server, bucket):
    for wrong in (replace(s3_server, secret_key="not-the-secret"), replace(s3_server, access_key="nobody")):
        with pytest.raises(StoreError, match="refuses these credentials") as caught:
            store_behind(wrong, bucket, s3_server.endpoint)
        assert not isinstance(caught.value, StoreUnreachableError)
        for secret in (wrong.secret_key, s3_server.secret_key, wrong.access_key):
            assert secret not in f"{caught.value}{caught.value!r}{caught.value.__cause__}"


def test_credentials_appear_nowhere_when_a_command_fails(s3_server, bucket, tmp_path):
    """Not in the messages, not in a traceback, not in the log: with a wrong secret, and with nobody there."""
    section = s3_server.section(tmp_path, bucket, patience_seconds=1)
    (tmp_path / "secret-key").write_text("not-the-secret\n")
    settings = 'name = "server"\n[ledger]\nurl = "http://127.0.0.1:1"\ndeployment = "d"\n'
    settings += '[keys]\naccount = "a"\nidentity = "i"\npassword_file = "p"\n'
    for endpoint, code in ((s3_server.endpoint, 1), ("http://127.0.0.1:1", 3)):
        place = section.model_copy(update={"endpoint": endpoint})
        (tmp_path / "consilia.toml").write_text(settings + section_toml(place))
        command = [sys.executable, "-m", "consilia", "store", "status", "--home", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("consilia: the store s3://")
        for secret in ("not-the-secret", s3_server.access_key):
            assert secret not in done.stdout + done.stderr


def test_a_bucket_that_is_not_there_is_told(s3_server):
    with pytest.raises(StoreError, match="no such bucket"):
        store_behind(s3_server, "nowhere", s3_server.endpoint)


# A wire that fails


def test_nobody_there_ends_in_an_error_that_says_what_to_do(s3_server, bucket, wire):
    wire.refuse = True
    with pytest.raises(StoreUnreachableError, match=r"did not answer.*endpoint"):
        store_behind(s3_server, bucket, wire.url, patience_seconds=2)
    assert wire.connections > 1


def test_a_silent_server_ends_in_an_error(s3_server, bucket, wire):
    wire.silent = True
    with pytest.raises(StoreUnreachableError, match="did not answer"):
        store_behind(s3_server, bucket, wire.url, patience_seconds=4)


def test_a_server_that_comes_back_is_waited_for(s3_server, bucket, wire):
    store = store_behind(s3_server, bucket, wire.url)
    wire.refuse = True
    wire.hang_up()
    threading.Timer(2.0, wire.mend).start()
    write(store)
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_whoever_gives_up_need_not_wait_for_a_store_that_is_away(s3_server, bucket, wire, store):
    """SIGTERM in the middle of an upload or a read ends a party though its store is away."""
    write(store)
    far = store_behind(s3_server, bucket, wire.url, patience_seconds=3600)
    with pytest.raises(ZeroDivisionError), far.writer(UPLOAD) as incoming:
        wire.refuse = True
        wire.hang_up()
        incoming.stream.write(ENVELOPE[: 2 * PART_BYTES])
        incoming.stream.flush()
        raise ZeroDivisionError
    wire.mend()
    with pytest.raises(ZeroDivisionError), far.reader(SEALED.root) as stream:
        stream.read(1)
        wire.refuse = True
        wire.hang_up()
        raise ZeroDivisionError


def test_requests_cut_in_the_middle_are_made_again(s3_server, bucket, wire):
    store = store_behind(s3_server, bucket, wire.url)
    wire.cut_requests_after, wire.lost_requests_left = 5_000_000, 3
    write(store)
    assert wire.lost_requests_left == 0
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


def test_answers_cut_in_the_middle_are_asked_for_again(s3_server, bucket, wire, store, tmp_path):
    write(store)
    far = store_behind(s3_server, bucket, wire.url)
    wire.cut_answers_after, wire.lost_requests_left = 1_000_000, 3
    wire.hang_up()
    far.get(SEALED.root, tmp_path / "target")
    assert wire.lost_requests_left == 0
    assert (tmp_path / "target").read_bytes() == ENVELOPE


def test_a_wire_that_always_cuts_ends_in_an_error_and_nothing_is_there(
    s3_server, bucket, wire, store, tmp_path
):
    write(store)
    far = store_behind(s3_server, bucket, wire.url, patience_seconds=3)
    wire.cut_answers_after = 1_000_000
    wire.hang_up()
    with pytest.raises(StoreUnreachableError, match="did not answer"):
        far.get(SEALED.root, tmp_path / "target")
    assert list(tmp_path.glob("*target*")) == []


def test_a_bit_changed_on_the_way_is_asked_for_again(s3_server, bucket, wire, store, tmp_path):
    """The server's part is good; what came was not. Without TLS nothing but the root would tell."""
    write(store)
    far = store_behind(s3_server, bucket, wire.url)
    wire.flip_answer_byte = 6_000_000
    wire.hang_up()
    far.get(SEALED.root, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == ENVELOPE


def test_an_upload_goes_on_where_it_was_cut_off(s3_server, bucket, wire):
    store = store_behind(s3_server, bucket, wire.url, patience_seconds=3)
    with pytest.raises(StoreError), store.writer(UPLOAD) as incoming:
        incoming.stream.write(ENVELOPE[: PART_BYTES + PART_BYTES // 2])
        incoming.stream.flush()
        while not list(obstore.list(s3_server.objects(bucket), "consortium/parts")):
            time.sleep(0.05)
        wire.refuse = True
        wire.hang_up()
        incoming.stream.write(ENVELOPE[PART_BYTES + PART_BYTES // 2 :])
        incoming.commit(SEALED.root)
    wire.mend()
    assert not store.has(SEALED.root)
    before = wire.requests_bytes
    write(store, UPLOAD)
    sent = wire.requests_bytes - before
    assert sent < len(ENVELOPE) - PART_BYTES + 100_000, sent
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)


UPLOADER = """
import sys
from pathlib import Path
from consilia.settings.sections import StoreSection
from consilia.roles.stores import open_store
from consilia.values import Digest
store = open_store(StoreSection.model_validate_json(sys.argv[1]))
store.put(Digest.from_hex(sys.argv[2]), Path(sys.argv[3]))
"""


def test_an_upload_goes_on_after_its_process_was_killed(s3_server, bucket, wire, tmp_path):
    (tmp_path / "envelope").write_bytes(ENVELOPE)
    section = s3_server.section(tmp_path, bucket, endpoint=wire.url)
    arguments = [section.model_dump_json(), SEALED.root.hex(), str(tmp_path / "envelope")]
    wire.bytes_a_second = 6_000_000
    process = subprocess.Popen([sys.executable, "-c", UPLOADER, *arguments])
    bare = s3_server.objects(bucket)
    while not list(obstore.list(bare, "consortium/parts")):
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    wire.mend()
    store = store_behind(s3_server, bucket, wire.url)
    assert list(store.roots()) == []
    before = wire.requests_bytes
    subprocess.run([sys.executable, "-c", UPLOADER, *arguments], check=True, timeout=120)
    assert wire.requests_bytes - before < len(ENVELOPE) - PART_BYTES + 100_000
    assert object_bytes(store, SEALED.root) == len(ENVELOPE)
    assert store.abandoned(-3600) == []


BIG = """
import sys, time
from consilia.settings.sections import StoreSection
from consilia.roles.stores import open_store
from consilia.crypto.envelope import seal, open_envelope
from tests.crypto.sealing import CONTEXT, HOSPITAL, RECIPIENTS, RHO

class Plain:
    def __init__(self, size): self.size, self.at = size, 0
    def tell(self): return self.at
    def seek(self, at, whence=0): self.at = at; return at
    def read(self, size=-1):
        taken = min(size, self.size - self.at); self.at += taken
        return bytes(taken)

class Nowhere:
    def write(self, data): return len(data)

size = int(sys.argv[2])
store = open_store(StoreSection.model_validate_json(sys.argv[1]))
began = time.monotonic()
with store.writer() as incoming:
    sealed = seal(Plain(size), incoming.stream, RECIPIENTS, CONTEXT, rho=RHO)
    incoming.commit(sealed.root)
sent = time.monotonic()
with store.reader(sealed.root) as stream:
    open_envelope(stream, Nowhere(), HOSPITAL, RECIPIENTS, CONTEXT, sealed.root)
peak_kb = int(next(line for line in open('/proc/self/status') if line.startswith('VmHWM')).split()[1])
print(peak_kb / 1024, sent - began, time.monotonic() - sent)
"""


def test_memory_does_not_grow_with_the_object(s3_server, bucket, tmp_path):
    """Sealed into the bucket and opened out of it, 256 MB in under 100 MB of memory (75 to 85 measured)."""
    section = s3_server.section(tmp_path, bucket).model_dump_json()
    command = [sys.executable, "-c", BIG, section, str(256 << 20)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert float(done.stdout.split()[0]) < 100, done.stdout
