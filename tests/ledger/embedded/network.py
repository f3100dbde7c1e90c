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
from eth_account.signers.local import LocalAccount

from consilia.errors import LedgerUnreachableError
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.node_key import Credentials, NodeKey, delegation_digest
from consilia.ledger.embedded.peer import PeerConnection, Speaker
from consilia.ledger.rpc import Rpc
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

    def __init__(self, settings: NodeSettings, folder: Path, account: LocalAccount) -> None:
        self.settings = settings
        self._account = account
        self.url = f"http://{settings.host}:{settings.port}"
        self._file = folder / f"settings{settings.port}.json"
        settings.save(self._file)
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start, and return once it answers."""
        command = [sys.executable, "-m", "consilia.ledger.embedded", str(self._file)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(bytes(self._account.key).hex() + "\n")
        self._process.stdin.flush()
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
        return Rpc(self.url).call(method, *parameters)

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


def connect(url: str, account: LocalAccount, genesis: Genesis, own_url: str = "http://x") -> PeerConnection:
    """A connection to a node in the name of a member, or of anybody: what an attacker has, too."""
    return PeerConnection(url, Speaker(credentials(account, genesis), genesis.digest(), own_url))


def credentials(account: LocalAccount, genesis: Genesis) -> Credentials:
    """A fresh key that speaks for an account, as a hospital hands it to its node."""
    key = NodeKey.generate()
    delegation = account.unsafe_sign_hash(delegation_digest(genesis.digest(), key.address)).signature
    return Credentials(key, bytes(delegation))


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
            KEYS[index],
        )
        for index, port in enumerate(ports)
    ]
