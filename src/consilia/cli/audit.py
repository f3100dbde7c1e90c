"""`consilia audit`: check what the ledger claims against what is there."""

from __future__ import annotations

from pathlib import Path

import typer

from consilia.cli.output import Format, Output

app = typer.Typer(help="Check what the ledger claims against what is there.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check what the ledger claims against what is there."""


@app.command()
def verify(
    home: Path = typer.Option(..., help="The home of a consortium, with its network.json."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Replay the chain, read every object, derive every model again. Exit code 0, or 5 and what is wrong."""
    from consilia.roles.audit import audit

    say = Output("audit", output)
    result = audit(home, say)
    say(
        "all in order",
        height=result.chain.height,
        transactions=result.chain.transactions,
        objects=result.objects,
        models_rederived=result.models_rederived,
        seconds=round(result.seconds, 1),
    )
