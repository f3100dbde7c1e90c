"""Real processes on the embedded chain: a consortium is founded by commands, somebody joins, works, is suspended."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import Claimed, UpdateRegistered
from consilia.ledger.registry import Kind
from consilia.ledger.rpc import Rpc, quantity
from consilia.protocols.task_spec import parse_toml
from tests.consortium import PASSWORD, make_member, spec_toml, write_first_model
from tests.e2e.running import PATIENCE_SECONDS, PartyProcess

pytestmark = [pytest.mark.network, pytest.mark.slow]


def network(*arguments: str | Path) -> list[dict[str, Any]]:
    """A `consilia network` command; what it said."""
    command = [sys.executable, "-m", "consilia", "network", *map(str, arguments), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def eventually(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.2)
    return found


class Town:
    """Homes made by commands, parties as processes."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.store = home / "store"
        self.parties: dict[str, PartyProcess] = {}
        self.accounts: dict[str, str] = {}

    def member_home(self, name: str) -> Path:
        """A home with cheap keys: scrypt at its usual cost takes half a second a key."""
        if not (self.home / name).exists():
            self.accounts[name] = make_member(self.home / name, name).account.address
            assert (self.home / name / "keys" / "password").read_text() == PASSWORD + "\n"
        return self.home / name

    def start_hospital(self, name: str) -> PartyProcess:
        command = ["tests.e2e.hospital_process", str(self.home / name), name.rpartition("-")[2]]
        self.parties[name] = PartyProcess(name, command, self.home / name / "process.log")
        return self.parties[name]

    def run_task(self, spec: str) -> PartyProcess:
        (self.home / "task.toml").write_text(spec)
        write_first_model(parse_toml(spec), self.home / "first.safetensors")
        command = ["consilia", "server", "run", "--home", str(self.home / "server")]
        command += ["--spec", str(self.home / "task.toml"), "--format", "json"]
        command += ["--initial-model", str(self.home / "first.safetensors")]
        self.parties["server"] = PartyProcess("server", command, self.home / "server" / "process.log")
        return self.parties["server"]

    def admit(self, name: str, voters: list[str], role: str = "hospital") -> None:
        """The three commands of an admission: invite, join, vote."""
        invite = self.home / f"invite-{name}.json"
        written = network("invite", "--home", self.home / voters[0], "--to", invite, "--role", role)[-1]
        data = ["--data", self.home / "data"] if role == "hospital" else []
        joined = network("join", invite, "--home", self.member_home(name), *data)[0]
        assert joined["invite_fingerprint"] == written["fingerprint"]
        said = network("vote", "--home", self.home / voters[0], "--request", joined["request"])
        for voter in voters[1:]:
            said = network("vote", said[0]["proposal"], "--home", self.home / voter)
        assert said[1]["step"] == "decided", said

    def ledger(self, name: str) -> Ledger:
        settings = json.loads((self.home / name / "node" / "node.json").read_text())
        deployment = Deployment.load(self.home / name / "deployment.json")
        return Ledger(f"http://127.0.0.1:{settings['port']}", deployment)

    def mined_by(self, name: str, after: int = 0) -> set[int]:
        """The numbers of the blocks on the first hospital's chain that a hospital sealed."""
        ledger = self.ledger("hospital-1")
        head = ledger.confirmed_block().number
        numbers = range(after + 1, head + 1)
        return {number for number in numbers if ledger.block(number).miner == self.accounts[name]}

    def stop(self) -> None:
        for party in self.parties.values():
            party.stop()


@pytest.fixture
def town(tmp_path: Path) -> Any:
    made = Town(tmp_path)
    (tmp_path / "data").mkdir()
    yield made
    made.stop()


def found(town: Town) -> None:
    """Two hospitals and a server found the consortium, each by its own signature."""
    first = town.member_home("hospital-1")
    create = ["create", "--home", first, "--store", town.store, "--data", town.home / "data"]
    network(*create, "--prepare")
    requests: list[str | Path] = []
    for name, role in (("hospital-2", "hospital"), ("server", "server")):
        data = ["--data", town.home / "data"] if role == "hospital" else []
        home = town.member_home(name)
        joined = network("join", first / "founding-invite.json", "--home", home, "--role", role, *data)[0]
        requests += ["--founder", joined["request"]]
    done = network(*create, *requests)[-1]
    assert done["step"] == "consortium founded"
    assert network(*create, *requests)[-1]["registry"] == done["registry"]  # once, however often
    town.start_hospital("hospital-1").wait_for("ready")
    for name, role in (("hospital-2", "hospital"), ("server", "server")):
        invite = town.home / f"founded-{name}.json"
        network("invite", "--home", first, "--to", invite)
        data = ["--data", town.home / "data"] if role == "hospital" else []
        network("join", invite, "--home", town.home / name, "--role", role, *data)
    town.start_hospital("hospital-2").wait_for("ready")


def test_somebody_joins_works_and_is_suspended(town: Town) -> None:
    found(town)
    voters = ["hospital-1", "hospital-2"]
    town.admit("hospital-3", voters)
    newcomer = town.start_hospital("hospital-3")
    newcomer.wait_for("ready")
    everybody = ["hospital-1", "hospital-2", "server", "hospital-3"]
    listed = network("members", "--home", town.home / "hospital-3")
    assert [member["account"] for member in listed] == [town.accounts[name] for name in everybody]
    assert {member["standing"] for member in listed} == {"active"}

    # it takes part, mines and is paid
    server = town.run_task(spec_toml(3, rounds=3, quorum=2, grace_seconds=60.0))
    newcomer.wait_for("done")
    assert server.process.wait(PATIENCE_SECONDS) == 0
    events = town.ledger("hospital-1").events()
    account = town.accounts["hospital-3"]
    updates = [event for event in events if isinstance(event, UpdateRegistered) and event.hospital == account]
    assert len(updates) == 3
    assert any(isinstance(event, Claimed) and event.member == account for event in events)
    eventually(lambda: town.mined_by("hospital-3"), "a block of the newcomer")

    # it is suspended: its blocks and its transactions are refused from the next block on
    said = network("vote", "--home", town.home / "hospital-1", "--suspend", account)
    for voter in ("hospital-2", "server"):
        said = network("vote", said[0]["proposal"], "--home", town.home / voter)
    assert said[1]["step"] == "decided"
    ledger = town.ledger("hospital-1")
    assert not ledger.registry.is_active(account, ledger.member(account).role)
    decided = ledger.confirmed_block().number
    # enrolment stays open for a while, so that the suspended one sees the task before it has begun without it
    second = town.run_task(spec_toml(3, rounds=2, quorum=2, enrol_seconds=30, reward_wei=10**18 + 2))
    second.wait_for("published")
    assert second.process.wait(PATIENCE_SECONDS) == 0
    newcomer.wait_for("not in good standing")
    late = [
        event
        for event in town.ledger("hospital-1").events(decided + 1)
        if isinstance(event, UpdateRegistered)
    ]
    assert len(late) == 4 and account not in {event.hospital for event in late}
    assert not town.mined_by("hospital-3", decided)
    own = Rpc(f"http://127.0.0.1:{json.loads((town.home / 'hospital-3/node/node.json').read_text())['port']}")
    head = ledger.confirmed_block().number
    eventually(
        lambda: quantity(own.call("eth_blockNumber")) >= head, "the suspended node, which still follows"
    )


def test_a_first_founder_alone_and_a_member_that_leaves(town: Town) -> None:
    first = town.member_home("hospital-1")
    network("create", "--home", first, "--store", town.store, "--data", town.home / "data")
    town.start_hospital("hospital-1").wait_for("ready")
    town.admit("hospital-2", ["hospital-1"])
    shown = network("show", "--home", first)[0]
    assert (shown["members"], shown["electorate"], shown["open_proposals"]) == (2, 2, 0)
    town.start_hospital("hospital-2").wait_for("ready")
    eventually(
        lambda: network("members", "--home", town.home / "hospital-2")[1:],
        "the newcomer's own node knows that it is admitted",
    )
    network("vote", "--home", first, "--quorum", "80")
    (waiting,) = eventually(
        lambda: [
            said for said in network("vote", "--home", town.home / "hospital-2") if said["step"] == "open"
        ],
        "the newcomer's node to hear of the proposal",
    )
    assert (waiting["approvals"], waiting["needed"]) == (1, 2)
    # money for its gas came with the admission
    assert network("leave", "--home", town.home / "hospital-2", "--yes")[0]["step"] == "left"
    registry = town.ledger("hospital-1").registry
    eventually(lambda: registry.electorate() == 1, "the first node to hear of it")
    assert registry.proposal(2).kind is Kind.QUORUM
