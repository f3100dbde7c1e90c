"""The account of a demo: scores, audit and ledger put together into the report."""

from __future__ import annotations

import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from consilia.cli.demo.data import Shares
from consilia.cli.demo.layout import CONFIRMATIONS
from consilia.cli.demo.plan import Plan
from consilia.cli.demo.processes import Step
from consilia.cli.demo.workers import two_workers
from consilia.cli.demo.yardsticks import ExamplesJob, ScoringJob, Site, draw_examples, score
from consilia.cli.output import Format, Output
from consilia.cli.report.page import write_report as write_pages
from consilia.cli.report.report import (
    Audit,
    Bytes,
    Contracts,
    HeldOut,
    HitRule,
    Ledger,
    Machine,
    Miner,
    Report,
    Reward,
    Round,
    Seconds,
    StoreSight,
    Update,
)
from consilia.cli.report.results import Differences, Interval, LocalScore, Results, Score
from consilia.cli.report.roles import sights_of_a_run
from consilia.cli.report.terminal import print_summary
from consilia.detection.evaluation import Spread
from consilia.detection.froc import HIT_IOU
from consilia.protocols.training import RoundReport
from consilia.roles.audit.home import AuditResult, audit
from consilia.roles.audit.view import names_of
from consilia.roles.training.task_log import TaskLog
from consilia.settings.sections import DataSection
from consilia.store.directory import DirectoryStore
from consilia.values import Address

if TYPE_CHECKING:
    from consilia.cli.demo.run import Clock, Course, Yardstick

EXAMPLE_SLICES = 6
PREDICTIONS = "predictions"
"""Every final model's findings on the held-out images, as COCO JSON: figures can be worked out again."""
SCORED_ROUNDS = 8
"""Rounds whose global model is scored for the learning curve; scoring every one could take longer than training."""
LIBRARIES = ("consilia", "torch", "torchvision", "py-evm", "cryptography", "pydicom", "numpy")


def write_report(
    home: Path,
    plan: Plan,
    shares: Shares,
    course: Course,
    yardsticks: Sequence[Yardstick],
    clock: Clock,
    say: Output,
) -> None:
    """Score every model, audit the home, and write `report.json` and `report.html`.

    Raises:
        AuditError: the audit found something; there is no report of a run that cannot be proved.
    """
    with clock.phase("audit"):
        audited = audit(home, say)
    task = next(task for task in audited.tasks.values() if task.finished)
    sites = tuple(
        Site(
            name,
            DataSection(path=share.path, patients=share.patients_file, proposals=home / "proposals"),
        )
        for name, share in shares.held_out
    )
    with clock.phase("evaluation"):
        scored = _Scored(home, task, sites, yardsticks, say)
    _add_phases(clock, course.steps)
    report = _report(home, plan, shares, course, audited, task, scored, clock)
    paths = write_pages(report, home)
    if say.format is Format.TEXT:
        print_summary(report, say.console)
    say("report", html=str(paths.html), json=str(paths.json))


class _Scored:
    """The scores of all models on the held-out patients, two models at a time, each on one core."""

    def __init__(
        self, home: Path, task: TaskLog, sites: tuple[Site, ...], yardsticks: Sequence[Yardstick], say: Output
    ) -> None:
        spec = task.published.spec
        models = sorted((home / "server" / "models").glob("*/round-*.safetensors"))
        pooled = next(yardstick for yardstick in yardsticks if not yardstick.hospital)
        alone = [yardstick for yardstick in yardsticks if yardstick.hospital]
        indices = spaced(len(models) - 1, SCORED_ROUNDS)
        jobs = [ScoringJob(spec, sites, models[index + 1]) for index in indices[:-1]]
        keep = home / PREDICTIONS
        keep.mkdir(exist_ok=True)
        jobs.append(ScoringJob(spec, sites, models[-1], keep / "federated.json"))
        jobs += [
            ScoringJob(spec, sites, item.model, keep / f"{item.hospital or 'pooled'}.json")
            for item in (pooled, *alone)
        ]
        shown = (("federated", "", models[-1]), ("pooled", "", pooled.model))
        with two_workers() as pool:
            slices = pool.apply_async(draw_examples, [ExamplesJob(spec, sites, shown, EXAMPLE_SLICES)])
            scored = pool.map(score, jobs, chunksize=1)
            self.examples = slices.get()
        scores = [item.score for item in scored]
        self.rounds = dict(zip(indices, scores[: len(indices)], strict=True))
        whole, *locals_ = scores[len(indices) :]
        self.federated = scores[len(indices) - 1].model_copy(update={"training_steps": pooled.steps})
        self.differences = _differences([item.spread for item in scored[len(indices) - 1 :]])
        self.pooled = _timed(whole, pooled)
        self.local_only = tuple(
            LocalScore(hospital=item.hospital, **_timed(result, item).model_dump())
            for item, result in zip(alone, locals_, strict=True)
        )
        say("models scored", models=len(jobs))


def _differences(spreads: Sequence[Spread | None]) -> Differences:
    """Of the federated model, which comes first, from the pooled, which is next, and from the mean of the others."""
    federated, pooled, *alone = [spread for spread in spreads if spread is not None]
    drawn = {}
    for figure in ("map50", "map", "cpm"):
        for name, others in (("pooled", [pooled]), ("mean_local", alone)):
            found = federated.difference(others, figure)
            drawn[f"{figure}_minus_{name}"] = Interval(low=found.low, high=found.high) if found else None
    return Differences(**drawn)


def spaced(rounds: int, count: int) -> list[int]:
    """At most `count` of the rounds 0 .. rounds - 1, evenly spread, the last among them."""
    step = max(1, -(-rounds // count))
    return sorted(range(rounds - 1, -1, -step))


def _timed(result: Score, yardstick: Yardstick) -> Score:
    return result.model_copy(update={"training_steps": yardstick.steps, "seconds": yardstick.seconds})


def _add_phases(clock: Clock, steps: Sequence[Step]) -> None:
    """When the task's phases began, from what the server reported."""
    server = {step.step: step.time for step in steps if step.name == "server"}
    first = {step.step: step.time for step in reversed(steps) if step.name == "server"}
    if not {"ready", "started", "settled"} <= set(server):
        return  # a resumed run saw only a part
    last_close = server.get("round closed", server["started"])
    clock.add("start_up", first["ready"] - steps[0].time if steps else 0.0)
    clock.add("enrol", server["started"] - first["ready"])
    clock.add("rounds", last_close - server["started"])
    clock.add("settle", steps[-1].time - last_close)


def _report(
    home: Path,
    plan: Plan,
    shares: Shares,
    course: Course,
    audited: AuditResult,
    task: TaskLog,
    scored: _Scored,
    clock: Clock,
) -> Report:
    names = names_of(home)
    sight = _store_sight(home)
    patients, images, lesions = shares.held_out_images
    seconds = {name: value for name, value in clock.seconds.items() if name in Seconds.model_fields}
    federated = scored.federated.model_copy(update={"seconds": seconds.get("rounds", 0.0)})
    return Report(
        command=shlex.join(["consilia", *sys.argv[1:]]),
        started_at=datetime.fromtimestamp(plan.started_at, UTC),
        versions={"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}},
        machine=_machine(),
        seed=plan.seed,
        detector=plan.detector,
        data_source="phantom CT" if plan.data is None else plan.data.name,
        held_out=HeldOut(patients=patients, images=images, lesions=lesions),
        hit_rule=HitRule(kind="iou", min_iou=HIT_IOU),
        results=Results.of(federated, scored.pooled, scored.local_only, scored.differences),
        rounds=tuple(_rounds(task, audited, scored.rounds, names)),
        seconds=Seconds(**seconds, total=clock.total()),
        bytes=_bytes(home, task),
        ledger=_ledger(audited, course.reorgs, names),
        rewards=tuple(_rewards(task, audited, names)),
        data=shares.reported,
        store=sight,
        roles=sights_of_a_run(sight, consulted=course.consultation is not None),
        examples=scored.examples,
        audit=Audit(
            command=f"consilia audit verify --home {home}",
            exit_code=0,
            models_rederived=audited.models_rederived,
            seconds=audited.seconds,
        ),
        consultation=course.consultation,
    )


def _rounds(
    task: TaskLog, audited: AuditResult, scores: Mapping[int, Score], names: dict[Address, str]
) -> list[Round]:
    rounds = []
    for current in task.rounds:
        opened, closed = current.opened, current.closed
        result = scores.get(opened.round_index)
        assert closed is not None
        account = audited.reports[task.task_id, opened.round_index]
        updates = _updates(account, names)
        rounds.append(
            Round(
                round_index=opened.round_index,
                map50=result.map50 if result else None,
                map=result.map if result else None,
                cpm=result.cpm if result else None,
                updates=updates,
                seconds=audited.block_seconds[closed.block_number]
                - audited.block_seconds[opened.block_number],
                bytes=opened.model_size + closed.report_size + sum(update.size for update in current.updates),
                block_opened=opened.block_number,
                block_closed=closed.block_number,
            )
        )
    return rounds


def _updates(account: RoundReport, names: dict[Address, str]) -> tuple[Update, ...]:
    return tuple(
        Update(
            hospital=names.get(line.hospital, line.hospital),
            status=line.outcome.value,
            reason=line.reason,
            num_examples=line.num_examples,
            loss=line.metrics.loss if line.metrics else None,
            bytes=line.size,
            seconds=line.metrics.seconds if line.metrics else 0.0,
        )
        for line in account.updates
    )


def _bytes(home: Path, task: TaskLog) -> Bytes:
    models = {current.opened.model_root: current.opened.model_size for current in task.rounds}
    models |= {
        current.closed.model_root: current.closed.model_size for current in task.rounds if current.closed
    }
    return Bytes(
        models=sum(models.values()),
        updates=sum(update.size for current in task.rounds for update in current.updates),
        key_strings=task.started.key_string_size if task.started else 0,
        other=sum(current.closed.report_size for current in task.rounds if current.closed),
        chain=sum(file.stat().st_size for file in (home / "hospital-1" / "node").glob("chain.sqlite*")),
    )


def _ledger(audited: AuditResult, reorgs: int, names: dict[Address, str]) -> Ledger:
    chain, deployment = audited.chain, audited.deployment
    assert chain is not None, "a demo runs on the embedded chain"
    return Ledger(
        chain_id=deployment.chain_id,
        height=chain.height,
        head="0x" + str(chain.head_hash),
        blocks_by_miner=tuple(
            Miner(
                hospital=name,
                account=account,
                blocks=chain.blocks_by_miner.get(account, 0),
                reward_wei=chain.rewards_wei.get(account, 0),
            )
            for account, name in names.items()
        ),
        block_rewards_wei=sum(chain.rewards_wei.values()),
        transactions=chain.transactions,
        gas_used=chain.gas_used,
        reorgs=reorgs,
        contracts=Contracts(
            registry=deployment.registry,
            training=deployment.training,
            escrow=deployment.escrow,
            exchange=deployment.exchange,
            diagnosis=deployment.diagnosis,
        ),
        confirmations=CONFIRMATIONS,
    )


def _rewards(task: TaskLog, audited: AuditResult, names: dict[Address, str]) -> list[Reward]:
    examples: dict[Address, int] = {}
    for account in audited.reports.values():
        for line in account.included:
            examples[line.hospital] = examples.get(line.hospital, 0) + line.num_examples
    block_rewards_wei = audited.chain.rewards_wei if audited.chain is not None else {}
    return [
        Reward(
            hospital=name,
            account=account,
            num_examples=examples.get(account, 0),
            share_wei=task.shares_wei.get(account, 0),
            claimed=account in task.claimed,
            block_reward_wei=block_rewards_wei.get(account, 0),
        )
        for account, name in names.items()
    ]


def _store_sight(home: Path) -> StoreSight:
    """Look at every object of the store: is it a sealed envelope?"""
    from consilia.artifact import artifact_root
    from consilia.errors import EnvelopeError

    store = DirectoryStore(home / "store")
    objects = envelopes = size = 0
    for root in store.roots():
        objects += 1
        with store.reader(root) as stream:
            with suppress(EnvelopeError):
                envelopes += artifact_root(stream) == root
            size += stream.seek(0, 2)
    return StoreSight(objects=objects, envelopes=envelopes, bytes=size)


def _machine() -> Machine:
    import os

    pages, page_bytes = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return Machine(
        cpu_count=os.cpu_count() or 1, memory_bytes=pages * page_bytes, platform=platform.platform()
    )
