"""Backing up what a party cannot rebuild from ledger and store, and restoring it into an empty home."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from consilia.crypto.backup import Backup, close_backup, open_backup
from consilia.crypto.keys import Identity, load_account, load_identity, save_account, save_identity
from consilia.crypto.password_box import ScryptCost
from consilia.crypto.private_files import (
    make_private_directory,
    read_private,
    require_private_directory,
    write_private,
)
from consilia.errors import KeyFileError
from consilia.roles.keys import identity_files, next_file, older_folder
from consilia.roles.membership.joining import NEXT_ACCOUNT
from consilia.settings.sections import KeysSection

DATABASES = ("state.sqlite", "outbox.sqlite")
"""Task keys, secrets of one's own artifacts, facts; and transactions that were signed and may not be in a block yet."""

BESIDE_A_DATABASE = ("-wal", "-shm", "-journal")
"""Ends of the names under which SQLite keeps what it has not written into the database yet."""

_MOST_BYTES = 1 << 30


def take_backup(home: Path, name: str, keys: KeysSection, password: str, made_at: int) -> Backup:
    """Collect a party's secrets, also while it runs. What is in a token stays there.

    Args:
        password: of the key files.
        made_at: Unix seconds.

    Raises:
        KeyFileError: a key file or a database cannot be read.
    """
    account = bytes(load_account(keys.account, password).key) if keys.signer == "file" else None
    following = next_file(keys.identity)
    paths = identity_files(keys.identity) if keys.opener == "file" else []
    secrets = {path: load_identity(path, password).secret_bytes for path in paths}
    next_identity = secrets.pop(following, None)
    files = {file: _snapshot(home / file) for file in DATABASES if (home / file).exists()}
    identities = tuple(dict.fromkeys(secrets.values()))
    return Backup(
        name, made_at, account, identities, files, _next_account(home, keys, password), next_identity
    )


def write_backup(path: Path, backup: Backup, password: str, cost: ScryptCost = ScryptCost.STANDARD) -> None:
    """Write a backup under a password, and read it back: one that does not open is worse than none.

    Raises:
        KeyFileError: a file of that name exists, or others may write to its folder, or the disk refuses, or gives
            back other bytes.
    """
    require_private_directory(path.parent)  # it would not be read back, and there it would lie unread
    write_private(path, close_backup(backup, password, cost))
    if read_backup(path, password) != backup:
        raise KeyFileError(f"{path} was written and reads differently: do not trust this disk")


def read_backup(path: Path, password: str) -> Backup:
    """Read a backup.

    Raises:
        KeyFileError: missing, open to others, damaged, or another password.
    """
    return open_backup(str(path), read_private(path, _MOST_BYTES), password)


def restore_backup(
    home: Path,
    keys: KeysSection,
    backup: Backup,
    password: str,
    cost: ScryptCost = ScryptCost.STANDARD,
) -> None:
    """Write key files under `password`, and the databases, into a home that has none of them.

    Raises:
        KeyFileError: one of the files is there already (then nothing is written), or the disk refuses.
    """
    from eth_account import Account

    databases = [home / name for name in dict.fromkeys((*DATABASES, *backup.files))]
    accounts, identities = _accounts(home, keys, backup), _identities(keys, backup)
    # a log that a killed party left would be played over the restored database, and damage it or bring old facts back
    paths = [path.with_name(path.name + end) for path in databases for end in ("", *BESIDE_A_DATABASE)]
    # and what waited there for a vote may be under another password, or not be what the members voted for
    paths += [*accounts, home / NEXT_ACCOUNT, *identities]
    paths += [next_file(keys.identity)] * bool(identities)
    if taken := [str(path) for path in dict.fromkeys(paths) if path.exists()]:
        raise KeyFileError(
            f"a backup is restored into a home without keys; move away first: {', '.join(taken)}"
        )
    for folder in (home, keys.account.parent, keys.identity.parent):
        make_private_directory(folder)
    for name, data in backup.files.items():
        write_private(home / name, data)
    for path, identity in identities.items():
        make_private_directory(path.parent)
        save_identity(path, identity, password, cost=cost)
    for path, secret in accounts.items():
        make_private_directory(path.parent)
        save_account(path, Account.from_key(secret), password, cost=cost)


def _next_account(home: Path, keys: KeysSection, password: str) -> bytes | None:
    """The account that waits for a vote, which is in a file also where the current one is in a token."""
    path = home / NEXT_ACCOUNT
    if not path.exists() or path.resolve() == keys.account.resolve():
        return None
    return bytes(load_account(path, password or keys.password()).key)


def _accounts(home: Path, keys: KeysSection, backup: Backup) -> dict[Path, bytes]:
    """Which account goes into which file. Settings may be newer than the backup, and name what waited then."""
    following, current = home / NEXT_ACCOUNT, keys.account
    if backup.next_account is not None and following.resolve() == current.resolve():
        current = following.with_name("account-replaced.json")
    places = ((current, backup.account), (following, backup.next_account))
    return {path: secret for path, secret in places if secret is not None}


def _identities(keys: KeysSection, backup: Backup) -> dict[Path, Identity]:
    """Which identity goes into which file: the current one, those that were replaced, the one that waits for a vote."""
    places: dict[Path, Identity] = {}
    for secret in backup.identities:
        identity = Identity.from_bytes(secret)
        older = older_folder(keys.identity) / f"{identity.recipient.hex()[:16]}.key"
        places[older if places else keys.identity] = identity
    if backup.next_identity is not None:
        places[next_file(keys.identity)] = Identity.from_bytes(backup.next_identity)
    return places


def _snapshot(path: Path) -> bytes:
    """A database as it is at one moment, also while its owner writes."""
    try:
        original = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        with closing(original) as source, closing(sqlite3.connect(":memory:")) as copy:
            source.backup(copy)
            return copy.serialize()
    except sqlite3.Error as error:
        raise KeyFileError(f"the database {path} cannot be copied: {error}") from error
