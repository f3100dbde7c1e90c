"""A store's folder is a folder: what lies in it and is not the store's neither ends a listing nor the store."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from consilia.errors import StoreError
from consilia.store.directory import DirectoryStore
from consilia.values import Digest
from tests.crypto.sealing import seal_bytes

ENVELOPE, SEALED = seal_bytes(b"images")
OTHER = Digest.of(b"another")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A store with one object, in a folder where others put things."""
    with DirectoryStore(tmp_path / "store").writer() as incoming:
        incoming.stream.write(ENVELOPE)
        incoming.commit(SEALED.root)
    return tmp_path / "store"


def make_old(path: Path) -> None:
    os.utime(path, (time.time() - 2 * 86_400,) * 2, follow_symlinks=False)


def test_a_listing_does_not_look_into_what_is_not_its_own(home: Path) -> None:
    (home / "loop").symlink_to(home / "loop")
    (home / "up").symlink_to(home)
    (home / "aa").symlink_to(home / "nowhere")
    (home / "lost+found").mkdir(mode=0)
    (home / "ab").write_text("no folder")
    (home / OTHER.hex()[:2]).mkdir(exist_ok=True)
    (home / OTHER.hex()[:2] / OTHER.hex()).mkdir()  # named like an object
    assert list(DirectoryStore(home).roots()) == [SEALED.root]
    [found] = DirectoryStore(home).objects()
    assert abs(found.modified_seconds - time.time()) < 600


def test_an_object_that_cannot_be_looked_at_is_an_error_of_the_store(home: Path) -> None:
    path = home / OTHER.hex()[:2] / OTHER.hex()
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(path)
    with pytest.raises(StoreError, match=f"failed on object {OTHER}"):
        list(DirectoryStore(home).objects())


def test_an_old_folder_among_the_uploads_is_left_alone(home: Path) -> None:
    folder, file, link = (home / "incoming" / name for name in ("folder", "file", "link"))
    folder.mkdir()
    file.write_bytes(b"half")
    link.symlink_to(home / "nowhere")
    store = DirectoryStore(home)
    for path in (folder, file, link):
        make_old(path)
    assert store.abandoned(3600) == ["file"]
    assert list(DirectoryStore(home).roots()) == [SEALED.root]  # opened, and swept
    assert folder.is_dir() and link.is_symlink() and not file.exists()
    with pytest.raises(StoreError, match="upload folder"):
        store.discard("folder")
