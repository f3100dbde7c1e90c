"""The homes of a demo consortium: keys, genesis, settings and data of every party, written before anybody starts."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from consilia.ledger.deployment import Founder, contract_address, sign_founder
from consilia.ledger.embedded.genesis import Genesis
from consilia.roles.membership.home import MemberKeys, free_ports, make_member
from consilia.settings import SETTINGS_FILE, toml_value
from consilia.settings.network import Network
from consilia.settings.sections import StoreSection
from consilia.values import Address, Digest, Role

CHAIN_ID = 2407
MEMBER_BALANCE_WEI = 1_000 * 10**18
MEMBERSHIP_SECONDS = 365 * 86_400
BLOCK_TIME_MS = 50
"""A quarter of the chain's default, which reckons with a network: over loopback a block is everywhere in 15 ms, and
rounds of a small model would wait for the difficulty that their own blocks raise (docs/adr/0064)."""
CONFIRMATIONS = 2
"""Of forks between nodes of one machine, one block deep, the next block decides; and most nodes must tell of it."""
SERVER = "server"

__all__ = ["MemberKeys", "free_ports"]


@dataclass(frozen=True)
class HospitalData:
    """Where a hospital's images lie, and a file that names which patients of them are its own (None: all)."""

    path: Path
    patients_file: Path | None = None


def make_members(home: Path, names: Sequence[str]) -> list[MemberKeys]:
    """Give every member its keys, each in its own home; those that are there already stay."""
    with ThreadPoolExecutor(2) as threads:  # scrypt is slow on purpose, and lets other threads run meanwhile
        return list(threads.map(lambda name: make_member(home / name, name), names))


def founders_of(members: Sequence[MemberKeys], now: int) -> list[Founder]:
    """The founding records of the registry that the server will deploy, each signed by the account that it names."""
    server = next(member for member in members if member.name == SERVER)
    registry = contract_address(server.account.address, 0)
    return [_founder(member, registry, now) for member in members]


def _founder(member: MemberKeys, registry: Address, now: int) -> Founder:
    role = Role.SERVER if member.name == SERVER else Role.HOSPITAL
    # the demo's members have no legal certificate: its digest is that of their name
    certificate_digest = Digest.of(member.name.encode())
    valid_from, valid_to = now - 3600, now + MEMBERSHIP_SECONDS
    signature = sign_founder(
        member.account,
        recipient_key=member.identity.recipient,
        role=role,
        certificate_digest=certificate_digest,
        valid_from=valid_from,
        valid_to=valid_to,
        chain_id=CHAIN_ID,
        registry=registry,
    )
    return Founder(
        account=member.account.address,
        recipient_key=member.identity.recipient,
        role=role,
        certificate_digest=certificate_digest,
        valid_from=valid_from,
        valid_to=valid_to,
        signature=signature,
    )


def write_genesis(path: Path, members: Sequence[MemberKeys], now: int) -> Genesis:
    """Write block 0: every member has money for gas, the hospitals may mine."""
    if not path.exists():
        miners = tuple(member.account.address for member in members if member.name != SERVER)
        balances: dict[Address, int] = {member.account.address: MEMBER_BALANCE_WEI for member in members}
        server = next(member for member in members if member.name == SERVER)
        Genesis(
            chain_id=CHAIN_ID,
            timestamp=now - 60,
            miners=miners,
            registry=contract_address(server.account.address, 0),
            balances_wei=balances,
            block_time_ms=BLOCK_TIME_MS,
        ).save(path)
    return Genesis.load(path)


def write_hospital(home: Path, number: int, ports: Sequence[int], data: HospitalData) -> None:
    """Write a hospital's settings; its node's peers are all the other hospitals' nodes."""
    name = f"hospital-{number}"
    port = ports[number - 1]
    node = f'[node]\ngenesis = "../genesis.json"\nport = {port}\npeers = [{_others(ports, port)}]\n'
    own = "" if data.patients_file is None else f"patients = {toml_value(data.patients_file)}\n"
    text = (
        _common(name, ports, port)
        + node
        + f'\n[data]\npath = {toml_value(data.path)}\nproposals = "../proposals"\n{own}'
        + _POLICY
    )
    (home / name / SETTINGS_FILE).write_text(text, "utf-8")


_POLICY = """
[policy]
applications = ["CT", "microscopy"]
purposes = ["research"]
"""


def write_server(home: Path, ports: Sequence[int], offers: str = "") -> None:
    """Write the server's settings; it talks to the first hospital's node, and believes what most nodes tell."""
    (home / SERVER / SETTINGS_FILE).write_text(_common(SERVER, ports, ports[0]) + offers)


def _others(ports: Sequence[int], own: int) -> str:
    return ", ".join(f'"http://127.0.0.1:{port}"' for port in ports if port != own)


def _common(name: str, ports: Sequence[int], port: int) -> str:
    return f"""name = "{name}"

[ledger]
url = "http://127.0.0.1:{port}"
deployment = "../deployment.json"
confirmations = {CONFIRMATIONS}
witnesses = [{_others(ports, port)}]

[store]
path = "../store"

[keys]
account = "keys/account.json"
identity = "keys/identity.key"
password_file = "keys/password"

"""


def write_network(home: Path, hospitals: int) -> None:
    """Write where everything lies, for the audit."""
    Network(
        genesis=Path("genesis.json"),
        deployment=Path("deployment.json"),
        store=StoreSection(path=Path("store")),
        server=Path(SERVER),
        hospitals=tuple(Path(f"hospital-{number}") for number in range(1, hospitals + 1)),
    ).save(home)


def now_seconds() -> int:
    """Unix time in whole seconds."""
    return int(time.time())
