"""A consortium of real processes on loopback: hospitals with their nodes, a server, and signals sent to them."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from consilia.cli.demo import layout
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.deployment import deploy
from consilia.ledger.events import Claimed
from consilia.ledger.outbox import Outbox
from consilia.protocols.task_spec import parse_toml
from consilia.settings import SETTINGS_FILE
from consilia.settings.network import Network
from consilia.settings.sections import StoreSection
from tests.ceph import section_toml
from tests.consortium import KEYS_IN_FILES, make_member, make_member_in_token, spec_toml, write_first_model
from tests.softhsm import SoftHsm

ROOT = Path(__file__).parents[2]
FOLDER_STORE = '[store]\npath = "../store"\n'
PATIENCE_SECONDS = 240.0
"""No test asserts on time; this only ends one that would hang."""


class PartyProcess:
    """One party's process and what it has reported."""

    def __init__(self, name: str, command: list[str], log: Path) -> None:
        self.name = name
        self.steps: list[dict[str, Any]] = []
        self._news = threading.Condition()
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._log = log
        threading.Thread(target=self._read, daemon=True).start()

    def wait_for(self, step: str, times: int = 1) -> dict[str, Any]:
        """Wait until the party has reported a step that often; the newest report of it."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        with self._news:
            while True:
                found = [said for said in self.steps if said["step"] == step]
                if len(found) >= times:
                    return found[times - 1]
                ended = self.process.poll() is not None
                said = [line["step"] for line in self.steps]
                assert time.monotonic() < deadline and not ended, (
                    f"{self.name} did not say {step!r} but {said}; it ended: {ended}; {self._log.read_text()[-800:]}"
                )
                self._news.wait(0.5)

    def kill(self) -> None:
        """kill -9 this process alone; its node has to notice by itself."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(family, timeout=30)
        assert not alive, f"{self.name} left {alive}"

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.steps.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._news.notify_all()


class RunningConsortium:
    """Homes as the demo makes them, a tiny model, and every party a process. A context manager."""

    def __init__(
        self,
        home: Path,
        hospitals: int,
        rounds: int,
        store: StoreSection | None = None,
        softhsm: SoftHsm | None = None,
    ) -> None:
        """`store` is where all parties keep their envelopes, by default a folder in the home; with `softhsm` the second
        hospital has both its keys in that token."""
        self.home = home
        self.names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
        for name in [*self.names, layout.SERVER]:
            make_member(home / name, name)
        members = layout.make_members(home, [*self.names, layout.SERVER])
        if softhsm is not None:
            shutil.rmtree(home / "hospital-2")
            members[1] = make_member_in_token(home / "hospital-2", "hospital-2", softhsm)
        self.addresses = [member.account.address for member in members[:-1]]
        self.started_at = layout.now_seconds()
        layout.write_genesis(home / "genesis.json", members, self.started_at)
        self.ports = layout.free_ports(hospitals)
        for number in range(1, hospitals + 1):
            layout.write_hospital(home, number, self.ports, layout.HospitalData(Path("data")))
        layout.write_server(home, self.ports)
        layout.write_network(home, hospitals)
        if softhsm is not None:
            file = home / "hospital-2" / SETTINGS_FILE
            file.write_text(file.read_text().replace(KEYS_IN_FILES, softhsm.toml(str(home))))
        if store is not None:
            self._use_store(store)
        self.spec = spec_toml(hospitals, rounds=rounds)
        (home / "task.toml").write_text(self.spec)
        write_first_model(parse_toml(self.spec), home / "first.safetensors")
        self.members = members
        self.url: str | None = None
        self.parties: dict[str, PartyProcess] = {}

    def __enter__(self) -> RunningConsortium:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the hospitals, deploy the contracts, start the server."""
        if self.url is None:
            for name in self.names:
                self.start_hospital(name)
            for name in self.names:
                self.parties[name].wait_for("node ready")
        founders = layout.founders_of(self.members, self.started_at)
        outbox = Outbox(self.home / "server" / "outbox.sqlite")
        url = self.url or f"http://127.0.0.1:{self.ports[0]}"
        deployment = deploy(url, self.members[-1].account, founders, outbox)
        outbox.close()
        deployment.save(self.home / "deployment.partial")
        (self.home / "deployment.partial").replace(self.home / "deployment.json")
        if self.url is not None:
            for name in self.names:
                self.start_hospital(name)
        self.start_server()

    def use_network(self, url: str) -> None:
        """Put the ledger on an EVM network that runs already; no hospital has a node of its own."""
        for name in [*self.names, layout.SERVER]:
            file = self.home / name / SETTINGS_FILE
            text = re.sub(r"\[node\]\n(?:\w+ = .*\n)+", "", file.read_text())
            text = re.sub(r'url = ".*"', f'url = "{url}"', text)
            text = re.sub(r"confirmations = .*", 'confirmations = "finality"', text)
            file.write_text(re.sub(r"witnesses = .*", "witnesses = []", text))
        network = Network.load(self.home).model_dump(exclude={"genesis"}, exclude_unset=True)
        Network(**network, url=url).save(self.home)
        self.url = url

    def _use_store(self, store: StoreSection) -> None:
        for name in [*self.names, layout.SERVER]:
            file = self.home / name / SETTINGS_FILE
            text = file.read_text()
            assert FOLDER_STORE in text
            file.write_text(text.replace(FOLDER_STORE, section_toml(store)))
        network = Network.load(self.home)
        network.model_copy(update={"store": store}).save(self.home)

    def start_hospital(self, name: str) -> PartyProcess:
        """Start a hospital (again)."""
        home = self.home / name
        command = ["tests.e2e.hospital_process", str(home), name.rpartition("-")[2]]
        self.parties[name] = PartyProcess(name, command, home / "process.log")
        return self.parties[name]

    def start_server(self) -> PartyProcess:
        """Start the server (again)."""
        home = self.home / "server"
        command = ["consilia", "server", "run", "--home", str(home), "--spec", str(self.home / "task.toml")]
        command += ["--initial-model", str(self.home / "first.safetensors"), "--format", "json"]
        self.parties["server"] = PartyProcess("server", command, home / "process.log")
        return self.parties["server"]

    def ledger(self, port: int) -> Ledger:
        """What one node tells."""
        return Ledger(f"http://127.0.0.1:{port}", Deployment.load(self.home / "deployment.json"))

    def finish_work(self) -> None:
        """Wait until every node knows of the last claim, and the server has ended."""
        for name in self.names:
            self.parties[name].wait_for("done")
        for port in self.ports if self.url is None else ():
            ledger = self.ledger(port)
            while sum(isinstance(event, Claimed) for event in ledger.events()) < len(self.names):
                ledger.wait(ledger.confirmed_block().number, 5.0)
        assert self.parties["server"].process.wait(60) == 0

    def stop(self) -> None:
        """Stop everybody."""
        for party in self.parties.values():
            party.stop()


def consilia(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    command = [sys.executable, "-m", "consilia", *arguments, "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)


def audit(home: Path) -> subprocess.CompletedProcess[str]:
    """`consilia audit verify` of a home."""
    command = [sys.executable, "-m", "consilia", "audit", "verify", "--home", str(home), "--format", "json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
