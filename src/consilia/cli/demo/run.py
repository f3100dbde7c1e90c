"""The course of a demo: homes, data, processes, the task, the yardsticks, the audit, the report."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from consilia.cli.demo import layout
from consilia.cli.demo.consulting import OFFER, consult, write_archive
from consilia.cli.demo.data import Shares, phantom_shares, real_shares
from consilia.cli.demo.plan import Plan, locked, settle_plan
from consilia.cli.demo.processes import Processes, Step
from consilia.cli.demo.workers import two_workers
from consilia.cli.demo.yardsticks import Site, TrainingJob, train
from consilia.cli.output import Format, Output, make_room
from consilia.cli.report.consultation import ConsultationReport
from consilia.errors import ConsiliaError
from consilia.ledger.deployment import deploy
from consilia.ledger.outbox import Outbox
from consilia.ledger.rpc import Rpc
from consilia.protocols.code_book import FindingCode, described
from consilia.protocols.task_spec import parse_toml
from consilia.settings import toml_value
from consilia.settings.sections import DataSection

REWARD_WEI = 10 * 10**18
TASK_FILE = "task.toml"


@dataclass
class Clock:
    """Seconds by phase; a resumed run counts its own only."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count what happens inside as one phase."""
        began = time.monotonic()
        yield
        self.add(name, time.monotonic() - began)

    def add(self, name: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def total(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.began


@dataclass(frozen=True)
class Yardstick:
    """A model trained for comparison: one hospital's alone, or all pooled (no hospital)."""

    hospital: str
    model: Path
    steps: int
    seconds: float


@dataclass(frozen=True)
class Course:
    """What was seen while the consortium ran."""

    steps: list[Step]
    reorgs: int
    consultation: ConsultationReport | None = None


def run(home: Path, wanted: Plan, output: Format) -> None:
    """Run a demo in a home, or resume the one that began there.

    Raises:
        InputError: the home cannot be made, or holds something else, or a finished run.
        ConsiliaError: a party ended that should not have.
    """
    make_room(home, folder=True)
    signal.signal(signal.SIGTERM, _interrupt)
    home = (
        home.resolve()
    )  # it goes into the settings of parties, whose relative paths start at their own homes
    say, clock = Output("demo", output), Clock()
    with locked(home):
        fresh = wanted.model_copy(
            update={"ports": tuple(layout.free_ports(wanted.hospitals)), "started_at": layout.now_seconds()}
        )
        plan = settle_plan(home, fresh)
        say(
            "home",
            path=str(home),
            hospitals=plan.hospitals,
            rounds=plan.rounds,
            local_epochs=plan.local_epochs,
        )
        with clock.phase("setup"):
            members = _make_homes(home, plan)
        with clock.phase("data"):
            shares = phantom_shares(home, plan) if plan.data is None else real_shares(home, plan, plan.data)
            if plan.data is None:
                write_archive(home, plan.seed)
        for number, share in enumerate(shares.hospitals, start=1):
            layout.write_hospital(home, number, plan.ports, share)
        (home / TASK_FILE).write_text(task_toml(plan, shares), "utf-8")
        say(
            "data ready",
            images=sum(d.images for d in shares.reported),
            held_out_images=shares.held_out_images[1],
        )
        course = _federate(home, plan, members, say, clock)
        with clock.phase("yardsticks"):
            yardsticks = _train_yardsticks(home, plan, shares, say)
        from consilia.cli.demo.account import write_report

        write_report(home, plan, shares, course, yardsticks, clock, say)


def _make_homes(home: Path, plan: Plan) -> list[layout.MemberKeys]:
    names = [f"hospital-{number}" for number in range(1, plan.hospitals + 1)]
    members = layout.make_members(home, [*names, layout.SERVER])
    layout.write_genesis(home / "genesis.json", members, plan.started_at)
    layout.write_server(home, plan.ports, OFFER if plan.data is None else "")
    layout.write_network(home, plan.hospitals)
    return members


def task_toml(plan: Plan, shares: Shares) -> str:
    """The task that the server publishes, as a person would write it."""
    names = ", ".join(shares.categories)
    window = ""
    if shares.window is not None:
        window = f"window_center_hu = {shares.window.center_hu}\nwindow_width_hu = {shares.window.width_hu}\n"
    findings = "".join(_finding_toml(item) for item in described(shares.categories))
    return f"""title = {toml_value(f"{names} on {plan.application}, {plan.hospitals} hospitals")}

[purpose]
object_of_learning = {toml_value(names)}
application = {toml_value(plan.application)}
equipment = "any"
purpose = "research"

[data]
format = "{shares.format}"
categories = {toml_value(shares.categories)}
{window}
[model]
detector = {toml_value(plan.detector)}
backbone = {toml_value(plan.backbone)}
image_size = {plan.image_size}
seed = {plan.seed}

[training]
rounds = {plan.rounds}
local_epochs = {plan.local_epochs}
learning_rate = {plan.learning_rate}
batch_size = {plan.batch_size}

[terms]
quorum = {max(2, plan.hospitals - 1)}
max_hospitals = {plan.hospitals}
enrol_seconds = 600
round_seconds = 3600
grace_seconds = 600
reward_wei = {REWARD_WEI}
{findings}"""


def _finding_toml(item: FindingCode) -> str:
    coding = ""
    if item.coding is not None:
        term = item.coding
        told = ("scheme", term.scheme), ("value", term.value), ("meaning", term.meaning)
        coding = f"coding = {{ {', '.join(f'{key} = {toml_value(value)}' for key, value in told)} }}\n"
    names = (
        f"category = {toml_value(item.category)}\nen = {toml_value(item.en)}\nzh = {toml_value(item.zh)}\n"
    )
    return f"\n[[findings]]\ncode = {item.code}\n{names}{coding}"


def _federate(home: Path, plan: Plan, members: list[layout.MemberKeys], say: Output, clock: Clock) -> Course:
    """Start everybody, wait until the last hospital has claimed its reward, stop everybody."""
    with Processes() as processes:
        began = time.monotonic()
        for number in range(1, plan.hospitals + 1):
            name = f"hospital-{number}"
            command = ("consilia", "hospital", "run", "--home", str(home / name), "--format", "json")
            processes.start(name, command, home / name / "process.log")
        steps = _watch(processes, "node ready", plan.hospitals, say)
        founders = layout.founders_of(members, plan.started_at)
        server_account = members[-1].account
        deployment_file = home / "deployment.json"
        outbox = Outbox(home / layout.SERVER / "outbox.sqlite")
        deployment = deploy(f"http://127.0.0.1:{plan.ports[0]}", server_account, founders, outbox)
        deployment.save(deployment_file.with_suffix(".partial"))
        deployment_file.with_suffix(".partial").replace(
            deployment_file
        )  # the hospitals wait for it to appear whole
        say("contracts deployed", registry=deployment.registry, training=deployment.training)
        server_home = home / layout.SERVER
        command = ("consilia", "server", "run", "--home", str(server_home), "--spec", str(home / TASK_FILE))
        asked = plan.data is None  # the archive is a phantom's: real data sets are too small to spend
        command = (*command, "--format", "json", *(("--serve",) if asked else ()))
        processes.start(layout.SERVER, command, server_home / "process.log", ends=not asked)
        clock.add("start_up", time.monotonic() - began)
        steps += _watch(processes, "done", plan.hospitals, say)
        consultation = None
        if asked:
            with clock.phase("consultation"):
                consultation = consult(home, say)
        return Course(steps, sum(_reorgs(port) for port in plan.ports), consultation)


def _reorgs(port: int) -> int:
    """How often a node changed to a heavier branch; only the running node knows."""
    return int(Rpc(f"http://127.0.0.1:{port}").call("consilia_status")["reorgs"])


def _watch(processes: Processes, until: str, hospitals: int, say: Output) -> list[Step]:
    """Pass on what the parties report until every hospital has reported a certain step."""
    steps: list[Step] = []
    there: set[str] = set()
    for step in processes.steps():
        steps.append(step)
        Output(step.name, say.format)(step.step, **step.facts)
        if step.step == "refused":
            raise ConsiliaError(f"{step.name} does not take part: {step.facts.get('reason')}")
        if step.step == until:
            there.add(step.name)
        if len(there) == hospitals:
            break
    return steps


def _train_yardsticks(home: Path, plan: Plan, shares: Shares, say: Output) -> list[Yardstick]:
    """Train all data pooled on one core while the other trains each hospital alone."""
    folder = home / "yardsticks"
    folder.mkdir(exist_ok=True)
    spec = parse_toml((home / TASK_FILE).read_bytes()).to_bytes()
    initial = next((home / layout.SERVER / "models").glob("*/round-000.safetensors"))
    sites = [
        Site(f"hospital-{i}", data_section(home, share)) for i, share in enumerate(shares.hospitals, start=1)
    ]
    jobs = [("", tuple(sites)), *((site.hospital, (site,)) for site in sites)]
    with two_workers() as pool:
        running = []
        for hospital, chosen in jobs:
            out = folder / f"{hospital or 'pooled'}.safetensors"
            job = pool.apply_async(train, [TrainingJob(spec, chosen, initial, out)])
            running.append((hospital, out, job))
        yardsticks = []
        for hospital, out, job in running:
            trained = job.get()
            yardsticks.append(Yardstick(hospital, out, trained.steps, trained.seconds))
            say(
                "yardstick",
                model=hospital or "pooled",
                steps=trained.steps,
                seconds=round(trained.seconds, 1),
            )
        return yardsticks


def data_section(home: Path, share: layout.HospitalData) -> DataSection:
    """A share of the data as settings name it; all of a demo keep the regions of their images in one folder."""
    return DataSection(path=share.path, patients=share.patients_file, proposals=home / "proposals")


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
