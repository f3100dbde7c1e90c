"""A party's memory: on disk when the call returns, for the owner's eyes only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from consilia.crypto.envelope import open_envelope
from consilia.crypto.keys import Identity
from consilia.roles.artifacts import publish_artifact
from consilia.roles.state import SealedArtifact, State
from consilia.store.directory import DirectoryStore
from consilia.values import ArtifactContext, ArtifactKind, Digest

CONTEXT = ArtifactContext(1, "0x" + "aa" * 20, 1, 0, "0x" + "bb" * 20, ArtifactKind.UPDATE)


def test_what_was_remembered_outlives_the_process(tmp_path: Path) -> None:
    first = State(tmp_path / "state.sqlite")  # never closed: as after kill -9
    first.remember("a", "1")
    first.remember("a", "2")
    artifact = SealedArtifact(Digest.of(b"r"), Digest.of(b"k"), 7, b"secret")
    first.keep_artifact("update/1/0", artifact)
    first.keep_task_keys(1, {"0xaa": b"x" * 32})
    second = State(tmp_path / "state.sqlite")
    assert second.fact("a") == "2" and second.fact("b") is None
    assert second.artifact("update/1/0") == artifact and second.artifact("other") is None
    assert second.task_keys(1) == {"0xaa": b"x" * 32} and second.task_keys(2) == {}


def test_a_task_key_is_never_replaced(tmp_path: Path) -> None:
    state = State(tmp_path / "state.sqlite")
    state.keep_task_keys(1, {"0xaa": b"first"})
    state.keep_task_keys(1, {"0xaa": b"other", "0xbb": b"new"})
    assert state.task_keys(1) == {"0xaa": b"first", "0xbb": b"new"}


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        state = State(tmp_path / "state.sqlite")
        state.remember("a", "1")
    finally:
        os.umask(previous)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_secrets_are_not_shown() -> None:
    assert "hidden" not in repr(SealedArtifact(Digest.of(b"r"), Digest.of(b"k"), 7, b"hidden"))


@pytest.mark.parametrize("lost", [False, True])
def test_an_artifact_is_sealed_once_unless_the_store_never_got_it(tmp_path: Path, lost: bool) -> None:
    state, store, owner = (
        State(tmp_path / "state.sqlite"),
        DirectoryStore(tmp_path / "store"),
        Identity.generate(),
    )
    plaintext = tmp_path / "weights"
    plaintext.write_bytes(b"w" * 1000)
    first = publish_artifact(store, state, "update/1/0", plaintext, [owner.recipient], CONTEXT)
    if lost:  # killed between the state and the store
        store.delete(first.root)
    again = publish_artifact(store, state, "update/1/0", plaintext, [owner.recipient], CONTEXT)
    assert (again == first) is not lost
    assert store.has(again.root)
    with store.reader(again.root) as source, (tmp_path / "out").open("wb") as target:
        open_envelope(source, target, owner, [owner.recipient], CONTEXT, again.root)
    assert (tmp_path / "out").read_bytes() == plaintext.read_bytes()
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".envelope")] == []
