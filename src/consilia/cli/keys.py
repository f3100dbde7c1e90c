"""`consilia keys`: make, show, back up, restore and rotate a party's keys. Secrets are read, and never printed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format, Output
from consilia.errors import SettingsError

if TYPE_CHECKING:
    from consilia.settings import KeySettings

app = typer.Typer(help="Make, show, back up and rotate a party's keys.", no_args_is_help=True)

_HOME = typer.Option(
    ..., help="The party's home. Without a consilia.toml the keys are files in its folder keys."
)
_FORMAT = typer.Option(Format.TEXT, "--format", help="How to report.")
_BACKUP_PASSWORD = typer.Option(
    None,
    help="A file with the backup's password in its first line, instead of CONSILIA_BACKUP_PASSWORD or a prompt.",
)


@app.callback()
def _group() -> None:
    """Make, show, back up and rotate a party's keys."""


@app.command()
def new(home: Path = _HOME, output: Format = _FORMAT) -> None:
    """Make what is missing of account (it signs) and identity (it opens envelopes). Nothing is overwritten."""
    from consilia.roles.keys import make_keys, new_password, show_keys

    settings = _settings(home)
    make_keys(settings.keys, new_password(settings.keys))
    made = show_keys(settings.keys)
    _say(settings, output)(
        "keys made", address=made.address, recipient=made.recipient.hex(), **_places(settings)
    )


@app.command()
def show(home: Path = _HOME, output: Format = _FORMAT) -> None:
    """Show the public halves: address, recipient key, and how many older identities are kept."""
    from consilia.roles.keys import show_keys

    settings = _settings(home)
    shown = show_keys(settings.keys)
    _say(settings, output)(
        "keys",
        address=shown.address,
        recipient=shown.recipient.hex(),
        older_recipients=[key.hex() for key in shown.older_recipients],
        **_places(settings),
    )


@app.command()
def backup(
    home: Path = _HOME,
    to: Path = typer.Option(..., help="The file to write; it must not exist."),
    backup_password_file: Path | None = _BACKUP_PASSWORD,
    output: Format = _FORMAT,
) -> None:
    """Write all that ledger and store cannot give back into one encrypted file, also while the party runs."""
    from consilia.roles.backup import take_backup, write_backup

    settings = _settings(home)
    in_files = "file" in (settings.keys.signer, settings.keys.opener)
    password = settings.keys.password() if in_files else ""
    taken = take_backup(home, settings.name, settings.keys, password, int(time.time()))
    write_backup(to, taken, _backup_password(backup_password_file, fresh=True))
    _say(settings, output)(
        "backup written",
        file=str(to),
        bytes=to.stat().st_size,
        account=taken.account is not None,
        identities=len(taken.identities),
        databases=list(taken.files),
        **_places(settings),
    )


@app.command()
def restore(
    home: Path = _HOME,
    source: Path = typer.Option(..., "--from", help="The backup."),
    backup_password_file: Path | None = _BACKUP_PASSWORD,
    output: Format = _FORMAT,
) -> None:
    """Put a backup into a home that has no keys yet. Never let two homes with the same account run at once."""
    from consilia.roles.backup import read_backup, restore_backup
    from consilia.roles.keys import new_password

    settings = _settings(home)
    found = read_backup(source, _backup_password(backup_password_file, fresh=False))
    restore_backup(home, settings.keys, found, new_password(settings.keys))
    _say(settings, output)(
        "restored",
        backup_of=found.name,
        made_at=time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found.made_at)),
        account=found.account is not None,
        identities=len(found.identities),
        databases=list(found.files),
    )


@app.command()
def rotate(home: Path = _HOME, output: Format = _FORMAT) -> None:
    """Make a new identity and propose it to the members; once they agreed, run it again, and restart the party."""
    from consilia.roles.membership.rotation import rotate_identity

    settings = _settings(home)
    if settings.ledger is None:
        raise SettingsError(
            "ledger: expected a section with url and deployment; a new identity is registered there"
        )
    say = _say(settings, output)
    proposal, recipient = rotate_identity(home, settings.keys, settings.ledger)
    if proposal is None:
        say("identity rotated", recipient=recipient.hex(), next="restart, then back up")
        return
    say(
        "waiting for votes",
        proposal=proposal.proposal_id,
        recipient=recipient.hex(),
        approvals=proposal.approvals,
        needed=proposal.needed,
        next="the other members vote, then rotate again",
    )


def _settings(home: Path) -> KeySettings:
    from consilia.settings import SETTINGS_FILE, KeySettings, load, without_file

    return load(KeySettings, home) if (home / SETTINGS_FILE).exists() else without_file(home)


def _say(settings: KeySettings, output: Format) -> Output:
    return Output(settings.name, output)


def _places(settings: KeySettings) -> dict[str, str]:
    """Where the two secret halves are."""
    return {"signer": settings.keys.signer, "opener": settings.keys.opener}


def _backup_password(file: Path | None, *, fresh: bool) -> str:
    from consilia.passwords import BACKUP_PASSWORD_VARIABLE, password_is_typed, read_password
    from consilia.roles.keys import type_again

    password = read_password("password of the backup", BACKUP_PASSWORD_VARIABLE, file)
    if fresh and password_is_typed(BACKUP_PASSWORD_VARIABLE, file):
        type_again(password)
    return password
