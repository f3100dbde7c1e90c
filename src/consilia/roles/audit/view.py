"""Where somebody who only looks reads the ledger: the chain file of a home, no node needed, or any node by its URL."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from consilia.errors import (
    ChainError,
    InputError,
    KeyFileError,
    LedgerError,
    LedgerUnreachableError,
    SettingsError,
)
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.replay import open_readonly_provider
from consilia.ledger.history import History
from consilia.ledger.rpc import Rpc, quantity
from consilia.roles.audit.chain import CHAIN_FILE, account_of
from consilia.settings import SETTINGS_FILE, HospitalSettings, KeySettings, ServerSettings, load, load_party
from consilia.settings.network import NETWORK_FILE, Network
from consilia.values import Address

if TYPE_CHECKING:
    from consilia.ledger.embedded.provider import MethodsProvider


@dataclass(frozen=True)
class Account:
    """An account with the name of the member that holds it, where that is known."""

    address: Address
    name: str | None


@dataclass(frozen=True)
class LedgerView:
    """A ledger to look at: where it was read, its history, and who is who."""

    source: str
    history: History
    ledger: Ledger
    names: Mapping[Address, str]
    genesis: Genesis | None
    """Of the embedded chain; None for another engine, or where only a URL is known."""

    def account(self, address: Address) -> Account:
        """An account with its holder's name."""
        return Account(address, self.names.get(address))


@dataclass(frozen=True)
class _Place:
    """What a home says of its ledger: chain files (by what they are called) and the URL of a node."""

    deployment: Path
    names: dict[Address, str]
    files: dict[str, Path]
    genesis: Path | None
    url: str | None


@contextmanager
def open_view(home: Path | None, url: str | None, deployment: Path | None) -> Iterator[LedgerView]:
    """Open a ledger for reading.

    Args:
        home: of a consortium (`network.json`) or of one party (`consilia.toml`).
        url: a node's JSON-RPC address; it goes before the chain files of a home.
        deployment: the deployment file; it goes before that of a home.

    Raises:
        InputError: neither home nor URL, or a home that is none.
        LedgerUnreachableError: the node does not answer.
        LedgerError: the deployment is not on this chain.
        ChainError: the chain file is damaged.
    """
    place = _place(home) if home is not None else None
    deployment_file = deployment or (place.deployment if place else None)
    if deployment_file is None or (url is None and place is None):
        raise InputError(
            "expected --home DIR, or --url URL and --deployment FILE: say which ledger to look at"
        )
    if not deployment_file.is_file():
        raise InputError(
            f"expected the addresses of a ledger's contracts, {deployment_file.name} is missing: "
            "name a home that has joined a ledger"
        )
    deployed = Deployment.load(deployment_file)
    with ExitStack() as stack:
        source, provider = _source(stack, place, url)
        genesis = Genesis.load(place.genesis) if place and place.genesis and place.genesis.exists() else None
        ledger = Ledger(source, deployed, provider=provider)
        view = LedgerView(
            source, History(Rpc(source, provider), deployed), ledger, place.names if place else {}, genesis
        )
        try:
            view.history.check_chain()
            if not ledger.members():
                raise LedgerError(
                    f"expected members in the registry at {deployed.registry}, found none: wrong file?"
                )
            yield view
        except LedgerUnreachableError as error:
            raise LedgerUnreachableError(
                f"{error}; a home's chain file is read without a node, by --home"
            ) from error
        except sqlite3.Error as error:
            raise ChainError(
                f"{source}: SQLite finds the file damaged: {error}; read another copy"
            ) from error


@dataclass(frozen=True)
class ChainPlace:
    """A chain file and what belongs to it."""

    file: Path
    genesis: Path
    deployment: Path


def has_chain(home: Path) -> bool:
    """Whether a home has a chain file, and need not ask a node."""
    return bool(_place(home).files)


def find_chain(home: Path) -> ChainPlace:
    """The chain file of a home: its own, or the one with the most work in a consortium's.

    Raises:
        InputError: it has none, as with an external engine.
    """
    place = _place(home)
    if not place.files or place.genesis is None:
        raise InputError(
            f"expected a chain file of the embedded chain in {home}, and only that chain can be exported and replayed: "
            "give the home of a consortium or of a hospital with a node; where the ledger is another network, "
            "audit it in place with `consilia audit verify --home`"
        )
    with ExitStack() as stack:
        name, _ = _best_file(stack, place.files, Genesis.load(place.genesis))
    return ChainPlace(place.files[name], place.genesis, place.deployment)


def names_of(home: Path) -> dict[Address, str]:
    """The members' names by their accounts: in a consortium's home those of their folders."""
    network = Network.load(home)
    names: dict[Address, str] = {}
    for party in (*network.hospitals, *filter(None, [network.server])):
        with suppress(
            KeyFileError, SettingsError
        ):  # a name is a convenience: a home that is closed to us has none
            account = account_of(party, load(KeySettings, party).keys)
            names |= {account: party.name} if account else {}
    return names


def _place(home: Path) -> _Place:
    if (home / NETWORK_FILE).exists():
        return _consortium(home)
    if (home / SETTINGS_FILE).exists():
        return _party(home)
    raise SettingsError(
        f"expected {NETWORK_FILE} or {SETTINGS_FILE} in {home}: give the home of a consortium or party"
    )


def _consortium(home: Path) -> _Place:
    network = Network.load(home)
    files = {hospital.name: hospital / CHAIN_FILE for hospital in network.hospitals}
    there = {name: file for name, file in files.items() if file.exists()}
    url = None if there else network.url or load_party(network.server or home).ledger.url
    return _Place(network.deployment, names_of(home), there, network.genesis, url)


def _party(home: Path) -> _Place:
    settings: HospitalSettings | ServerSettings
    try:
        settings = load(HospitalSettings, home)
    except SettingsError:
        settings = load(ServerSettings, home)
    # a ledger can be looked at without keys: they only tell which account is one's own
    keyless = settings.keys.signer == "file" and not settings.keys.account.exists()
    account = None if keyless else account_of(home, settings.keys)
    names = {account: settings.name} if account else {}
    node = settings.node if isinstance(settings, HospitalSettings) else None
    file = home / CHAIN_FILE
    if node is not None and file.exists():
        return _Place(settings.ledger.deployment, names, {settings.name: file}, node.genesis, None)
    return _Place(settings.ledger.deployment, names, {}, node.genesis if node else None, settings.ledger.url)


def _source(stack: ExitStack, place: _Place | None, url: str | None) -> tuple[str, MethodsProvider | None]:
    if url is None and place is not None and place.files and place.genesis is not None:
        name, provider = _best_file(stack, place.files, Genesis.load(place.genesis))
        return f"the chain file of {name}", provider
    address = url or (place.url if place else None)
    assert address is not None, "a home without chain files has a URL"
    return address, None


def _best_file(stack: ExitStack, files: Mapping[str, Path], genesis: Genesis) -> tuple[str, MethodsProvider]:
    """The file with the most work; `ledger verify` and `audit verify` say whether the others agree with it."""
    opened = {
        name: stack.enter_context(closing(open_readonly_provider(file, genesis)))
        for name, file in files.items()
    }
    best = max(opened, key=lambda name: _work(Rpc(name, opened[name])))
    return best, opened[best]


def _work(rpc: Rpc) -> int:
    return quantity(rpc.call("eth_getBlockByNumber", "latest", False)["totalDifficulty"])
