"""What the tests of the envelope start from: some recipients, a context, and sealing in memory."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence

from consilia.crypto.envelope import Opened, Sealed, open_envelope, seal
from consilia.crypto.keys import Identity
from consilia.values import ArtifactContext, ArtifactKind, Digest

HOSPITAL, SERVER, AUDITOR, STRANGER = (
    Identity.from_bytes(hashlib.sha256(name).digest())
    for name in (b"hospital", b"server", b"auditor", b"stranger")
)
RECIPIENTS = [identity.recipient for identity in (HOSPITAL, SERVER, AUDITOR)]
CONTEXT = ArtifactContext(
    chain_id=1337,
    contract="0x" + "11" * 20,
    task_id=7,
    round_index=3,
    owner="0x" + "22" * 20,
    kind=ArtifactKind.UPDATE,
)
RHO = bytes(range(32))


def plaintext_of(size: int) -> bytes:
    """The plaintexts of the vectors: byte i is i mod 251."""
    return (bytes(range(251)) * (size // 251 + 1))[:size]


def seal_bytes(
    plaintext: bytes,
    recipients: Sequence[bytes] = RECIPIENTS,
    context: ArtifactContext = CONTEXT,
    rho: bytes = RHO,
) -> tuple[bytes, Sealed]:
    ciphertext = io.BytesIO()
    sealed = seal(io.BytesIO(plaintext), ciphertext, recipients, context, rho=rho)
    return ciphertext.getvalue(), sealed


def open_bytes(
    envelope: bytes,
    root: bytes,
    identity: Identity = HOSPITAL,
    recipients: Sequence[bytes] = RECIPIENTS,
    context: ArtifactContext = CONTEXT,
) -> tuple[bytes, Opened]:
    plaintext = io.BytesIO()
    opened = open_envelope(io.BytesIO(envelope), plaintext, identity, recipients, context, Digest(root))
    return plaintext.getvalue(), opened


def flipped(data: bytes, at: int, mask: int = 1) -> bytes:
    spoiled = bytearray(data)
    spoiled[at] ^= mask
    return bytes(spoiled)
