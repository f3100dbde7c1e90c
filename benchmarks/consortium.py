"""The real thing on the ballast: every party a process, four nodes, store, encryption, proof of work.

    python consortium.py HOME MEGABYTES HOSPITALS ROUNDS

Writes the rounds' times and every step that a party reported as HOME/rounds.json.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from ballast import expected_value, require_exact, write_initial

from consilia.cli.demo import layout
from consilia.cli.demo.processes import Processes, Step
from consilia.federation.tensors import TensorFile
from consilia.ledger.deployment import deploy
from consilia.ledger.outbox import Outbox

TASK = """title = "Ballast"

[purpose]
object_of_learning = "nothing"
application = "CT"

[data]
categories = ["lesion"]

[training]
rounds = {rounds}

[terms]
quorum = {hospitals}
max_hospitals = {hospitals}
enrol_seconds = 600
round_seconds = 600
reward_wei = 1000000
"""


@dataclass(frozen=True)
class Homes:
    """What must be there before anybody starts; made once in a consortium's life."""

    members: list[layout.MemberKeys]
    ports: list[int]
    started_at: int


def make_homes(home: Path, hospitals: int, rounds: int, megabytes: float) -> Homes:
    """Keys, settings, genesis, the task and its initial model."""
    names = [f"hospital-{number}" for number in range(1, hospitals + 1)]
    now = layout.now_seconds()
    members = layout.make_members(home, [*names, layout.SERVER])
    ports = layout.free_ports(hospitals)
    layout.write_genesis(home / "genesis.json", members, now)
    layout.write_server(home, ports)
    for number in range(1, hospitals + 1):
        layout.write_hospital(home, number, ports, layout.HospitalData(home))
    (home / "task.toml").write_text(TASK.format(rounds=rounds, hospitals=hospitals))
    write_initial(home / "initial.safetensors", megabytes)
    return Homes(members, ports, now)


def run(home: Path, homes: Homes, hospitals: int) -> list[Step]:
    """Start everybody as the demo does; hand back all that they reported until the last reward was claimed."""
    with Processes() as processes:
        for number in range(1, hospitals + 1):
            name = f"hospital-{number}"
            processes.start(name, ("ballast_hospital", str(home / name)), home / name / "process.log")
        steps = _await(processes, "node ready", hospitals)
        outbox = Outbox(home / layout.SERVER / "outbox.sqlite")
        founders = layout.founders_of(homes.members, homes.started_at)
        url = f"http://127.0.0.1:{homes.ports[0]}"
        deployment = deploy(url, homes.members[-1].account, founders, outbox)
        partial = home / "deployment.partial"
        deployment.save(partial)
        partial.replace(home / "deployment.json")
        steps.append(Step(time.time(), "benchmark", "contracts deployed", {}))
        server_home = home / layout.SERVER
        command = ("consilia", "server", "run", "--home", str(server_home), "--spec", str(home / "task.toml"))
        command += ("--initial-model", str(home / "initial.safetensors"), "--format", "json")
        processes.start(layout.SERVER, command, server_home / "process.log", ends=True)
        return steps + _await(processes, "done", hospitals)


def _await(processes: Processes, until: str, hospitals: int) -> list[Step]:
    steps: list[Step] = []
    there: set[str] = set()
    for step in processes.steps():
        steps.append(step)
        if step.step in ("refused", "round failed", "update rejected", "update late"):
            raise AssertionError(f"{step.name}: {step.step}: {step.facts}")
        if step.step == until:
            there.add(step.name)
        if len(there) == hospitals:
            break
    return steps


def require_average(home: Path, homes: Homes, rounds: int) -> None:
    """Check the last global model, which the server summed in the order of the hospitals' addresses."""
    hospitals = homes.members[:-1]
    by_address = sorted(range(len(hospitals)), key=lambda i: bytes.fromhex(hospitals[i].account.address[2:]))
    expected = expected_value([index + 1 for index in by_address], rounds)
    (last,) = (home / layout.SERVER / "models").glob(f"*/round-{rounds:03d}.safetensors")
    with TensorFile(last) as model:
        require_exact([model.read(name) for name in model.shapes], expected)


def main() -> None:
    """Make the homes, run the task, check the model, and only then say how long it took."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that `with Processes()` ends its children
    home, megabytes, hospitals, rounds = (
        Path(sys.argv[1]),
        float(sys.argv[2]),
        int(sys.argv[3]),
        int(sys.argv[4]),
    )
    began = time.time()
    homes = make_homes(home, hospitals, rounds, megabytes)
    started = time.time()
    steps = run(home, homes, hospitals)
    require_average(home, homes, rounds)
    closed = [step.time for step in steps if step.step == "round closed"]
    opened = next(step.time for step in steps if step.step == "started")
    first_work = min(step.time for step in steps if step.step == "training")
    result = {
        "set_up_seconds": started - began,
        "start_up_seconds": first_work - started,
        "times": [opened, *closed],
        "steps": [asdict(step) for step in steps],
    }
    (home / "rounds.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
