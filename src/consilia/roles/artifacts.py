"""Sealing into the store and opening out of it, so that a crash at any point costs work and never a secret."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from consilia.crypto.custody import Opener
from consilia.crypto.envelope import Opened, open_envelope, seal
from consilia.roles.state import SealedArtifact, State
from consilia.store import ArtifactStore
from consilia.values import ArtifactContext, Digest
from consilia.whole_file import whole_file


def plaintext_name(name: str) -> str:
    """The work file in which an artifact's plaintext lies while it is being sealed: erasing has to find it again."""
    return f"plaintext-{Digest.of(name.encode())}"


def publish_artifact(
    store: ArtifactStore,
    state: State,
    name: str,
    plaintext: Path,
    recipients: Sequence[bytes],
    context: ArtifactContext,
) -> SealedArtifact:
    """Seal a file and put it into the store, once: called again after a crash, it hands back the same artifact.

    Whatever was registered on the ledger was in the store before. So an artifact that the store lacks was never
    registered, and sealing it afresh harms nobody. An upload that was cut off is sealed to the same bytes again,
    and the store takes only those that it has not got.
    """
    known = state.artifact(name)
    if known is None or not store.has(known.root):
        draft = state.draft(name)
        with plaintext.open("rb", buffering=0) as source, store.writer(draft.upload) as incoming:
            sealed = seal(source, incoming.stream, recipients, context, rho=draft.rho)
            known = SealedArtifact(sealed.root, sealed.key_hash, sealed.size, sealed.secret)
            state.keep_artifact(name, known)
            incoming.commit(known.root)
    state.forget_draft(name)
    return known


def fetch_artifact(
    store: ArtifactStore,
    root: Digest,
    identity: Opener,
    recipients: Sequence[bytes],
    context: ArtifactContext,
    target: Path,
) -> Opened:
    """Open an envelope of the store into a file, which appears under its name only after the root was checked.

    Raises:
        ObjectMissingError: the store has no such object.
        EnvelopeError: damaged, not for this identity, or bound to another context.
    """
    with store.reader(root) as ciphertext, whole_file(target) as plaintext:
        return open_envelope(ciphertext, plaintext, identity, recipients, context, root)


def file_digest(path: Path) -> Digest:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").digest())
