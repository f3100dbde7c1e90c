"""A network of real node processes on loopback."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import psutil

from consilia.errors import LedgerUnreachableError
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.gossip import PeerConnection
from tests.ledger.embedded.members import KEYS

T = TypeVar("T")
PATIENCE_SECONDS = 120.0


def wait_for(look: Callable[[], T], what: str) -> T:
    """The first true answer of `look`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
    return answer


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    for taken in sockets:
        taken.bind(("127.0.0.1", 0))
    ports = [int(taken.getsockname()[1]) for taken in sockets]
    for taken in sockets:
        taken.close()
    return ports


class NodeProcess:
    """One node as a hospital starts it."""

    def __init__(self, settings: NodeSettings, folder: Path) -> None:
        self.settings = settings
        self.url = f"http://{settings.host}:{settings.port}"
        self._file = folder / f"settings{settings.port}.json"
        settings.save(self._file)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and return once it answers."""
        command = [sys.executable, "-m", "consilia.ledger.embedded", str(self._file)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == f"ready {self.url}\n"

    @property
    def process(self) -> psutil.Process:
        """The running process."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> int:
        """Ask it to stop; its exit code."""
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(PATIENCE_SECONDS)

    def ask(self, method: str, *parameters: Any) -> Any:
        """Call a method."""
        return PeerConnection(self.url).ask(method, *parameters)

    def answers(self) -> bool:
        """Whether anybody listens."""
        try:
            return bool(self.ask("eth_chainId"))
        except LedgerUnreachableError:
            return False

    def height(self) -> int:
        """The number of its head."""
        return int(self.ask("eth_blockNumber"), 16)

    def hash_of(self, number: int) -> str | None:
        """The hash of its canonical block with this number."""
        block = self.ask("eth_getBlockByNumber", hex(number), False)
        return None if block is None else str(block["hash"])

    def send(self, raw: bytes) -> str:
        """Send a transaction; its hash."""
        return str(self.ask("eth_sendRawTransaction", "0x" + raw.hex()))

    def receipt(self, transaction_hash: str) -> Any:
        """Wait for a receipt."""
        return wait_for(lambda: self.ask("eth_getTransactionReceipt", transaction_hash), "a receipt")


def build_network(folder: Path, genesis: Genesis, count: int) -> list[NodeProcess]:
    """Nodes that know one another, not started yet."""
    genesis.save(folder / "genesis.json")
    ports = free_ports(count)
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    return [
        NodeProcess(
            NodeSettings(
                home=folder / f"node{index}",
                genesis=folder / "genesis.json",
                coinbase=KEYS[index].address,
                port=port,
                peers=tuple(url for url in urls if url != urls[index]),
            ),
            folder,
        )
        for index, port in enumerate(ports)
    ]
