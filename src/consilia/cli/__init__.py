"""The command line. Heavy libraries are imported inside the commands that need them: `--help` takes under a second."""

from __future__ import annotations

import sys

import typer

from consilia import __version__
from consilia.cli import (
    audit,
    consult,
    data,
    demo,
    exchange,
    hospital,
    keys,
    ledger,
    model,
    network,
    server,
    store,
)
from consilia.cli.output import error_lines
from consilia.errors import ConsiliaError

app = typer.Typer(
    name="consilia",
    help="Hospitals train a detector for medical images together, on a ledger that proves what each of them did.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(server.app, name="server")
app.add_typer(hospital.app, name="hospital")
app.add_typer(ledger.app, name="ledger")
app.add_typer(audit.app, name="audit")
app.add_typer(keys.app, name="keys")
app.add_typer(store.app, name="store")
app.add_typer(data.app, name="data")
app.add_typer(model.app, name="model")
app.add_typer(network.app, name="network")
app.add_typer(exchange.app, name="exchange")
app.add_typer(consult.app, name="consult")
app.command("demo")(demo.demo)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"consilia {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line; an error that Consilia means to say becomes one message and its exit code."""
    try:
        app()
    except ConsiliaError as error:
        typer.echo("\n".join(error_lines(str(error))), err=True)
        sys.exit(error.exit_code)


__all__ = ["app", "main"]
