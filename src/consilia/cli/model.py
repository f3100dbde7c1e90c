"""`consilia model`: what a detector is worth, what it finds, and where the ledger has it."""

from __future__ import annotations

from pathlib import Path

import typer

from consilia.cli.output import Format, Output

app = typer.Typer(help="Measure, use and check a detector.", no_args_is_help=True)

LEDGER_HOME = typer.Option(None, help="The home of a consortium or of a party; its chain file is read.")
LEDGER_URL = typer.Option(None, help="Or a node's JSON-RPC address.")
DEPLOYMENT = typer.Option(None, help="With --url: the deployment file.")
FORMAT = typer.Option(Format.TEXT, "--format", help="Text, or one JSON object a line.")


@app.callback()
def _group() -> None:
    """Measure, use and check a detector."""


@app.command()
def verify(
    model: str = typer.Argument(..., help="A safetensors file, or a digest of 64 hex digits."),
    home: Path | None = LEDGER_HOME,
    url: str | None = LEDGER_URL,
    deployment: Path | None = DEPLOYMENT,
    form: Format = FORMAT,
) -> None:
    """Say which task and round registered a model. Exit code 5 if none did: then it is not from here."""
    from consilia.roles.ledger_view import open_view
    from consilia.roles.models import digest_of, find_registrations

    digest, say = digest_of(model), Output("model", form)
    with open_view(home, url, deployment) as view:
        for found in find_registrations(view, digest):
            say(
                "registered",
                digest=str(digest),
                task=found.number,
                title=found.title,
                after_rounds=found.rounds_done,
                root=str(found.artifact.root),
                by=found.deed.by.name or found.deed.by.address,
                block=found.deed.block_number,
                timestamp=found.deed.timestamp,
                transaction=f"0x{found.deed.transaction}",
            )
