"""`consilia keys`: what a person or a script meets, and that no secret is ever printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from consilia.cli.keys import app
from consilia.crypto.keys import load_account, load_identity
from consilia.passwords import PASSWORD_VARIABLE, PIN_VARIABLE
from consilia.roles.backup import read_backup
from tests.secret_words import spellings
from tests.softhsm import SoftHsm

PASSWORD, OTHER, BACKUP_PASSWORD = "planted-password-1", "planted-password-2", "planted-password-3"


class Shell:
    """Runs commands and keeps all that they printed."""

    def __init__(self) -> None:
        self.printed = ""

    def __call__(self, *arguments: str, code: int = 0, **variables: str) -> str:
        environment = {name: value for name, value in os.environ.items() if name != PASSWORD_VARIABLE}
        done = subprocess.run(
            [sys.executable, "-m", "consilia", "keys", *arguments],
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env=environment | variables,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        self.printed += done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def shell() -> Shell:
    return Shell()


def private(path: Path, text: str) -> Path:
    path.touch(mode=0o600)
    path.write_text(text + "\n")
    return path


def test_from_new_to_restored_and_no_secret_is_printed(tmp_path: Path, shell: Shell) -> None:
    home, copy, saved = tmp_path / "home", tmp_path / "copy", tmp_path / "backup"
    with_password = {PASSWORD_VARIABLE: PASSWORD}
    made = json.loads(shell("new", "--home", str(home), "--format", "json", **with_password))
    shown = json.loads(shell("show", "--home", str(home), "--format", "json"))
    assert (shown["address"], shown["recipient"]) == (made["address"], made["recipient"])
    assert "never overwritten" in shell("new", "--home", str(home), code=2, **with_password)

    in_file = private(tmp_path / "backup-password", BACKUP_PASSWORD)
    backup = ["backup", "--home", str(home), "--to", str(saved), "--backup-password-file", str(in_file)]
    assert "password is wrong" in shell(*backup, code=2, **{PASSWORD_VARIABLE: OTHER})
    assert not saved.exists()
    shell(*backup, **with_password)
    assert "never overwritten" in shell(*backup, code=2, **with_password)

    restore = ["restore", "--home", str(copy), "--from", str(saved)]
    assert "password is wrong" in shell(*restore, code=2, CONSILIA_BACKUP_PASSWORD=OTHER, **with_password)
    assert not copy.exists()
    shell(*restore, CONSILIA_BACKUP_PASSWORD=BACKUP_PASSWORD, **{PASSWORD_VARIABLE: OTHER})
    assert "move away" in shell(*restore, code=2, CONSILIA_BACKUP_PASSWORD=BACKUP_PASSWORD, **with_password)
    again = json.loads(shell("show", "--home", str(copy), "--format", "json"))
    assert (again["address"], again["recipient"]) == (made["address"], made["recipient"])

    account, identity = (
        load_account(copy / "keys" / "account.json", OTHER),
        load_identity(copy / "keys" / "identity.key", OTHER),
    )
    assert "ledger" in shell("rotate", "--home", str(home), code=2, **with_password)
    (home / "keys" / "identity.key").chmod(0o644)
    assert "chmod 600" in shell("show", "--home", str(home), code=2)
    assert "chmod 600" in shell(*backup[:4], str(saved) + "2", *backup[5:], code=2, **with_password)
    backup_read = read_backup(saved, BACKUP_PASSWORD)
    assert backup_read.account == account.key
    texts = [PASSWORD, OTHER, BACKUP_PASSWORD]
    for secret in (bytes(account.key), identity.secret_bytes):
        texts += spellings(secret)
    everything = shell.printed + repr((account, identity, backup_read, vars(backup_read).keys()))
    assert made["address"] in everything and made["recipient"] in everything
    assert [text for text in texts if text in everything] == []


def test_without_a_password_nothing_is_made(tmp_path: Path, shell: Shell) -> None:
    said = shell("new", "--home", str(tmp_path / "home"), code=2)
    assert PASSWORD_VARIABLE in said and not (tmp_path / "home").exists()


def test_keys_are_made_where_the_settings_say(tmp_path: Path, shell: Shell, softhsm: SoftHsm) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "consilia.toml").write_text('name = "h"\n[data]\npath = "d"\n[keys]\n' + softhsm.toml("command"))
    made = json.loads(shell("new", "--home", str(home), "--format", "json"))
    assert (made["signer"], made["opener"], made["name"]) == ("pkcs11", "pkcs11", "h")
    assert json.loads(shell("show", "--home", str(home), "--format", "json"))["address"] == made["address"]
    assert "never overwritten" in shell("new", "--home", str(home), code=2)
    assert [path.name for path in home.iterdir()] == ["consilia.toml"]
    saved = tmp_path / "backup"
    said = json.loads(
        shell(
            "backup", "--home", str(home), "--to", str(saved), "--format", "json",
            CONSILIA_BACKUP_PASSWORD=BACKUP_PASSWORD,
        )
    )  # fmt: skip
    assert (said["account"], said["identities"]) == (False, 0)
    assert "does not open" in shell(
        "show", "--home", str(home), code=2, **{PIN_VARIABLE: "planted-wrong-pin"}
    )
    softhsm.pin_file.chmod(0o644)
    try:
        assert "chmod 600" in shell("show", "--home", str(home), code=2)
    finally:
        softhsm.pin_file.chmod(0o600)
    for text in (softhsm.pin, "planted-wrong-pin", BACKUP_PASSWORD):
        assert text not in shell.printed


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ('signer = "pkcs11"\n', "keys.pkcs11"),
        ('signer = "vault"\n', "keys.signer"),
        ('password = "in the settings"\n', "keys.password"),
        ('[keys.pkcs11]\nmodule = "m"\ntoken = "t"\npin = "1234"\n', "keys.pkcs11.pin"),
    ],
)
def test_a_secret_or_a_mistake_in_the_settings_is_refused(
    tmp_path: Path, shell: Shell, keys: str, says: str
) -> None:
    (tmp_path / "consilia.toml").write_text(f'name = "h"\n[keys]\n{keys}')
    assert says in shell("show", "--home", str(tmp_path), code=2)
    assert "in the settings" not in shell.printed and "1234" not in shell.printed


def test_help_names_no_secret_option() -> None:
    # a password on the command line would stand in the shell's history and in every process list
    for command in app.registered_commands:
        assert command.callback is not None
        for name in command.callback.__annotations__:
            assert name not in ("password", "pin", "backup_password")
