"""`consilia server`: the process that publishes tasks and aggregates."""

from __future__ import annotations

from pathlib import Path

import typer

from consilia.cli.lifetime import end_in_order
from consilia.cli.output import Format, Output

app = typer.Typer(help="Publish a training task and aggregate it.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Publish a training task and aggregate it."""


@app.command()
def run(
    home: Path = typer.Option(..., help="The server's home, with its consilia.toml."),
    spec: Path = typer.Option(..., help="The TaskSpec, in TOML."),
    initial_model: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="Start from these weights (safetensors) instead of the detector's random ones.",
    ),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Take one task from its publication to the last payment; run again after a crash, it goes on where it was."""
    from consilia.errors import SpecError
    from consilia.protocols.task_spec import TaskSpec, parse_toml
    from consilia.roles.server import Server
    from consilia.settings import ServerSettings, load

    end_in_order()
    settings = load(ServerSettings, home)
    try:
        task_spec = parse_toml(spec.read_text())
    except OSError as error:
        raise SpecError(f"expected a TaskSpec in {spec.name}; {error.strerror}") from error

    def write_initial(complete: TaskSpec, path: Path) -> None:
        if initial_model is not None:
            path.write_bytes(initial_model.read_bytes())
            return
        from consilia.roles.local_training import write_initial_model

        write_initial_model(complete, path)

    server = Server(home, settings, Output(settings.name, output))
    server.report("ready", account=server.address)
    server.run_task(task_spec, write_initial)
