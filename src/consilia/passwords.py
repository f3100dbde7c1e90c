"""Where passwords and other secrets come from: the environment, a file of their own, or a person at a terminal."""

from __future__ import annotations

import functools
import getpass
import os
import sys
from pathlib import Path

from consilia.crypto.private_files import read_private
from consilia.errors import KeyFileError, SettingsError

PASSWORD_VARIABLE = "CONSILIA_PASSWORD"
PIN_VARIABLE = "CONSILIA_PIN"
BACKUP_PASSWORD_VARIABLE = "CONSILIA_BACKUP_PASSWORD"
S3_SECRET_VARIABLE = "AWS_SECRET_ACCESS_KEY"
S3_TOKEN_VARIABLE = "AWS_SESSION_TOKEN"
SECRET_VARIABLES = (
    PASSWORD_VARIABLE,
    PIN_VARIABLE,
    BACKUP_PASSWORD_VARIABLE,
    S3_SECRET_VARIABLE,
    S3_TOKEN_VARIABLE,
)
"""Environment variables that no child process is given."""

_MOST_PASSWORD_BYTES = 4096


def password_is_typed(variable: str, file: Path | None) -> bool:
    """Whether `read_password` asks a person."""
    return not os.environ.get(variable) and file is None


def read_password(what: str, variable: str, file: Path | None) -> str:
    """A password: from the environment, else the first line of a file, else a person at a terminal.

    Raises:
        SettingsError: there is none, it is empty, or others than its owner may read the file.
    """
    if password := os.environ.get(variable):
        return password
    if file is None:
        if not sys.stdin.isatty():
            raise SettingsError(
                f"expected the {what}: in {variable}, in a file, or from somebody at a terminal"
            )
        return _ask(what)
    return read_first_line("keys.password_file or pin_file", what, file)


def read_first_line(key: str, what: str, file: Path) -> str:
    """A secret from the first line of a file that only its owner reads.

    Raises:
        SettingsError: it is empty, or no such file; the message names the settings' `key`.
    """
    try:
        lines = read_private(file, _MOST_PASSWORD_BYTES).decode().splitlines()
    except (KeyFileError, UnicodeDecodeError) as error:
        raise SettingsError(f"{key}, the {what}: {error}") from error
    if not lines or not lines[0]:
        raise SettingsError(f"{key}: expected the {what} in the first line of {file}")
    return lines[0]


@functools.cache
def _ask(what: str) -> str:
    return getpass.getpass(f"{what}: ")
