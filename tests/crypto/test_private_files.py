"""Secret files are for their owner alone: made so, and refused otherwise."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from consilia.crypto.keys import load_identity, read_recipient, save_identity
from consilia.crypto.password_box import ScryptCost
from consilia.crypto.private_files import make_private_directory, read_private, write_private
from consilia.errors import KeyFileError
from tests.crypto.sealing import HOSPITAL


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o610, 0o620, 0o602, 0o601, 0o644, 0o666])
def test_a_file_that_others_can_use_is_refused_with_what_to_do(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "identity.key"
    save_identity(path, HOSPITAL, "password", cost=ScryptCost.TESTS)
    path.chmod(mode)
    for read in (lambda: load_identity(path, "password"), lambda: read_recipient(path)):
        with pytest.raises(KeyFileError, match=f"chmod 600 {path}"):
            read()
    path.chmod(0o400)
    assert load_identity(path, "password").recipient == HOSPITAL.recipient


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o720, 0o702, 0o777, 0o1777])
def test_a_directory_where_others_could_put_another_file_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "keys"
    make_private_directory(folder)
    write_private(folder / "secret", b"s")
    folder.chmod(mode)
    with pytest.raises(KeyFileError, match=f"chmod 700 {folder}"):
        read_private(folder / "secret", 10)
    folder.chmod(0o755)  # others see the name and nothing else
    assert read_private(folder / "secret", 10) == b"s"


def test_directories_are_made_for_their_owner_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        make_private_directory(tmp_path / "home" / "keys" / "older")
        make_private_directory(tmp_path / "home" / "keys" / "older")
    finally:
        os.umask(before)
    for path in ("home", "home/keys", "home/keys/older"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o700


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KeyFileError, match="cannot be made"):
        make_private_directory(tmp_path / "file" / "keys")


def test_a_link_is_judged_by_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "open").write_bytes(b"s")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "link").symlink_to(tmp_path / "open")
    with pytest.raises(KeyFileError, match="chmod 600"):
        read_private(tmp_path / "link", 10)
