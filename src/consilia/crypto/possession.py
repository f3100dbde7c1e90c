"""Proof that somebody holds the secret half of a recipient key: one message for each who wants to be convinced.

X25519 keys sign nothing, and a challenge that one member seals convinces that member alone, of a helper who tells its
friends the answer. Here the public keys of the verifiers are the challenges: the prover seals an empty message to each
of them in HPKE's auth mode. Only who holds the claimed secret key, or the verifier's own, can make one that opens; so
each verifier is convinced by its own proof, and by nobody's word (docs/membership.md).
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

from consilia.crypto import hpke
from consilia.crypto.custody import Opener
from consilia.errors import EnvelopeError, VerificationError
from consilia.values import Digest

LABEL = b"consilia/possession/v1"
KEY_BYTES, PROOF_BYTES = 32, 48
ENTRY_BYTES = KEY_BYTES + PROOF_BYTES
MAX_ENTRIES = 64
"""As many as a registry's proposal carries; with more members the others rely on these."""


def prove(opener: Opener, claimed: bytes, verifiers: Sequence[bytes], statement: Digest) -> bytes:
    """Proofs for up to 64 verifiers, each entry the verifier's recipient key and an HPKE message of 48 bytes.

    Args:
        claimed: which of the opener's keys it is about, 32 bytes.
        verifiers: recipient keys, 32 bytes each; those that nothing can be sealed to are passed over.
        statement: what the proof is about; it is worth nothing for anything else.
    """
    entries: list[bytes] = []
    for verifier in sorted(set(verifiers))[:MAX_ENTRIES]:
        seed = secrets.token_bytes(32)
        try:
            proof = hpke.seal_authenticated(verifier, b"", LABEL + statement, opener, claimed, seed)
        except EnvelopeError:  # a member that listed a useless key must not keep others out
            continue
        entries.append(verifier + proof)
    return b"".join(entries)


def verify(proofs: bytes, verifier: Opener, claimed: bytes, statement: Digest) -> None:
    """Be convinced by one's own entry that the maker of the proofs held the secret half of `claimed`.

    Raises:
        VerificationError: there is no entry for this verifier, or it proves nothing.
    """
    entries = [(key, proof) for key, proof in _entries(proofs) if key in verifier.recipients]
    if not entries:
        raise VerificationError(
            "the proofs have no entry for this member's recipient key: it was made before this member joined"
        )
    try:
        hpke.open_authenticated(entries[0][1], verifier, entries[0][0], LABEL + statement, claimed)
    except EnvelopeError as error:
        raise VerificationError(
            f"the proof does not show that the applicant holds the recipient key {claimed.hex()}: do not vote for it"
        ) from error


def _entries(proofs: bytes) -> list[tuple[bytes, bytes]]:
    if len(proofs) % ENTRY_BYTES or len(proofs) > ENTRY_BYTES * MAX_ENTRIES:
        raise VerificationError(
            f"expected proofs of {ENTRY_BYTES} bytes each, at most {MAX_ENTRIES}, got {len(proofs)} bytes"
        )
    return [
        (proofs[at : at + KEY_BYTES], proofs[at + KEY_BYTES : at + ENTRY_BYTES])
        for at in range(0, len(proofs), ENTRY_BYTES)
    ]
