"""When a node mines, and that its search ends with it."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import time

import psutil
import pytest

from consilia.ledger.embedded import miner as miner_module
from consilia.ledger.embedded import seal
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.miner import BURIAL_BLOCKS, Miner
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.seal import seal_ceiling, seal_digest
from consilia.ledger.embedded.search import SearchProcess
from tests.ledger.embedded.members import KEYS, Consortium, extend, payment
from tests.ledger.embedded.network import credentials

PATIENCE_SECONDS = 60


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has reaped yet counts."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not gone(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


def test_the_search_finds_work_and_a_new_job_replaces_the_old() -> None:
    found: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
    search = SearchProcess(lambda *result: found.put(result))
    search.start(b"\1" * 32, 2**250)  # hopeless
    search.start(b"\2" * 32, 1000)
    mining_hash, nonce = found.get(timeout=PATIENCE_SECONDS)
    assert mining_hash == b"\2" * 32
    assert seal_digest(mining_hash, nonce) <= seal_ceiling(1000)
    search.stop()
    search.close()
    assert gone(search.pid)


def test_a_killed_search_is_started_again() -> None:
    found: queue.Queue[tuple[bytes, bytes]] = queue.Queue()
    search = SearchProcess(lambda *result: found.put(result))
    first = search.pid
    os.kill(first, signal.SIGKILL)
    wait_until_gone(first)
    search.start(b"\3" * 32, 10)
    assert found.get(timeout=PATIENCE_SECONDS)[0] == b"\3" * 32
    assert search.pid != first
    search.close()


SEARCH_AND_WAIT = """
from consilia.ledger.embedded.search import SearchProcess
import time
search = SearchProcess(print)
search.start(bytes(32), 2**250)
print(search.pid, flush=True)
time.sleep(600)
"""


def test_the_search_dies_with_its_node_even_after_kill_9() -> None:
    node = subprocess.Popen([sys.executable, "-c", SEARCH_AND_WAIT], stdout=subprocess.PIPE, text=True)
    assert node.stdout is not None
    pid = int(node.stdout.readline())
    assert not gone(pid)
    node.kill()
    node.wait()
    wait_until_gone(pid)


def test_the_search_imports_next_to_nothing() -> None:
    program = "import runpy, sys; runpy.run_path(sys.argv[1]); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, seal.__file__], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"rlp", "eth", "pydantic", "consilia", "json"} & set(modules)


class Watched:
    """A miner on its own chain that counts what it mines."""

    def __init__(self, consortium: Consortium, index: int = 0) -> None:
        self.chain = consortium.chain(f"miner{index}")
        self.pool = Pool(self.chain)
        self.blocks: queue.Queue[Block] = queue.Queue()
        self.miner = Miner(
            self.chain, self.pool, credentials(KEYS[index], self.chain.genesis), self.blocks.put
        )
        self.pool.on_new = self.miner.poke


def test_a_transaction_is_mined_and_buried_and_then_nothing(consortium: Consortium) -> None:
    watched = Watched(consortium)
    extend(watched.chain)  # a fresh head, so that no heartbeat is due
    watched.miner.start()
    watched.pool.add(payment(1, 0).raw)
    mined = [watched.blocks.get(timeout=PATIENCE_SECONDS) for _ in range(1 + BURIAL_BLOCKS)]
    assert [len(block.transactions) for block in mined] == [1] + [0] * BURIAL_BLOCKS
    seconds = watched.miner._seconds_until_due()
    assert seconds > miner_module.HEARTBEAT_SECONDS / 2
    watched.miner.close()
    assert watched.blocks.empty()
    assert gone(watched.miner.search_pid)


def test_a_program_that_waits_for_depth_gets_it_and_then_all_is_quiet(
    consortium: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(miner_module, "MAX_BURIAL_BLOCKS", 16)
    watched = Watched(consortium)
    extend(watched.chain, [payment(0, 0)])
    watched.miner.start()
    for _ in range(BURIAL_BLOCKS):
        watched.blocks.get(timeout=PATIENCE_SECONDS)
    watched.miner.bury(11)
    for _ in range(11 - BURIAL_BLOCKS):
        watched.blocks.get(timeout=PATIENCE_SECONDS)
    watched.miner.bury(5)  # somebody else is content with less
    assert watched.miner._seconds_until_due() > miner_module.HEARTBEAT_SECONDS / 2
    watched.miner.bury(10**9)  # whoever asks for the moon gets a bounded chain
    for _ in range(miner_module.MAX_BURIAL_BLOCKS - 11):
        watched.blocks.get(timeout=PATIENCE_SECONDS)
    assert watched.miner._seconds_until_due() > miner_module.HEARTBEAT_SECONDS / 2
    watched.miner.close()
    assert watched.blocks.empty()


def test_a_program_that_has_gone_is_not_mined_for(consortium: Consortium) -> None:
    watched = Watched(consortium)
    extend(watched.chain, [payment(0, 0)])
    for _ in range(BURIAL_BLOCKS):
        extend(watched.chain)
    watched.miner.bury(40)
    assert watched.miner._seconds_until_due() <= miner_module.MAX_GIVE_WAY_SECONDS
    watched.miner._asked_until = 0.0  # a minute later
    assert watched.miner._seconds_until_due() > miner_module.HEARTBEAT_SECONDS / 2
    watched.miner.close()


def test_what_waits_together_is_mined_together(consortium: Consortium) -> None:
    """However much waits, it costs one block and its burial: the chain keeps pace with the clock."""
    watched = Watched(consortium)
    extend(watched.chain)
    for nonce in range(25):
        for index in range(4):
            watched.pool.add(payment(index, nonce).raw)
    watched.miner.start()
    mined = [watched.blocks.get(timeout=PATIENCE_SECONDS) for _ in range(1 + BURIAL_BLOCKS)]
    watched.miner.close()
    assert [len(block.transactions) for block in mined] == [100] + [0] * BURIAL_BLOCKS


def test_a_full_pool_and_many_dead_miners_cost_a_bounded_silence(consortium: Consortium) -> None:
    watched = Watched(consortium)
    extend(watched.chain)
    for nonce in range(100):
        for index in range(4):
            watched.pool.add(payment(index, nonce).raw)
    most = miner_module.TURN_SECONDS + miner_module.MAX_TURN_TRANSACTIONS * (
        miner_module.TURN_SECONDS_PER_TRANSACTION
    )
    watched.miner._turn = lambda head: 49  # type: ignore[method-assign]  # last of fifty
    assert watched.miner._seconds_until_due() <= max(miner_module.MAX_GIVE_WAY_SECONDS, most) + 0.1
    watched.miner.close()


def test_a_transaction_that_cannot_run_yet_costs_no_block(consortium: Consortium) -> None:
    watched = Watched(consortium)
    extend(watched.chain)
    watched.pool.add(payment(1, 5).raw)
    assert watched.miner._seconds_until_due() > miner_module.HEARTBEAT_SECONDS / 2
    watched.miner.close()


def test_an_old_head_makes_a_heartbeat_due(consortium: Consortium) -> None:
    watched = Watched(consortium)  # the genesis is an hour old
    assert watched.miner._seconds_until_due() <= 0
    watched.miner.close()


def test_the_turns_go_round_by_the_parents_hash(consortium: Consortium) -> None:
    miners = [Watched(consortium, index) for index in range(4)]
    leaders = set()
    for _ in range(40):
        head = extend(miners[0].chain).header
        turns = [watched.miner._turn(head) for watched in miners]
        assert sorted(turns) == [0, 1, 2, 3]
        leaders.add(turns.index(0))
    assert leaders == {0, 1, 2, 3}
    for watched in miners:
        watched.miner.close()


def test_a_search_for_an_outdated_head_is_given_up(consortium: Consortium) -> None:
    watched = Watched(consortium)
    started: queue.Queue[bytes] = queue.Queue()
    start = watched.miner._search.start

    def hopeless(mining_hash: bytes, difficulty: int) -> None:
        started.put(mining_hash)
        start(mining_hash, 2**250)

    watched.miner._search.start = hopeless
    watched.miner.start()
    first = started.get(timeout=PATIENCE_SECONDS)
    other = consortium.chain("other")
    watched.chain.import_block(extend(other, [payment(0, 0)]))
    watched.miner.poke()
    second = started.get(timeout=PATIENCE_SECONDS)
    assert first != second
    assert watched.miner.stale >= 1
    watched.miner.close()


def test_the_seal_program_ends_when_stdin_closes() -> None:
    ended = subprocess.run(
        [sys.executable, "-I", "-S", seal.__file__], stdin=subprocess.DEVNULL, timeout=60, check=True
    )
    assert ended.returncode == 0
