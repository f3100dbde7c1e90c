"""`consilia data`: a party's own artifacts."""

from __future__ import annotations

from pathlib import Path

import typer

from consilia.cli.output import Format, Output

app = typer.Typer(help="Look after this party's own artifacts.", no_args_is_help=True)

WARNING = """This destroys, for good, on this machine and in the store:
  - the secret that opens the artifact {root}, and what was kept under its name
  - its envelope, with the stanzas that its recipients open it by
It cannot undo what others did before. It cannot reach:
  - what a recipient has opened, or can still open from a copy of the envelope
  - copies and backups of the store or of this home, and earlier versions that the store keeps
  - spare blocks of flash disks, which are overwritten when the disk likes
  - the ledger: root, size, owner and times stay there
An update that entered a model stays in that model; the audit of its round can no longer be repeated."""


@app.callback()
def _group() -> None:
    """Look after this party's own artifacts."""


@app.command()
def erase(
    root: str = typer.Argument(help="The artifact's root, 64 hex digits."),
    home: Path = typer.Option(..., help="The home that sealed it, with its consilia.toml."),
    reason: str = typer.Option("", help="Goes into the tombstone, in clear: name no patient."),
    yes: bool = typer.Option(False, "--yes", help="Do not ask."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report."),
) -> None:
    """Destroy the keys and salts of an artifact and its envelope, and write a tombstone. There is no way back."""
    from consilia.errors import InputError
    from consilia.roles.erasure import erase as erase_artifact
    from consilia.roles.keys import open_signer
    from consilia.roles.state import State
    from consilia.roles.stores import open_store
    from consilia.settings import load_party
    from consilia.values import Digest

    try:
        digest = Digest.from_hex(root)
    except ValueError as error:
        raise InputError(f"expected a root, 64 hex digits, got {root}") from error
    settings, say = load_party(home), Output("data", output)
    typer.echo(WARNING.format(root=digest), err=True)
    if not yes:
        typer.confirm("Erase it?", abort=True, err=True)
    account = open_signer(settings.keys)
    tombstone = erase_artifact(
        State(home / "state.sqlite"), open_store(settings.store), home, account, digest, reason
    )
    say("erased", root=str(digest), tombstone=f"tombstones/{digest}.json", erased_at=tombstone.erased_at)
