"""The bytes of a backup: whole under the right password, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.crypto.backup import MAGIC, Backup, close_backup, open_backup
from consilia.crypto.password_box import ScryptCost, close_box
from consilia.errors import KeyFileError
from tests.crypto.sealing import flipped

PASSWORD = "in the safe"
CHEAP = ScryptCost.TESTS
BACKUP = Backup(
    "hospital-1", 1_800_000_000, b"\x01" * 32, (b"\x02" * 32, b"\x03" * 32), {"state.sqlite": b"rows"}
)


def test_a_backup_comes_back() -> None:
    for backup in (
        BACKUP,
        replace(BACKUP, next_account=b"\x04" * 32, next_identity=b"\x05" * 32),
        Backup("in a token", 0, None, (), {"state.sqlite": b"", "outbox.sqlite": b"\x00" * 9}),
    ):
        data = close_backup(backup, PASSWORD, CHEAP)
        assert open_backup("b", data, PASSWORD) == backup


def test_nothing_secret_is_readable_without_the_password() -> None:
    data = close_backup(BACKUP, PASSWORD, CHEAP)
    for secret in (b"\x01" * 32, b"\x02" * 32, b"rows", b"01" * 32, b"hospital-1"):
        assert secret not in data
    assert data[:8] == b"CSLABAK1"


def test_nothing_secret_is_shown() -> None:
    for shown in (repr(BACKUP), str(BACKUP)):
        assert "hospital-1" in shown and "rows" not in shown and r"\x01" not in shown and r"\x03" not in shown


def test_the_default_cost_is_the_strong_one() -> None:
    assert close_backup(BACKUP, PASSWORD)[8:11] == bytes((17, 8, 1))


def test_every_changed_byte_and_another_password_are_refused() -> None:
    data = close_backup(BACKUP, PASSWORD, CHEAP)
    for bad in [*(flipped(data, at) for at in range(len(data))), data[:-1], data + b"\x00", b"", data[:39]]:
        with pytest.raises(KeyFileError):
            open_backup("b", bad, PASSWORD)
    for password in ("", "another"):
        with pytest.raises(KeyFileError, match="password"):
            open_backup("b", data, password)
    with pytest.raises(KeyFileError, match="password"):
        close_backup(BACKUP, "", CHEAP)


def box(contents: object, files: bytes = b"") -> bytes:
    head = json.dumps(contents).encode()
    return close_box(MAGIC, b"", len(head).to_bytes(4, "big") + head + files, PASSWORD, CHEAP)


HONEST = {"name": "h", "made_at": 1, "account": None, "identities": [], "files": []}


@pytest.mark.parametrize(
    "changes",
    [
        {"files": [{"name": "../consilia.toml", "bytes": 0}]},
        {"files": [{"name": "/etc/state.sqlite", "bytes": 0}]},
        {"files": [{"name": "keys/state.sqlite", "bytes": 0}]},
        {"files": [{"name": "state.sqlite\n", "bytes": 0}]},
        {"files": [{"name": "state.sqlite", "bytes": -1}]},
        {"files": [{"name": "state.sqlite", "bytes": 7}]},
        {"account": "01" * 31},
        {"account": "no hex" + "0" * 58},
        {"identities": ["02" * 33]},
        {"next_account": "04" * 31},
        {"next_identity": ["05" * 32]},
        {"made_at": "1"},
        {"command": "rm"},
    ],
    ids=str,
)
def test_a_strangers_backup_cannot_write_elsewhere_or_say_more(changes: dict[str, object]) -> None:
    open_backup("b", box(HONEST), PASSWORD)
    with pytest.raises(KeyFileError):
        open_backup("b", box(HONEST | changes), PASSWORD)


def test_what_is_no_text_inside_is_refused() -> None:
    for plain in (b"", b"\x00\x00\x00\x02{", b"\xff\xff\xff\xff{}", b"\x00\x00\x00\x00"):
        with pytest.raises(KeyFileError):
            open_backup("b", close_box(MAGIC, b"", plain, PASSWORD, CHEAP), PASSWORD)


def test_refusals_do_not_show_what_was_inside(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError) as refused:
        open_backup("b", box(HONEST | {"account": "ab" * 31}), PASSWORD)
    assert "abab" not in str(refused.value)
