"""`consilia audit`: check what the ledger claims against what is there, at home or from an export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format, Output
from consilia.errors import InputError

if TYPE_CHECKING:
    from consilia.roles.audit.home import ExaminerKeys

app = typer.Typer(help="Check what the ledger claims against what is there.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Check what the ledger claims against what is there."""


@app.command()
def verify(
    file: Path | None = typer.Argument(None, help="An export of `consilia audit export`; no node is needed."),
    home: Path | None = typer.Option(
        None, help="Or the home of a consortium or a member, with its network.json; on any engine."
    ),
    store: Path | None = typer.Option(
        None,
        exists=True,
        help="With FILE: the store's folder, or a TOML file with a section store; every registered root is read.",
    ),
    identity: Path | None = typer.Option(
        None, help="With FILE and --store: the server's identity; every global model is derived again."
    ),
    password_file: Path | None = typer.Option(
        None, help="The password of that identity, in its first line; else CONSILIA_PASSWORD, or asked for."
    ),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Replay the chain, read every object, derive every model again. Exit code 0, or 5 and what is wrong."""
    say = Output("audit", output)
    if (file is None) == (home is None):
        raise InputError("expected the FILE of an export, or --home DIR: one of the two")
    if file is not None:
        return _verify_export(file, store, identity, password_file, say)
    if store or identity or password_file:
        raise InputError("--store, --identity and --password-file go with FILE; a home names its own")
    assert home is not None
    from consilia.roles.audit.home import audit

    result = audit(home, say)
    say(
        _verdict(result.objects_not_in_order),
        height=result.height,
        transactions=result.transactions,
        replayed=result.chain is not None,
        shares=result.shares,
        objects=result.objects,
        objects_not_in_order=result.objects_not_in_order,
        models_rederived=result.models_rederived,
        tasks_not_derived=result.tasks_not_derived,
        seconds=round(result.seconds, 1),
    )


@app.command()
def export(
    file: Path = typer.Argument(..., help="The zip to write; its name must be free."),
    home: Path = typer.Option(..., help="The home of a consortium, or of a hospital with a node."),
    output: Format = typer.Option(Format.TEXT, "--format", help="How to report progress."),
) -> None:
    """Write a home's embedded chain into one zip that `consilia audit verify` checks anywhere. It holds no secret."""
    from consilia.roles.audit.export import export as write

    done = write(home, file)
    Output("audit", output)(
        "exported",
        file=str(file),
        height=done.height,
        head_hash=str(done.head_hash),
        bytes=done.size_bytes,
        sha256=str(done.sha256),
    )


def _verify_export(
    file: Path, store: Path | None, identity: Path | None, password_file: Path | None, say: Output
) -> None:
    from consilia.roles.audit.export_check import check_export

    if identity is not None and store is None:
        raise InputError("--identity needs --store: the artifacts that it opens are there")
    result = check_export(file, say, store, _keys(identity, password_file))
    say(
        _verdict(result.objects_not_in_order),
        height=result.height,
        head_hash=str(result.head_hash),
        genesis=str(result.genesis_digest),
        registry=result.deployment.registry,
        transactions=result.transactions,
        members=result.members,
        shares=result.shares,
        objects=result.objects,
        objects_not_in_order=result.objects_not_in_order,
        models_rederived=result.models_rederived,
        tasks_not_derived=result.tasks_not_derived,
    )


def _verdict(objects_not_in_order: int) -> str:
    """What training used is all there, or the audit would have failed; of the rest owners may erase what is theirs."""
    return (
        "all in order" if not objects_not_in_order else "in order, but not every object that others may erase"
    )


def _keys(identity: Path | None, password_file: Path | None) -> ExaminerKeys | None:
    if identity is None:
        return None
    from consilia.crypto.keys import load_identity
    from consilia.passwords import PASSWORD_VARIABLE, read_password
    from consilia.roles.audit.home import ExaminerKeys

    password = read_password("password of the identity", PASSWORD_VARIABLE, password_file)
    return ExaminerKeys(load_identity(identity, password))
