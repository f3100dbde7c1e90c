"""`consilia server`: the process that publishes tasks, aggregates, and gives second opinions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.lifetime import end_in_order
from consilia.cli.output import Format, Output

if TYPE_CHECKING:
    from consilia.protocols.task_spec import TaskSpec

NO_WINDOW = (
    "each CT slice is seen through the HU window of its body part, so perhaps through several in one data set; "
    "data.window_center_hu and window_width_hu name one for all"
)

app = typer.Typer(help="Publish a training task and aggregate it; answer for models.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Publish a training task and aggregate it; answer for models."""


@app.command()
def run(
    home: Path = typer.Option(..., help="The server's home, with its consilia.toml."),
    spec: Path | None = typer.Option(None, help="The TaskSpec, in TOML; left out with --serve."),
    initial_model: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="Start from these weights (safetensors) instead of the detector's random ones.",
    ),
    pretrained: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="Take what fits of these weights (safetensors), whose SHA-256 the spec gives as model.pretrained_digest.",
    ),
    serve: bool = typer.Option(
        False, help="Answer queries for the models of the settings; after the task, until stopped."
    ),
    wait_seconds: float = typer.Option(
        120.0,
        min=0,
        help="Wait so long for the ledger's node to answer, and to tell of the tasks of the offers.",
    ),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Take one task from its publication to the last payment; run again after a crash, it goes on where it was.

    Queries for the models of the section [diagnosis] are answered all the while; with --serve until stopped.
    """
    from consilia.errors import InputError
    from consilia.ledger.rpc import await_node
    from consilia.roles.server import Server
    from consilia.roles.training.initial_model import InitialModelFiles
    from consilia.settings import ServerSettings, load

    end_in_order()
    settings = load(ServerSettings, home)
    task_spec = None if spec is None else _read_spec(spec)
    if task_spec is None and not serve:
        raise InputError("expected --spec, a task to run, or --serve, to answer queries, or both")

    server = Server(home, settings, Output(settings.name, output))
    start = InitialModelFiles(initial_model, pretrained, server.report)
    if task_spec is not None:
        server.prepare(task_spec, start.write)  # what is wrong with it is said before anything is waited for
        if task_spec.data.format == "dicom" and not task_spec.data.windows:
            server.report("no window in the TaskSpec", reason=NO_WINDOW)
    await_node(
        settings.ledger.url,
        wait_seconds,
        lambda: server.report(
            "waiting for the ledger's node", url=settings.ledger.url, wait_seconds=wait_seconds
        ),
    )
    server.report("ready", account=server.address)
    if settings.diagnosis.offers:
        if task_spec is None:
            server.await_history(wait_seconds)
        server.offer_models(awaiting=task_spec is not None)
    if task_spec is not None:
        server.run_task(task_spec, start.write)
    if serve:
        server.serve()


@app.command()
def withdraw(
    offer: int = typer.Argument(..., help="The offer's number, as it was reported."),
    home: Path = typer.Option(..., help="The server's home, with its consilia.toml."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Take no more queries for a model, for good; those that are open are answered. Take it out of the settings too."""
    from consilia.errors import InputError
    from consilia.roles.diagnosis.answering import Answering
    from consilia.roles.server import Server
    from consilia.settings import ServerSettings, load

    if not 0 < offer < 2**256:
        raise InputError(f"expected an offer's number, as it was reported, got {offer}")
    settings = load(ServerSettings, home)
    Answering(Server(home, settings, Output(settings.name, output)), (), 0).withdraw(offer)


def _read_spec(path: Path) -> TaskSpec:
    from consilia.errors import SpecError
    from consilia.protocols.task_spec import parse_toml

    try:
        return parse_toml(path.read_bytes())
    except OSError as error:
        raise SpecError(f"expected a TaskSpec in {path.name}; {error.strerror}") from error
