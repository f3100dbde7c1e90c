"""Files that appear whole or not at all, written over what was there."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.whole_file import whole_file


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with whole_file(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert list(tmp_path.iterdir()) == [path]


def test_a_shorter_file_leaves_nothing_of_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"a long time ago")
    with whole_file(path) as file:
        file.write(b"now")
    assert path.read_bytes() == b"now"


def test_the_room_of_the_older_file_is_used_again(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"before")
    inode = path.stat().st_ino
    with whole_file(path) as file:
        file.write(b"after!")
    assert path.stat().st_ino == inode


def test_after_a_failure_there_is_neither_the_older_file_nor_a_part_of_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"before")
    with pytest.raises(RuntimeError, match="half-way"), whole_file(path) as file:
        file.write(b"aft")
        raise RuntimeError("half-way")
    assert list(tmp_path.iterdir()) == []


def test_a_part_left_by_a_crash_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    (tmp_path / "weights.partial").write_bytes(b"left by a process that was killed")
    with whole_file(path) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]
