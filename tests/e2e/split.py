"""A consortium whose network can be cut in two and joined again: node processes, real roles, links to cut."""

from __future__ import annotations

import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from consilia.cli.demo.layout import MemberKeys, free_ports
from consilia.errors import LedgerUnreachableError
from consilia.ledger.client import Founder, Ledger, contract_address, deploy, sign_founder
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.outbox import Outbox, OutboxEntry
from consilia.ledger.rpc import Rpc, quantity
from consilia.protocols.task_spec import parse_toml
from consilia.roles.hospital import Hospital
from consilia.roles.server import Server
from consilia.settings import HospitalSettings, ServerSettings, load
from consilia.values import Digest, Role
from tests.consortium import (
    CHAIN_ID,
    ServerThread,
    Steps,
    TinyTrainer,
    _Gone,
    make_member,
    spec_toml,
    write_first_model,
)

PATIENCE_SECONDS = 180.0
"""No test asserts on time; this only ends one that would hang."""
SERVERS = ("server-a", "server-b")
FAR_FUTURE = 2**40


class Link:
    """A way to one node that can be cut: it forwards bytes, or refuses and drops all connections."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open = True
        self._ended = False
        self._live: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut(self) -> None:
        """From now on nothing gets through."""
        self._open = False
        for connection in list(self._live):
            connection.close()

    def mend(self) -> None:
        """As before."""
        self._open = True

    def close(self) -> None:
        """For good."""
        self._ended = True
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while not self._ended:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._forward, args=(near,), daemon=True).start()

    def _forward(self, near: socket.socket) -> None:
        with near:
            if not self._open:
                return
            try:
                with socket.create_connection(("127.0.0.1", self._target), 5) as far:
                    self._live |= {near, far}
                    while self._open:
                        for ready in select.select([near, far], [], [], 0.2)[0]:
                            data = ready.recv(1 << 16)
                            if not data:
                                return
                            (far if ready is near else near).sendall(data)
            except (OSError, ValueError):
                return  # cut, or one end went away


def wait_for(look: Callable[[], Any], what: str) -> Any:
    """The first true answer of `look`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (answer := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return answer


class PatientTrainer(TinyTrainer):
    """Trains once the test lets it."""

    def __init__(self, number: int, go: threading.Event) -> None:
        super().__init__(number)
        self.go = go

    def train(self, weights: Path, round_index: int) -> tuple[float, int]:
        assert self.go.wait(PATIENCE_SECONDS)
        return super().train(weights, round_index)


class SplitTown:
    """Five hospitals with nodes, two servers; hospitals 0 to 2 and server-a are on one side, the rest on the other."""

    def __init__(self, home: Path, heed_witnesses: bool) -> None:
        self.home = home
        self.sides = ((0, 1, 2), (3, 4))
        names = [f"hospital-{number}" for number in range(5)]
        self.members = {name: make_member(home / name, name) for name in (*names, *SERVERS)}
        self.addresses = [self.members[name].account.address for name in names]
        self.genesis = Genesis(
            chain_id=CHAIN_ID,
            timestamp=int(time.time()) - 60,
            miners=tuple(self.addresses),
            balances_wei={member.account.address: 10**21 for member in self.members.values()},
            min_difficulty=64,
        )
        self.genesis.save(home / "genesis.json")
        self.ports = free_ports(5)
        self.links: dict[tuple[int, int], Link] = {}
        for one in range(5):
            for other in range(5):
                if self.side(one) != self.side(other):
                    self.links[one, other] = Link(self.ports[other])
        self.nodes = [self._start_node(index) for index in range(5)]
        self.deployment = deploy(
            self.url(0),
            self.members["server-a"].account,
            self._founders(),
            Outbox(home / "server-a" / "outbox.sqlite"),
            confirmations=3,
        )
        self.deployment.save(home / "deployment.json")
        for index, name in enumerate([*names, *SERVERS]):
            self._write_settings(name, index if index < 5 else self.sides[index - 5][0], heed_witnesses)
        self.go = threading.Event()
        self.trainers = [PatientTrainer(number + 1, self.go) for number in range(5)]
        self.steps = {name: Steps() for name in self.members}
        self.failures: list[BaseException] = []
        self.hospitals = [self._hospital(index) for index in range(5)]
        self.servers = [self.new_server(name) for name in SERVERS]

    def side(self, hospital: int) -> int:
        return int(hospital in self.sides[1])

    def url(self, node: int) -> str:
        return f"http://127.0.0.1:{self.ports[node]}"

    def way(self, one: int, other: int) -> str:
        """The address under which node `one`, or who uses it, finds node `other`."""
        link = self.links.get((one, other))
        return self.url(other) if link is None else link.url

    def split(self) -> None:
        """Cut all links between the sides."""
        for link in self.links.values():
            link.cut()

    def rejoin(self) -> None:
        """Mend them, and wait until all nodes have one head."""
        for link in self.links.values():
            link.mend()
        wait_for(lambda: len({self.head(node) for node in range(5)}) == 1, "one head")

    def head(self, node: int) -> str:
        return str(self.rpc(node, "eth_getBlockByNumber", "latest", False)["hash"])

    def height(self, node: int) -> int:
        return quantity(self.rpc(node, "eth_blockNumber"))

    def rpc(self, node: int, method: str, *parameters: Any) -> Any:
        return Rpc(self.url(node)).call(method, *parameters)

    def ledger(self, node: int) -> Ledger:
        """What a node tells at its head."""
        return Ledger(self.url(node), self.deployment)

    def nonce(self, node: int, name: str) -> int:
        """How many transactions of a member a node's chain has."""
        address = self.members[name].account.address
        return quantity(self.rpc(node, "eth_getTransactionCount", address, "latest"))

    def live(self, *indices: int) -> None:
        """Let hospitals do what the ledger asks of them, each in a thread of its own, until the end."""
        for index in indices:
            threading.Thread(target=self._live, args=(self.hospitals[index],), daemon=True).start()

    def serve(self, which: int, **terms: object) -> ServerThread:
        """Let a server run a task."""
        spec = parse_toml(spec_toml(**terms).replace("three tensors", f"three tensors of {SERVERS[which]}"))
        server = self.servers[which]
        return ServerThread(lambda: server.run_task(spec, write_first_model))

    def new_server(self, name: str) -> Server:
        """A server's process, started (again) on its home."""
        return Server(self.home / name, load(ServerSettings, self.home / name), self.steps[name])

    def sent(self, name: str) -> list[OutboxEntry]:
        """Every transaction that a member has signed."""
        outbox = Outbox(self.home / name / "outbox.sqlite")
        try:
            return outbox.from_nonce(CHAIN_ID, self.members[name].account.address, 0)
        finally:
            outbox.close()

    def close(self) -> None:
        """Stop everybody."""
        for party in (*self.hospitals, *self.servers):
            party.ledger = _Gone()
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.wait(30)
        for link in self.links.values():
            link.close()

    def _live(self, hospital: Hospital) -> None:
        try:
            for tasks in hospital.follow():
                for task in tasks.values():
                    hospital.advance(task)
        except LedgerUnreachableError:
            return  # the end
        except BaseException as error:  # noqa: BLE001  # the test looks at it
            self.failures.append(error)

    def _start_node(self, index: int) -> subprocess.Popen[str]:
        folder = self.home / f"hospital-{index}"
        settings = NodeSettings(
            home=folder / "node",
            genesis=self.home / "genesis.json",
            coinbase=self.addresses[index],
            port=self.ports[index],
            peers=tuple(self.way(index, other) for other in range(5) if other != index),
        )
        settings.save(folder / "node.json")
        node = subprocess.Popen(
            [sys.executable, "-m", "consilia.ledger.embedded", str(folder / "node.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert node.stdin is not None and node.stdout is not None
        node.stdin.write(bytes(self.members[f"hospital-{index}"].account.key).hex() + "\n")
        node.stdin.flush()
        assert node.stdout.readline().startswith("ready")
        return node

    def _hospital(self, index: int) -> Hospital:
        home = self.home / f"hospital-{index}"
        settings, steps = load(HospitalSettings, home), self.steps[f"hospital-{index}"]
        return Hospital(home, settings, steps, lambda spec, seed: self.trainers[index])

    def _founders(self) -> list[Founder]:
        registry = contract_address(self.members["server-a"].account.address, 0)
        return [_founder(member, registry) for member in self.members.values()]

    def _write_settings(self, name: str, node: int, heed_witnesses: bool) -> None:
        others = [self.way(node, other) for other in range(5) if other != node] if heed_witnesses else []
        data = "" if name in SERVERS else '[data]\npath = "data"\n'
        (self.home / name / "consilia.toml").write_text(
            f"""name = "{name}"
[ledger]
url = "{self.url(node)}"
deployment = "../deployment.json"
witnesses = {others!r}
[store]
path = "../store"
[keys]
account = "keys/account.json"
identity = "keys/identity.key"
password_file = "keys/password"
{data}"""
        )


def _founder(member: MemberKeys, registry: str) -> Founder:
    founder = Founder(
        account=member.account.address,
        recipient_key=member.identity.recipient,
        role=Role.SERVER if member.name in SERVERS else Role.HOSPITAL,
        certificate_digest=Digest.of(member.name.encode()),
        valid_from=0,
        valid_to=FAR_FUTURE,
        signature=b"",
    )
    signature = sign_founder(
        member.account,
        recipient_key=founder.recipient_key,
        role=founder.role,
        certificate_digest=founder.certificate_digest,
        valid_from=founder.valid_from,
        valid_to=founder.valid_to,
        chain_id=CHAIN_ID,
        registry=registry,
    )
    return replace(founder, signature=signature)


@contextmanager
def split_town(home: Path, heed_witnesses: bool) -> Iterator[SplitTown]:
    """A town for one test."""
    town = SplitTown(home, heed_witnesses)
    try:
        yield town
    finally:
        town.close()
