"""A party's keys, made and opened where its settings say they are: in files, or in a token."""

from __future__ import annotations

import getpass
import sys
from dataclasses import dataclass
from pathlib import Path

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
from consilia.crypto.private_files import make_private_directory
from consilia.crypto.token import Token, TokenIdentity, TokenSigner
from consilia.errors import KeyFileError, SettingsError
from consilia.settings.sections import KeysSection
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
    token = open_token(keys) if keys.uses_token else None
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
    if not make_missing(keys, password, cost):
        raise KeyFileError(
            "account and identity are there already; keys are never overwritten, move them away first"
        )


def make_missing(keys: KeysSection, password: str, cost: ScryptCost = ScryptCost.STANDARD) -> bool:
    """As `make_keys`, but content where nothing is missing; whether anything was made."""
    token = open_token(keys, writable=True) if keys.uses_token else None
    made = [_make_account(keys, token, password, cost), _make_identity(keys, token, password, cost)]
    return any(made)


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


def new_password(keys: KeysSection) -> str:
    """The password for new key files, "" where there are none; a person types it twice.

    Raises:
        SettingsError: there is none, or what was typed differs.
    """
    if "file" not in (keys.signer, keys.opener):
        return ""
    password = keys.password()
    if keys.password_is_typed:
        type_again(password)
    return password


def type_again(password: str) -> None:
    """Let a person type a new password once more.

    Raises:
        SettingsError: it is another one, or empty.
    """
    if not password or (sys.stdin.isatty() and getpass.getpass("again: ") != password):
        raise SettingsError("the two passwords differ, or are empty; nothing was written")


def show_keys(keys: KeysSection) -> ShownKeys:
    """The public halves; those of files are read without a password.

    Raises:
        KeyFileError: a file is missing, open to others, or no key file.
        KeyTokenError: the token is not there, or has no such key.
    """
    token = open_token(keys) if keys.uses_token else None
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
    following = next_file(identity)
    return [identity, *([following] if following.exists() else []), *older]


def older_folder(identity: Path) -> Path:
    """Where identities go that were replaced; they still open what was sealed to them."""
    return identity.with_name("older")


def next_file(identity: Path) -> Path:
    """Where a new identity waits until it is registered."""
    return identity.with_name(identity.name + ".next")


def _open_signer(keys: KeysSection, token: Token | None, password: str) -> Signer:
    if token and keys.pkcs11 and keys.signer == "pkcs11":
        return TokenSigner(token, keys.pkcs11.account_label)
    return load_account(keys.account, password)


def _open_identities(keys: KeysSection, token: Token | None, password: str) -> Opener:
    if token and keys.pkcs11 and keys.opener == "pkcs11":
        return TokenIdentity(token, keys.pkcs11.identity_label)
    return Keyring([load_identity(path, password) for path in identity_files(keys.identity)])
