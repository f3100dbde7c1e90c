"""A member's home while it is being made: its keys, and the file of its settings."""

from __future__ import annotations

import secrets
import socket
from dataclasses import dataclass
from pathlib import Path

from consilia.crypto.custody import Opener, Signer
from consilia.crypto.keys import Identity, load_account, load_identity, save_account, save_identity
from consilia.roles.keys import make_missing, open_keys
from consilia.settings import SETTINGS_FILE, KeySettings, KeysSection, StoreSection, load


@dataclass(frozen=True)
class MemberKeys:
    """A member's two key pairs while its home is being made."""

    name: str
    account: Signer
    identity: Opener


def make_member(home: Path, name: str) -> MemberKeys:
    """Give a member its keys under a random password, all in files that only their owner reads.

    Those that are there already stay; a password file may be put there before. So may settings: where they name a
    token, the keys are made in that.
    """
    from eth_account import Account

    if (home / SETTINGS_FILE).exists():
        described = load(KeySettings, home).keys
        if described.uses_token:
            return _member_in_token(name, described)
    keys = home / "keys"
    keys.mkdir(parents=True, exist_ok=True, mode=0o700)
    password_file, account_file, identity_file = (
        keys / "password",
        keys / "account.json",
        keys / "identity.key",
    )
    if not password_file.exists():
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_urlsafe(24) + "\n")
    password = password_file.read_text().splitlines()[0]
    if account_file.exists():
        account = load_account(account_file, password)
    else:
        account = Account.create()
        save_account(account_file, account, password)
    if identity_file.exists():
        identity = load_identity(identity_file, password)
    else:
        identity = Identity.generate()
        save_identity(identity_file, identity, password)
    return MemberKeys(name, account, identity)


def _member_in_token(name: str, keys: KeysSection) -> MemberKeys:
    make_missing(keys, keys.password() if "file" in (keys.signer, keys.opener) else "")
    opened = open_keys(keys)
    return MemberKeys(name, opened.signer, opened.opener)


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
    confirmations: str = "embedded"
    """The engine's preset (settings.CONFIRMATIONS); who joins a network that can fork raises it by hand."""

    def toml(self) -> str:
        """The settings as a person would write them."""
        lines = [
            f'name = "{self.name}"',
            "",
            "[ledger]",
            f'url = "{self.url}"',
            'deployment = "deployment.json"',
            f'confirmations = "{self.confirmations}"',
            "",
            "[store]",
            *_store_lines(self.store),
            "",
            "[keys]",
            'account = "keys/account.json"',
            'identity = "keys/identity.key"',
            'password_file = "keys/password"',
        ]
        if self.port is not None:
            peers = ", ".join(f'"{peer}"' for peer in self.peers)
            lines += ["", "[node]", 'genesis = "genesis.json"', f"port = {self.port}", f"peers = [{peers}]"]
        if self.data is not None:
            applications = ", ".join(f'"{name}"' for name in self.applications)
            lines += ["", "[data]", f'path = "{self.data}"']
            lines += ["", "[policy]", f"applications = [{applications}]", 'purposes = ["research"]']
        return "\n".join(lines) + "\n"


def _store_lines(store: StoreSection) -> list[str]:
    """Where the store is. Keys of a bucket are each member's own: they come from files or the environment."""
    if store.path is not None:
        return [f'path = "{store.path}"']
    endpoint = [f'endpoint = "{store.endpoint}"'] if store.endpoint else []
    return [f'url = "{store.url}"', *endpoint, f'region = "{store.region}"']
