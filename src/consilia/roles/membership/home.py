"""A member's home while it is being made: its keys, and the file of its settings."""

from __future__ import annotations

import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from consilia.crypto.custody import Opener, Signer
from consilia.crypto.keys import Identity, load_account, load_identity, save_account, save_identity
from consilia.crypto.private_files import make_private_directory
from consilia.errors import InputError
from consilia.passwords import PASSWORD_VARIABLE
from consilia.roles.keys import make_missing, new_password, open_keys
from consilia.settings import SETTINGS_FILE, KeySettings, load, toml_value, without_file
from consilia.settings.sections import Confirmations, KeysSection, StoreSection

PASSWORD_FILE = Path("keys/password")


@dataclass(frozen=True)
class MemberKeys:
    """A member's two key pairs while its home is being made."""

    name: str
    account: Signer
    identity: Opener
    password_file: Path | None = PASSWORD_FILE
    """What its settings are to say of the password; None: it comes from the environment, or a person types it."""


def make_member(
    home: Path, name: str, password_file: Path | None = None, *, typed: bool = False
) -> MemberKeys:
    """Give a member its keys; those that are there already stay.

    Settings that are there already say where the keys are, and whence the password. Otherwise the keys are files in
    the folder `keys`, and the password is that of CONSILIA_PASSWORD or of `password_file`; else that of
    `keys/password`; else, if `typed`, of a person at a terminal; else it is drawn, and written to `keys/password`.

    Raises:
        SettingsError: the password is empty, or others than its owner may read its file.
        KeyFileError: keys that are there are under another password.
    """
    if (home / SETTINGS_FILE).exists():
        section = load(KeySettings, home).keys
        if password_file is not None and password_file.resolve() != section.password_file:
            raise InputError(
                f"--password-file {password_file}: {SETTINGS_FILE} of this home says where the password is from, "
                f"{section.password_file or 'the environment or a person'}; change it there"
            )
    else:
        section = _section(home, password_file, typed=typed)
    if section.uses_token:
        made = _file_is_missing(section)
        make_missing(section, new_password(section) if made else "")
        opened = open_keys(section)
        return MemberKeys(name, opened.signer, opened.opener, section.password_file)
    password = new_password(section) if _file_is_missing(section) else section.password()
    make_private_directory(section.account.parent)
    make_private_directory(section.identity.parent)
    account, identity = _account(section.account, password), _identity(section.identity, password)
    own = section.password_file == home.resolve() / PASSWORD_FILE
    return MemberKeys(name, account, identity, PASSWORD_FILE if own else section.password_file)


def _section(home: Path, password_file: Path | None, *, typed: bool) -> KeysSection:
    """Where the keys of a home without settings are, and where their password is from."""
    section, drawn = without_file(home).keys, home.resolve() / PASSWORD_FILE
    if os.environ.get(PASSWORD_VARIABLE):
        if password_file is not None:
            raise InputError(f"expected the password of new keys once: in {PASSWORD_VARIABLE}, or in a file")
        source = None
    elif password_file is not None:
        source = password_file.resolve()
    elif not drawn.exists() and typed and sys.stdin.isatty():
        source = None
    else:
        source = drawn
        if not drawn.exists():
            make_private_directory(drawn.parent)
            drawn.touch(mode=0o600)
            drawn.write_text(secrets.token_urlsafe(24) + "\n")
    return section.model_copy(update={"password_file": source})


def _file_is_missing(section: KeysSection) -> bool:
    return (section.signer == "file" and not section.account.exists()) or (
        section.opener == "file" and not section.identity.exists()
    )


def _account(file: Path, password: str) -> Signer:
    from eth_account import Account

    if file.exists():
        return load_account(file, password)
    made = Account.create()
    save_account(file, made, password)
    return cast("Signer", made)


def _identity(file: Path, password: str) -> Opener:
    if file.exists():
        return load_identity(file, password)
    made = Identity.generate()
    save_identity(file, made, password)
    return made


def free_ports(count: int) -> list[int]:
    """Loopback ports that nobody listens on now."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(listener.getsockname()[1]) for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports


@dataclass(frozen=True)
class Seat:
    """What a member's settings say that differs from member to member.

    `port` is its own node's, with `peers` the other nodes' addresses; without a port it uses the ledger at `url`.
    """

    name: str
    url: str
    store: StoreSection
    data: Path | None = None
    port: int | None = None
    peers: tuple[str, ...] = ()
    applications: tuple[str, ...] = ("CT",)
    confirmations: Confirmations = "embedded"
    witnesses: tuple[str, ...] = ()
    password_file: Path | None = PASSWORD_FILE

    def toml(self) -> str:
        """The settings as a person would write them."""
        lines = [
            f"name = {toml_value(self.name)}",
            "",
            "[ledger]",
            f"url = {toml_value(self.url)}",
            'deployment = "deployment.json"',
            f"confirmations = {toml_value(self.confirmations)}",
            *([f"witnesses = {toml_value(self.witnesses)}"] if self.witnesses else []),
            "",
            "[store]",
            *_store_lines(self.store),
            "",
            "[keys]",
            'account = "keys/account.json"',
            'identity = "keys/identity.key"',
            *([f"password_file = {toml_value(self.password_file)}"] if self.password_file else []),
        ]
        if self.port is not None:
            lines += ["", "[node]", 'genesis = "genesis.json"', f"port = {self.port}"]
            lines += [f"peers = {toml_value(self.peers)}"]
        if self.data is not None:
            lines += ["", "[data]", f"path = {toml_value(self.data)}"]
            lines += [
                "",
                "[policy]",
                f"applications = {toml_value(self.applications)}",
                'purposes = ["research"]',
            ]
        return "\n".join(lines) + "\n"


def _store_lines(store: StoreSection) -> list[str]:
    """Where the store is. Keys of a bucket are each member's own: they come from files or the environment."""
    if store.path is not None:
        return [f"path = {toml_value(store.path)}"]
    told = {"url": store.url, "endpoint": store.endpoint, "region": store.region}
    return [f"{key} = {toml_value(value)}" for key, value in told.items() if value]
