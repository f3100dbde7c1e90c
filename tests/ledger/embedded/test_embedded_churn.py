"""Nodes as processes that die and come back at random, while transactions come."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.errors import LedgerUnreachableError, RpcError
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.replay import replay
from tests.ledger.embedded.members import genesis, payment
from tests.ledger.embedded.network import NodeProcess, build_network, wait_for

pytestmark = [pytest.mark.network, pytest.mark.slow]
DEATHS = 30
CHURN_SECONDS = 120.0
PAUSE_SECONDS = (
    1.0,
    6.0,
)  # between two deaths: long enough that four nodes and their clients get some work done


@pytest.fixture
def network(tmp_path: Path) -> Iterator[list[NodeProcess]]:
    nodes = build_network(tmp_path, genesis(min_difficulty=1 << 10), 4)
    yield nodes
    for node in nodes:
        node.kill()


class Clients(threading.Thread):
    """Three hospitals that send through their own nodes, and keep what was acknowledged."""

    def __init__(self, nodes: list[NodeProcess]) -> None:
        super().__init__(name="clients")
        self.acknowledged: list[str] = []
        self._nodes = nodes
        self._nonces = [0] * len(nodes)
        self._done = threading.Event()

    def run(self) -> None:
        while not self._done.wait(1.0):
            for index in range(3):
                self._send(index)

    def finish(self) -> list[str]:
        """Stop sending; what was acknowledged."""
        self._done.set()
        self.join()
        return self.acknowledged

    def _send(self, index: int) -> None:
        try:
            self.acknowledged.append(self._nodes[index].send(payment(index, self._nonces[index]).raw))
        except (LedgerUnreachableError, RpcError) as error:
            if "nonce too low" not in str(error):  # the node is down; the same again later
                return
        self._nonces[index] += 1


def test_nodes_that_die_and_come_back_at_random_lose_nothing(network: list[NodeProcess]) -> None:
    """kill -9, again and again; afterwards there is one chain with all that any node ever acknowledged."""
    drawn = random.Random(5)
    for node in network:
        node.start()
    clients = Clients(network)
    clients.start()
    deadline, deaths = time.monotonic() + CHURN_SECONDS, 0
    while deaths < 3 or (time.monotonic() < deadline and deaths < DEATHS):
        time.sleep(drawn.uniform(*PAUSE_SECONDS))
        victim = drawn.choice(network)
        victim.kill()
        victim.start()
        deaths += 1
    acknowledged = clients.finish()
    assert len(acknowledged) >= 10
    for transaction_hash in acknowledged:
        assert {node.receipt(transaction_hash)["status"] for node in network} == {"0x1"}
    height = max(node.height() for node in network)
    wait_for(lambda: len({node.hash_of(height) for node in network}) == 1, "one chain")
    assert not any(node.ask("consilia_status")["cutOff"] for node in network)
    for node in network:
        assert node.terminate() == 0
        assert replay(node.settings.chain_file, Genesis.load(node.settings.genesis)).transactions >= len(
            set(acknowledged)
        )
