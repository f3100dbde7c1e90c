"""A party's keys, opened where its settings say they are; and how a new identity takes the place of the old one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from consilia.crypto.custody import Opener, Signer
from consilia.crypto.keyring import Keyring
from consilia.crypto.keys import (
    Identity,
    load_account,
    load_identity,
    read_address,
    read_recipient,
    save_account,
    save_identity,
)
from consilia.crypto.password_box import ScryptCost
from consilia.crypto.private_files import make_private_directory, sync_directory
from consilia.crypto.token import Token, TokenIdentity, TokenSigner, adopt_next, prepare_next
from consilia.errors import KeyFileError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.outbox import Outbox
from consilia.ledger.registry import Proposal
from consilia.roles.membership import propose_recipient
from consilia.settings import KeysSection, LedgerSection
from consilia.values import Address


@dataclass(frozen=True)
class PartyKeys:
    """What a party acts with: its account, and all its identities, the current one first."""

    signer: Signer
    opener: Opener


@dataclass(frozen=True)
class ShownKeys:
    """What may be shown of a party's keys."""

    address: Address
    recipient: bytes
    older_recipients: tuple[bytes, ...]


def open_keys(keys: KeysSection) -> PartyKeys:
    """Open account and identities.

    Raises:
        SettingsError: no password or PIN.
        KeyFileError: a file is missing, damaged, open to others, or under another password.
        KeyTokenError: the token is not there, or has no such key.
    """
    token = open_token(keys) if "pkcs11" in (keys.signer, keys.opener) else None
    password = keys.password() if "file" in (keys.signer, keys.opener) else ""
    return PartyKeys(_open_signer(keys, token, password), _open_identities(keys, token, password))


def open_signer(keys: KeysSection) -> Signer:
    """Open the account alone; raises as `open_keys` does."""
    if keys.signer == "pkcs11":
        return _open_signer(keys, open_token(keys), "")
    return _open_signer(keys, None, keys.password())


def open_identities(keys: KeysSection) -> Opener:
    """Open the identities alone; raises as `open_keys` does."""
    if keys.opener == "pkcs11":
        return _open_identities(keys, open_token(keys), "")
    return _open_identities(keys, None, keys.password())


def open_token(keys: KeysSection, *, writable: bool = False) -> Token:
    """Log in to the token that the settings name.

    Raises:
        SettingsError: no PIN.
        KeyTokenError: the token is not there, or the PIN is wrong.
    """
    assert keys.pkcs11 is not None, "the settings were checked for this"
    return Token(keys.pkcs11.module, keys.pkcs11.token, keys.pkcs11.pin(), writable=writable)


def make_keys(keys: KeysSection, password: str, cost: ScryptCost = ScryptCost.STANDARD) -> None:
    """Make what is missing of account and identity, where the settings say. Nothing is overwritten.

    Raises:
        KeyFileError: both are there already, or a file cannot be written.
        KeyTokenError: the token cannot make a key.
    """
    token = open_token(keys, writable=True) if "pkcs11" in (keys.signer, keys.opener) else None
    made = [_make_account(keys, token, password, cost), _make_identity(keys, token, password, cost)]
    if not any(made):
        raise KeyFileError(
            "account and identity are there already; keys are never overwritten, move them away first"
        )


def _make_account(keys: KeysSection, token: Token | None, password: str, cost: ScryptCost) -> bool:
    from eth_account import Account

    if token and keys.pkcs11 and keys.signer == "pkcs11":
        label = keys.pkcs11.account_label
        if missing := label not in token.find(True, label):
            token.make_account(label)
        return missing
    if missing := not keys.account.exists():
        make_private_directory(keys.account.parent)
        save_account(keys.account, Account.create(), password, cost=cost)
    return missing


def _make_identity(keys: KeysSection, token: Token | None, password: str, cost: ScryptCost) -> bool:
    if token and keys.pkcs11 and keys.opener == "pkcs11":
        label = keys.pkcs11.identity_label
        if missing := label not in token.find(True, label):
            token.make_identity(label)
        return missing
    if missing := not keys.identity.exists():
        make_private_directory(keys.identity.parent)
        save_identity(keys.identity, Identity.generate(), password, cost=cost)
    return missing


def show_keys(keys: KeysSection) -> ShownKeys:
    """The public halves; those of files are read without a password.

    Raises:
        KeyFileError: a file is missing, open to others, or no key file.
        KeyTokenError: the token is not there, or has no such key.
    """
    token = open_token(keys) if "pkcs11" in (keys.signer, keys.opener) else None
    if token and keys.pkcs11 and keys.signer == "pkcs11":
        address = TokenSigner(token, keys.pkcs11.account_label).address
    else:
        address = read_address(keys.account)
    if token and keys.pkcs11 and keys.opener == "pkcs11":
        recipients = TokenIdentity(token, keys.pkcs11.identity_label).recipients
    else:
        recipients = tuple(read_recipient(path) for path in identity_files(keys.identity))
    recipients = tuple(dict.fromkeys(recipients))
    return ShownKeys(address, recipients[0], recipients[1:])


def identity_files(identity: Path) -> list[Path]:
    """The identity's file, then the one that is being registered if there is one, then the older ones."""
    older = sorted(older_folder(identity).glob("*.key"))
    following = _next_file(identity)
    return [identity, *([following] if following.exists() else []), *older]


def older_folder(identity: Path) -> Path:
    """Where identities go that were replaced; they still open what was sealed to them."""
    return identity.with_name("older")


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
    )
    if ledger.member(signer.address).recipient_key != recipient:
        proposal = propose_recipient(ledger, recipient, signer, open_identities(keys))
        if not proposal.enacted:
            return proposal, recipient
    replacement.adopt()
    return None, recipient


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
        following = _next_file(self._identity)
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
            _next_file(self._identity).replace(self._identity)
            sync_directory(self._identity.parent)
        except OSError as error:
            raise KeyFileError(f"the identity files cannot be renamed: {error.strerror}") from error


def _next_file(identity: Path) -> Path:
    return identity.with_name(identity.name + ".next")


def _open_signer(keys: KeysSection, token: Token | None, password: str) -> Signer:
    if token and keys.pkcs11 and keys.signer == "pkcs11":
        return TokenSigner(token, keys.pkcs11.account_label)
    return load_account(keys.account, password)


def _open_identities(keys: KeysSection, token: Token | None, password: str) -> Opener:
    if token and keys.pkcs11 and keys.opener == "pkcs11":
        return TokenIdentity(token, keys.pkcs11.identity_label)
    return Keyring([load_identity(path, password) for path in identity_files(keys.identity)])
