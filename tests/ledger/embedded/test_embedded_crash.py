"""A node comes back on a valid prefix and resyncs: torn files, a full disk, kill -9 at any moment."""

from __future__ import annotations

import os
import random
import resource
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from consilia.errors import HomeError, LedgerUnreachableError, NodeStorageError, RpcError
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.chainfile import ChainFile
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.node import _serve
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.replay import replay
from consilia.ledger.embedded.salvage import open_chain
from tests.ledger.embedded.hosted import Hosted
from tests.ledger.embedded.members import KEYS, extend, genesis, payment
from tests.ledger.embedded.network import NodeProcess, build_network, wait_for

HEIGHT = 40


@pytest.fixture(scope="module")
def made() -> Genesis:
    return genesis(block_time_ms=1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, made: Genesis) -> Path:
    """A chain with a payment in every block, and one that waits."""
    path = tmp_path_factory.mktemp("whole") / "chain.sqlite"
    chain = Chain(path, made)
    for nonce in range(HEIGHT):
        extend(chain, [payment(0, nonce)])
    Pool(chain).add(payment(1, 0).raw)
    chain.close()
    return path


def cut_in_half(data: bytearray) -> bytearray:
    return data[: len(data) // 2]


def cut_within_a_page(data: bytearray) -> bytearray:
    return data[:-11_000]  # some pages: the last one may hold nothing but zeros, which SQLite would not miss


def only_a_header(data: bytearray) -> bytearray:
    return data[:100]


def noise_in_the_middle(data: bytearray) -> bytearray:
    at = len(data) // 2
    data[at : at + 8192] = os.urandom(8192)
    return data


def zeros_at_the_end(data: bytearray) -> bytearray:
    data[-16384:] = bytes(16384)
    return data


def no_database(data: bytearray) -> bytearray:
    return bytearray(b"once this was a chain\n" * 100)


def nothing_at_all(data: bytearray) -> bytearray:
    return bytearray()


TEARS = [cut_in_half, cut_within_a_page, only_a_header, noise_in_the_middle, zeros_at_the_end, no_database]


def check_prefix(torn: Chain, whole: Path, made: Genesis) -> None:
    """What is left is a prefix of the true chain, and the rest can be fetched on top of it."""
    original = Chain(whole, made)
    height = torn.head.header.number
    for number in range(height + 1):
        assert torn.header_by_number(number) == original.header_by_number(number)
    for block in original.blocks_after(torn.locator(), HEIGHT, 1 << 30):
        torn.import_block(block)
    assert torn.head == original.head
    original.close()


@pytest.mark.parametrize("tear", [*TEARS, nothing_at_all])
def test_a_torn_file_opens_on_a_valid_prefix(
    whole: Path, made: Genesis, tmp_path: Path, tear: Callable[[bytearray], bytearray]
) -> None:
    path = tmp_path / "chain.sqlite"
    path.write_bytes(tear(bytearray(whole.read_bytes())))
    chain = open_chain(path, made)
    check_prefix(chain, whole, made)
    chain.close()
    assert replay(path, made).height == HEIGHT
    assert (tmp_path / "chain.sqlite.damaged-1").exists() == (tear is not nothing_at_all)


def test_wherever_the_file_is_cut_a_valid_prefix_remains(whole: Path, made: Genesis, tmp_path: Path) -> None:
    data, drawn = whole.read_bytes(), random.Random(0)
    for attempt in range(12):
        path = tmp_path / f"{attempt}.sqlite"
        path.write_bytes(data[: drawn.randrange(len(data))])
        chain = open_chain(path, made)
        check_prefix(chain, whole, made)
        chain.close()


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE blocks SET transactions = x'c0' WHERE number = 38",
        "UPDATE blocks SET header = x'00' WHERE number = 40",
        "DELETE FROM blocks WHERE number = 39",
        "DELETE FROM state",
        "UPDATE canonical SET hash = zeroblob(32) WHERE number = 40",
    ],
)
def test_damage_in_the_newest_records_is_mended(
    whole: Path, made: Genesis, tmp_path: Path, damage: str
) -> None:
    path = tmp_path / "chain.sqlite"
    path.write_bytes(whole.read_bytes())
    sql = sqlite3.connect(path)
    assert sql.execute(damage).rowcount > 0
    sql.commit()
    sql.close()
    chain = open_chain(path, made)
    assert chain.head.header.number >= 37
    assert [item.raw for item in chain.file.pending()] == [payment(1, 0).raw]  # nobody else may have it
    check_prefix(chain, whole, made)
    chain.close()
    assert replay(path, made).height == HEIGHT


def test_a_whole_file_is_left_alone(whole: Path, made: Genesis, tmp_path: Path) -> None:
    path = tmp_path / "chain.sqlite"
    path.write_bytes(whole.read_bytes())
    chain = open_chain(path, made)
    assert chain.head.header.number == HEIGHT
    chain.close()
    assert [item.name for item in tmp_path.iterdir()] == ["chain.sqlite"]
    with pytest.raises(HomeError, match="another genesis"):
        open_chain(path, genesis(chain_id=1))
    assert [item.name for item in tmp_path.iterdir()] == ["chain.sqlite"]  # not damaged: somebody else's


def test_opening_reads_as_much_of_a_long_chain_as_of_a_short_one(
    tmp_path: Path, made: Genesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is replayed: the head and its state are where they were."""
    statements: list[str] = []
    row = ChainFile._row

    def counted(file: ChainFile, sql: str, parameters: tuple[object, ...]) -> object:
        statements.append(sql)
        return row(file, sql, parameters)

    counts = []
    for height in (30, 300):
        chain = Chain(tmp_path / f"{height}.sqlite", made)
        for _ in range(height):
            extend(chain)
        chain.close()
        with monkeypatch.context() as patched:
            patched.setattr(ChainFile, "_row", counted)
            statements.clear()
            opened = open_chain(tmp_path / f"{height}.sqlite", made)
            counts.append(len(statements))
        assert opened.head.header.number == height
        opened.close()
    assert counts[0] == counts[1]


# A full disk


def test_a_full_disk_keeps_what_was_kept(tmp_path: Path, made: Genesis) -> None:
    """SQLite's own limit on pages stands for the disk's end."""
    chain = Chain(tmp_path / "chain.sqlite", made)
    pool = Pool(chain)
    extend(chain, [payment(0, 0)])
    pages = chain.file._sql.execute("PRAGMA page_count").fetchone()[0]
    chain.file._sql.execute(f"PRAGMA max_page_count={pages + 4}")
    nonce = 1
    with pytest.raises(NodeStorageError, match="free some space"):
        while True:
            pool.add(payment(0, nonce).raw)
            extend(chain, pool.executable())
            nonce += 1
    head = chain.head
    with pytest.raises(NodeStorageError):
        while True:
            extend(chain)
    chain.file._sql.execute(f"PRAGMA max_page_count={1 << 30}")
    assert head.header.number <= chain.head.header.number
    pool.add(payment(0, nonce).raw)
    extend(chain, pool.executable())
    chain.close()
    assert replay(tmp_path / "chain.sqlite", made).transactions == nonce + 1


@pytest.mark.network
@pytest.mark.skipif(sys.platform != "linux", reason="sets another process' limits as Linux does")
def test_a_node_on_a_full_disk_answers_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    (node,) = build_network(tmp_path, genesis(min_difficulty=16, block_time_ms=1), 1)
    node.start()
    try:
        node.receipt(node.send(payment(0, 0).raw))
        largest = max(file.stat().st_size for file in node.settings.home.iterdir())
        node.process.rlimit(psutil.RLIMIT_FSIZE, (largest + 4096, resource.RLIM_INFINITY))
        acknowledged: list[str] = []
        with pytest.raises(RpcError, match="free some space"):
            for nonce in range(1, 2000):
                acknowledged.append(node.send(payment(0, nonce).raw))
        height = node.height()
        assert node.ask("eth_getBalance", KEYS[0].address) != "0x0"
        node.process.rlimit(psutil.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        acknowledged.append(node.send(payment(0, len(acknowledged) + 1).raw))
        for transaction_hash in acknowledged:
            assert node.receipt(transaction_hash)["status"] == "0x1"
        assert node.height() >= height
        assert node.terminate() == 0
        assert replay(node.settings.chain_file, genesis_of(node)).transactions == len(acknowledged) + 1
    finally:
        node.kill()


def genesis_of(node: NodeProcess) -> Genesis:
    return Genesis.load(node.settings.genesis)


@pytest.mark.network
def test_kill_9_at_any_moment_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    (node,) = build_network(tmp_path, genesis(min_difficulty=16, block_time_ms=1), 1)
    drawn = random.Random(3)
    acknowledged: list[str] = []
    height = 0
    try:
        for _ in range(4):
            node.start()
            assert node.height() >= height
            killer = threading.Timer(drawn.uniform(0.05, 0.6), node.kill)
            killer.start()
            try:
                while True:
                    acknowledged.append(node.send(payment(0, len(acknowledged)).raw))
                    height = node.height()
            except (LedgerUnreachableError, RpcError):
                killer.join()
            if node_has(node, payment(0, len(acknowledged)).hash):
                acknowledged.append("0x" + payment(0, len(acknowledged)).hash.hex())
        node.start()
        for transaction_hash in acknowledged:
            assert node.receipt(transaction_hash)["status"] == "0x1"
        assert node.terminate() == 0
        assert replay(node.settings.chain_file, genesis_of(node)).transactions == len(acknowledged)
    finally:
        node.kill()


def node_has(node: NodeProcess, transaction_hash: bytes) -> bool:
    """Whether the killed node has kept a transaction whose acknowledgement did not arrive."""
    chain = open_chain(node.settings.chain_file, genesis_of(node))
    known = Pool(chain).get(transaction_hash) is not None or chain.file.location(transaction_hash) is not None
    chain.close()
    return known


@pytest.mark.network
def test_a_node_that_finds_its_file_torn_opens_it_anew(tmp_path: Path, made: Genesis) -> None:
    hosted = Hosted(tmp_path, made)
    node = hosted.start(KEYS[0], mines=False)
    stop = threading.Event()
    node.start = lambda: None  # type: ignore[method-assign]  # it runs already
    serving = threading.Thread(target=_serve, args=(node, stop))
    serving.start()
    wait_for(lambda: getattr(node.chain.file.on_damage, "__self__", None), "the watch")
    node.chain.file.on_damage()
    serving.join(60)
    assert not serving.is_alive()
    assert not stop.is_set()
    with pytest.raises(sqlite3.ProgrammingError):
        node.chain.file.meta("genesis")  # closed
