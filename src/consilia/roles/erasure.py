"""Erasing an artifact: its keys, salts and envelope go, a signed tombstone stays (docs/store.md, "Erasing").

An envelope opens with its secret (sigma) or with the identity of a recipient, through that recipient's stanza. The
identity opens much else and is kept; so the secret is destroyed here and the stanzas in the store. What others
have copied or opened before is out of reach.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from eth_hash.auto import keccak

from consilia.crypto.custody import Signer
from consilia.crypto.typed_data import signer
from consilia.errors import HomeError, VerificationError
from consilia.ledger.signing import sign_message
from consilia.roles.artifacts import plaintext_name
from consilia.roles.state import State
from consilia.store import ArtifactStore
from consilia.values import Address, Digest, canonical_json, parse_json

FOLDER = "tombstones"
LABEL = "consilia/tombstone/v1"


@dataclass(frozen=True)
class Tombstone:
    """That an owner erased an artifact, when and why. It names no content."""

    root: Digest
    owner: Address
    erased_at: int
    """Unix seconds."""
    reason: str

    def statement(self) -> bytes:
        """The bytes that the owner signs (EIP-191, version 0x45)."""
        return canonical_json(
            {
                "label": LABEL,
                "root": str(self.root),
                "owner": self.owner,
                "erased_at": self.erased_at,
                "reason": self.reason,
            }
        )

    def to_bytes(self, signature: bytes) -> bytes:
        """The file: canonical JSON and a line's end."""
        return canonical_json(parse_json(self.statement()) | {"signature": signature.hex()}) + b"\n"


def erase(
    state: State, store: ArtifactStore, home: Path, account: Signer, root: Digest, reason: str
) -> Tombstone:
    """Write the tombstone, destroy plaintext and secrets, delete the envelope; called again, it ends what it began.

    Raises:
        HomeError: no artifact of that root was sealed in this home.
        StoreError: the envelope could not be deleted; the secrets are gone.
    """
    path = home / FOLDER / f"{root}.json"
    if path.exists():
        tombstone = read_tombstone(path)
    else:
        if root not in state.artifact_roots():
            raise HomeError(f"expected the root of an artifact that this home sealed; {root} is none")
        tombstone = Tombstone(root, account.address, int(time.time()), reason)
        _write(path, tombstone, account)
    for name in state.artifact_names(
        root
    ):  # a process that was killed while it sealed has left the plaintext
        (home / "work" / plaintext_name(name)).unlink(missing_ok=True)
    state.erase_artifact(root)
    store.delete(root)
    return tombstone


def read_tombstone(path: Path) -> Tombstone:
    """Read a tombstone, anybody's, in the one spelling that it has (docs/formats/tombstone.md).

    Raises:
        VerificationError: it is none, or its owner did not sign it.
    """
    try:
        data = path.read_bytes()
        value = parse_json(data)
        tombstone = Tombstone(
            Digest.from_hex(str(value["root"])),
            str(value["owner"]),
            int(value["erased_at"]),
            str(value["reason"]),
        )
        signature = bytes.fromhex(value["signature"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise VerificationError(f"{path.name}: expected a tombstone ({error!r})") from error
    if tombstone.to_bytes(signature) != data:
        raise VerificationError(f"{path.name}: expected a tombstone in canonical form, got another spelling")
    try:
        found = signer(_signed_digest(tombstone), signature)
    except VerificationError as error:
        raise VerificationError(f"{path.name}: {error}") from error
    if found != tombstone.owner:
        raise VerificationError(f"{path.name}: expected the signature of {tombstone.owner}, {found} signed")
    return tombstone


def tombstones(home: Path) -> tuple[list[Tombstone], list[VerificationError]]:
    """The tombstones in a home, its own and those that others handed over; and why other files there are none."""
    found: list[Tombstone] = []
    refused: list[VerificationError] = []
    for path in sorted((home / FOLDER).glob("*.json")):
        try:
            found.append(read_tombstone(path))
        except VerificationError as error:
            refused.append(error)
    return found, refused


def _signed_digest(tombstone: Tombstone) -> Digest:
    statement = tombstone.statement()
    return Digest(keccak(b"\x19Ethereum Signed Message:\n%d%s" % (len(statement), statement)))


def _write(path: Path, tombstone: Tombstone, account: Signer) -> None:
    from eth_account.messages import encode_defunct

    signature = sign_message(account, encode_defunct(tombstone.statement()))
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(tombstone.to_bytes(signature))
    partial.replace(path)
