"""How a new identity takes the place of the old one: made, proposed to the members, adopted once they agreed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from consilia.crypto.keys import Identity, load_identity, read_recipient, save_identity
from consilia.crypto.password_box import ScryptCost
from consilia.crypto.private_files import make_private_directory, sync_directory
from consilia.crypto.token import Token, adopt_next, prepare_next
from consilia.errors import KeyFileError, LedgerError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import RecipientKeyChanged
from consilia.ledger.outbox import Outbox
from consilia.ledger.registry import Proposal
from consilia.roles.keys import next_file, older_folder, open_identities, open_signer, open_token
from consilia.roles.membership.requests import propose_recipient
from consilia.settings.sections import KeysSection, LedgerSection

CONFIRM_SECONDS = 60.0
"""How long to wait for the block of the deciding vote to be confirmed."""


class Rotation(Protocol):
    """A new identity, in two steps around its registration; each can be repeated after a crash."""

    def prepare(self) -> bytes:
        """Make the new identity, unless it is there already; its public key, to be registered."""

    def adopt(self) -> None:
        """It is registered: make it the current one, and keep the old one."""


def rotation(keys: KeysSection) -> Rotation:
    """How this party's identity is replaced.

    Raises:
        SettingsError: no password or PIN.
        KeyTokenError: the token is not there, or the PIN is wrong.
    """
    if keys.opener == "pkcs11":
        assert keys.pkcs11 is not None, "the settings were checked for this"
        return TokenRotation(open_token(keys, writable=True), keys.pkcs11.identity_label)
    return FileRotation(keys.identity, keys.password())


def rotate_identity(home: Path, keys: KeysSection, place: LedgerSection) -> tuple[Proposal | None, bytes]:
    """Replace the recipient key: make the new one and propose it to the members; once they agreed, adopt it.

    Called again, after a crash or to see how the vote stands, it goes on with the key that was made. A stolen account
    alone cannot change where envelopes are sealed to: the others decide.

    Returns:
        The proposal while it is open, or None once the new key is registered and adopted; the new public key.

    Raises:
        LedgerError: the ledger does not answer, or the registry refuses; the old identity stays the current one.
    """
    signer = open_signer(keys)
    replacement = rotation(keys)
    recipient = replacement.prepare()
    ledger = Ledger(
        place.url,
        Deployment.load(place.deployment),
        account=signer,
        outbox=Outbox(home / "outbox.sqlite"),
        confirmations=place.depth,
        witnesses=place.witnesses,
    )
    if ledger.member(signer.address).recipient_key != recipient:
        proposal = propose_recipient(ledger, recipient, signer, open_identities(keys))
        if not proposal.enacted:
            return proposal, recipient
    _await_confirmed(ledger, recipient)
    replacement.adopt()
    return None, recipient


def _await_confirmed(ledger: Ledger, recipient: bytes) -> None:
    """Wait until the new key is registered in a confirmed block: what the head tells may be taken back."""
    until = time.monotonic() + CONFIRM_SECONDS
    while not any(
        isinstance(event, RecipientKeyChanged) and event.recipient_key == recipient
        for event in ledger.events(ledger.deployment.block)
    ):
        if time.monotonic() >= until:
            raise LedgerError(
                "the members agreed, but that is not confirmed yet, or most other nodes do not tell of it; "
                "rotate again later"
            )
        ledger.wait(ledger.confirmed_block().number, 1.0)


class TokenRotation:
    """Rotation inside a token: the new key is made there, and labels say which is which."""

    def __init__(self, token: Token, label: str) -> None:
        self._token = token
        self._label = label

    def prepare(self) -> bytes:
        """Make "LABEL next"; its public key."""
        return prepare_next(self._token, self._label)

    def adopt(self) -> None:
        """Rename LABEL to "LABEL older ...", and "LABEL next" to LABEL."""
        adopt_next(self._token, self._label)


class FileRotation:
    """Rotation of a file: `identity.key.next` becomes `identity.key`, which goes to the folder `older`."""

    def __init__(self, identity: Path, password: str, cost: ScryptCost = ScryptCost.STANDARD) -> None:
        self._identity = identity
        self._password = password
        self._cost = cost

    def prepare(self) -> bytes:
        """Write `identity.key.next`; its public key."""
        load_identity(self._identity, self._password)  # all files of a party are under one password
        following = next_file(self._identity)
        if not following.exists():
            save_identity(following, Identity.generate(), self._password, cost=self._cost)
        return load_identity(following, self._password).recipient

    def adopt(self) -> None:
        """Give the files their new names; at no moment is there no current identity, or one that is lost."""
        folder = older_folder(self._identity)
        make_private_directory(folder)
        kept = folder / f"{read_recipient(self._identity).hex()[:16]}.key"
        try:
            if not kept.exists():
                os.link(self._identity, kept)
            sync_directory(folder)
            next_file(self._identity).replace(self._identity)
            sync_directory(self._identity.parent)
        except OSError as error:
            raise KeyFileError(f"the identity files cannot be renamed: {error.strerror}") from error
