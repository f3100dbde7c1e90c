"""Nodes as processes: they agree, share the blocks, come back after kill -9, and shrug off garbage."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from consilia.errors import HomeError
from consilia.ledger.chain import Chain as Reader
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.node import Node
from consilia.ledger.embedded.replay import replay
from consilia.ledger.rpc import Rpc
from tests.ledger.embedded.members import KEYS, extend, genesis, payment
from tests.ledger.embedded.network import (
    PATIENCE_SECONDS,
    NodeProcess,
    build_network,
    credentials,
    free_ports,
    wait_for,
)

pytestmark = pytest.mark.network


@pytest.fixture
def network(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    nodes = build_network(tmp_path, genesis(min_difficulty=1 << 12), 3)
    yield nodes
    for node in nodes:
        node.kill()


def agree(nodes: list[NodeProcess], number: int) -> bool:
    hashes = {node.hash_of(number) for node in nodes}
    return len(hashes) == 1 and None not in hashes


def test_three_nodes_agree_share_the_blocks_and_survive_kill_9(network: list[NodeProcess]) -> None:
    for node in network:
        node.start()
    for nonce in range(12):
        sent = [node.send(payment(index, nonce).raw) for index, node in enumerate(network)]
        for transaction_hash in sent:
            assert {node.receipt(transaction_hash)["status"] for node in network} == {"0x1"}

    victim = network[2]
    search = victim.ask("consilia_status")["searchPid"]
    unmined = payment(3, 0)
    for node in network[:2]:
        node.process.suspend()  # nobody hears of it
    victim.ask("eth_sendRawTransaction", "0x" + unmined.raw.hex())
    victim.kill()
    for node in network[:2]:
        node.process.resume()
    wait_for(
        lambda: not psutil.pid_exists(search) or psutil.Process(search).status() == "zombie", "the search"
    )

    for nonce in range(12, 18):
        network[0].receipt(network[0].send(payment(0, nonce).raw))
    victim.start()
    for node in network:
        assert node.receipt("0x" + unmined.hash.hex())["status"] == "0x1"
    height = max(node.height() for node in network)
    wait_for(lambda: agree(network, height), "one chain on all three")

    miners = Counter(
        network[0].ask("eth_getBlockByNumber", hex(n), False)["miner"] for n in range(1, height + 1)
    )
    assert set(miners) == {KEYS[index].address for index in range(3)}
    assert sum(victim.ask("consilia_status")["peers"].values()) == 2

    # Whoever wants more confirmations than the chain gives by itself does not wait for heartbeats, one a minute.
    reader = Reader(Rpc(network[1].url), confirmations=9)
    number = int(network[1].receipt(network[1].send(payment(1, 12).raw))["blockNumber"], 16)
    assert reader.wait(number - 1, PATIENCE_SECONDS) >= number
    for node in network:
        assert node.terminate() == 0
        report = replay(node.settings.chain_file, genesis_of(node))
        assert report.height >= height
        assert report.transactions == 3 * 12 + 6 + 1 + 1


def genesis_of(node: NodeProcess) -> Genesis:
    return genesis_at(node.settings)


def genesis_at(settings: NodeSettings) -> Genesis:
    return Genesis.load(settings.genesis)


@pytest.fixture
def patient_network(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    """Two nodes whose difficulty stays low however fast the test mines."""
    nodes = build_network(tmp_path, genesis(min_difficulty=16, block_time_ms=1), 2)
    yield nodes
    for node in nodes:
        node.kill()


def test_a_node_catches_up_over_a_long_gap_and_a_fork(patient_network: list[NodeProcess]) -> None:
    """Three hundred blocks to fetch, in several messages, and an own branch to give up on the way."""
    network = patient_network
    made = genesis_of(network[0])
    for node in network:
        node.settings.home.mkdir()
    shared = Chain(network[0].settings.chain_file, made)
    for _ in range(5):
        extend(shared)
    fork = Chain(network[1].settings.chain_file, made)
    for block in shared.blocks_after(fork.locator(), 100, 1 << 20):
        fork.import_block(block)
    lost = payment(3, 0)
    extend(fork, [lost], index=1)
    extend(fork, index=1)
    for _ in range(300):
        extend(shared)
    tip = "0x" + shared.head.header.hash.hex()
    number = shared.head.header.number
    shared.close()
    fork.close()

    for node in network:
        node.start()
    wait_for(lambda: network[1].hash_of(number) == tip, "the longer chain")
    status = network[1].ask("consilia_status")
    assert status["reorgs"] >= 1
    assert status["imported"] >= 300
    assert network[0].receipt("0x" + lost.hash.hex())["status"] == "0x1"  # it came back and was mined


HOSPITAL = """
import subprocess, sys, time
command = [sys.executable, "-m", "consilia.ledger.embedded", sys.argv[1]]
child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdin.write(sys.argv[2].encode() + b"\\n")
child.stdin.flush()
print(child.stdout.readline().decode().strip(), child.pid, flush=True)
time.sleep(600)
"""


def test_a_node_stops_when_its_hospital_is_killed(network: list[NodeProcess]) -> None:
    node = network[0]
    hospital = subprocess.Popen(
        [sys.executable, "-c", HOSPITAL, str(node._file), bytes(KEYS[0].key).hex()],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert hospital.stdout is not None
    ready, url, pid = hospital.stdout.readline().split()
    assert (ready, url) == ("ready", node.url)
    search = node.ask("consilia_status")["searchPid"]
    os.kill(hospital.pid, signal.SIGKILL)
    hospital.wait()
    for process in (int(pid), search):
        wait_for(
            lambda process=process: (
                not psutil.pid_exists(process) or psutil.Process(process).status() == psutil.STATUS_ZOMBIE
            ),
            f"the end of process {process}",
        )
    assert not node.answers()


def test_unusable_settings_end_with_a_word_and_a_code(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "consilia.ledger.embedded"]
    missing = subprocess.run(
        [*command, str(tmp_path / "no.json")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 2
    assert "expected a NodeSettings file" in missing.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 2
    genesis().save(tmp_path / "genesis.json")
    settings = NodeSettings(
        home=tmp_path / "home", genesis=tmp_path / "genesis.json", coinbase=KEYS[0].address, port=0
    )
    settings.save(tmp_path / "node.json")
    for line in ("12", bytes(KEYS[1].key).hex()):
        wrong = subprocess.run(
            [*command, str(tmp_path / "node.json")], input=line, capture_output=True, text=True, check=False
        )
        assert wrong.returncode == 2
        assert line not in wrong.stderr  # a secret is not repeated


def test_a_taken_port_is_said(tmp_path: Path) -> None:
    genesis().save(tmp_path / "genesis.json")
    (port,) = free_ports(1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        settings = NodeSettings(
            home=tmp_path / "home", genesis=tmp_path / "genesis.json", coinbase=KEYS[0].address, port=port
        )
        with pytest.raises(HomeError, match=f"cannot listen on 127.0.0.1:{port}"):
            Node(settings)


def test_a_member_without_a_place_among_the_miners_follows(tmp_path: Path) -> None:
    genesis(miners=(KEYS[1].address,)).save(tmp_path / "genesis.json")
    (port,) = free_ports(1)
    settings = NodeSettings(
        home=tmp_path / "home", genesis=tmp_path / "genesis.json", coinbase=KEYS[0].address, port=port
    )
    node = Node(settings, credentials(KEYS[0], genesis_at(settings)))
    node.start()
    assert node.miner is not None
    assert not node.miner.admitted
    block = extend(Chain(tmp_path / "other.sqlite", node.chain.genesis), index=1)
    assert node.take_block(block)
    assert node.chain.head.header == block.header
    node.close()
