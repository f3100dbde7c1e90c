"""A party's memory: on disk when the call returns, for the owner's eyes only."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import obstore
import pytest
from obstore.store import MemoryStore

from consilia.crypto.envelope import open_envelope
from consilia.crypto.keys import Identity
from consilia.errors import HomeError, StoreUnreachableError
from consilia.ledger.outbox import Outbox
from consilia.roles.artifacts import publish_artifact
from consilia.roles.state import ConsultedImage, SealedArtifact, State
from consilia.store.directory import DirectoryStore
from consilia.store.objects import ObjectStore
from consilia.store.verified import object_bytes
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


def test_a_draft_stays_the_same_until_it_is_forgotten(tmp_path: Path) -> None:
    first = State(tmp_path / "state.sqlite")
    draft = first.draft("update/1/0")
    assert len(draft.rho) == 32 and draft.rho.hex() not in repr(draft)
    second = State(tmp_path / "state.sqlite")
    assert second.draft("update/1/0") == draft != second.draft("update/1/1")
    second.forget_draft("update/1/0")
    assert second.draft("update/1/0") != draft


class CutOff(ObjectStore):
    """A store whose connection is lost before the index is written."""

    def __init__(self, memory: MemoryStore, cut: bool) -> None:
        super().__init__(memory, "memory", patience_seconds=0.1)
        if cut:
            self._requests.put_if_absent = self._lost

    def _lost(self, path: str, data: bytes) -> bool:
        raise StoreUnreachableError("the wire is cut")


def test_an_upload_cut_off_before_its_end_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    """kill -9 or a lost connection in the middle: nothing that was sent is sent again, rho is gone afterwards."""
    memory, owner = MemoryStore(), Identity.generate()
    (tmp_path / "weights").write_bytes(b"w" * 20_000_000)

    def publish(cut: bool) -> SealedArtifact:
        state = State(tmp_path / "state.sqlite")  # each time as after kill -9
        store = CutOff(memory, cut)
        return publish_artifact(store, state, "update/1/0", tmp_path / "weights", [owner.recipient], CONTEXT)

    def sent() -> dict[str, float]:
        return {e["path"]: e["last_modified"] for page in obstore.list(memory, "parts") for e in page}

    with pytest.raises(StoreUnreachableError):
        publish(cut=True)
    first = sent()
    rho = State(tmp_path / "state.sqlite").draft("update/1/0").rho
    artifact = publish(cut=False)
    assert len(first) == 10 and sent() == first
    assert object_bytes(CutOff(memory, False), artifact.root) == artifact.size
    assert State(tmp_path / "state.sqlite").draft("update/1/0").rho != rho


def consulted(number, role="cover"):
    return ConsultedImage(Digest.of(bytes([number])), f"patient-{number}", role)


def test_an_image_is_in_one_query_ever(tmp_path):
    state = State(tmp_path / "state.sqlite")
    state.claim_images("first", [consulted(1), consulted(2, "audit"), consulted(3, "real")])
    state.close()
    state = State(tmp_path / "state.sqlite")
    # in another role, and beside images that are still unused
    with pytest.raises(HomeError, match="in another one"):
        state.claim_images("second", [consulted(4), consulted(3)])
    found = state.consulted()
    assert {image.patient: (image.role, query) for image, query in found.values()} == {
        "patient-1": ("cover", "first"),
        "patient-2": ("audit", "first"),
        "patient-3": ("real", "first"),
    }  # nothing of the refused query was spent


@pytest.mark.parametrize("kind", [State, Outbox])
@pytest.mark.parametrize(
    "damaged", [b"not a database, whatever its length", b"SQLite format 3\0" + bytes(4080)]
)
def test_what_is_no_database_is_told_with_what_to_do(
    tmp_path: Path, kind: type[State | Outbox], damaged: bytes
) -> None:
    path = tmp_path / "kept.sqlite"
    path.write_bytes(damaged)
    with pytest.raises(HomeError, match=r"kept\.sqlite, it cannot be opened.*consilia keys restore"):
        kind(path)
    assert path.read_bytes() == damaged, "it may be repaired yet"


@pytest.mark.parametrize("kind", [State, Outbox])
def test_a_database_that_cannot_be_opened_is_told(tmp_path: Path, kind: type[State | Outbox]) -> None:
    with pytest.raises(HomeError, match="a file which may be written"):
        kind(tmp_path)
