"""`consilia hospital`: the process that a hospital runs."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.lifetime import end_in_order
from consilia.cli.output import Format, Output

if TYPE_CHECKING:
    from consilia.protocols.task_spec import TaskSpec
    from consilia.roles.hospital import TrainerFactory
    from consilia.settings import HospitalSettings

app = typer.Typer(help="Take part in the consortium as a hospital.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Take part in the consortium as a hospital."""


@app.command()
def run(
    home: Path = typer.Option(..., help="The hospital's home, with its consilia.toml."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Follow the ledger, train in every task that the policy admits, until stopped."""
    serve(home, output)


def serve(home: Path, output: Format, new_trainer: TrainerFactory | None = None) -> None:
    """Run a hospital in this process. `new_trainer` replaces the task's detector, for measurements."""
    from consilia.roles.keys import open_keys, show_keys
    from consilia.roles.node import NodeProcess
    from consilia.settings import HospitalSettings, load

    settings = load(HospitalSettings, home)
    report = Output(settings.name, output)
    if int(os.environ.get("RANK", "0")):
        from consilia.roles.training.ranks import follow

        return follow(settings.data, report)
    end_in_order()
    with ExitStack() as stack:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            from consilia.roles.training.ranks import dismiss

            stack.callback(dismiss)
        node = None
        if settings.node is not None:
            node = NodeProcess(home, settings, show_keys(settings.keys).address)
            stack.callback(node.stop)
        # the node starts up while this process imports what it needs and opens its keys, which is slow on purpose
        from consilia.roles.hospital import Hospital

        keys = open_keys(settings.keys)
        make_trainer = new_trainer or _detector_trainers(home, settings, report)
        if node is not None:
            node.give_key(keys.signer)
            node.wait_ready()
            report("node ready")
            _await_deployment(settings.ledger.deployment, report)
        hospital = Hospital(home, settings, report, make_trainer, keys)
        report("ready", account=hospital.address)
        hospital.run()


def _detector_trainers(home: Path, settings: HospitalSettings, report: Output) -> TrainerFactory:
    from consilia.roles.training.local_training import DetectorTrainer, own_norm_in
    from consilia.roles.training.ranks import LeadingTrainer

    kind = LeadingTrainer if int(os.environ.get("WORLD_SIZE", "1")) > 1 else DetectorTrainer

    def make(spec: TaskSpec, seed: int) -> DetectorTrainer:
        return kind(spec, settings.data, seed, report, own_norm_in(home, spec))

    return make


def _await_deployment(path: Path, report: Output) -> None:
    """On a new chain somebody deploys the contracts once the nodes serve; wait for the file that says where."""
    if not path.exists():
        report("waiting for the contracts", deployment=path.name)
    while not path.exists():
        time.sleep(0.05)
