"""The contracts in an EVM inside the test's process (titanoboa), compiled from their sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import boa
import boa.interpret
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

import consilia.contracts
from consilia.ledger.client import contract_address, sign_founder
from consilia.values import Digest, Role

SOURCES = Path(consilia.contracts.__file__).parent
boa.interpret.set_search_paths([str(SOURCES)])
RICH_WEI = 10**24
VALID_TO = 2**40
HOSPITALS = 4
REWARD_WEI = 1_000_000
ENROL_SECONDS, ROUND_SECONDS = 100, 50
SPEC = b'{"title":"lesions"}'
ROOT, OTHER_ROOT, DIGEST = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32


@dataclass
class Contracts:
    """The contracts with one server, hospitals and an auditor."""

    registry: Any
    escrow: Any
    training: Any
    exchange: Any
    diagnosis: Any
    server: str
    hospitals: list[str]
    auditor: str
    stranger: str

    def publish(self, **changes: Any) -> int:
        """A task of two rounds with a quorum of two."""
        terms = {"spec": SPEC, "rounds": 2, "quorum": 2, "max_hospitals": HOSPITALS}
        terms |= {"enrol_seconds": ENROL_SECONDS, "round_seconds": ROUND_SECONDS}
        sender, value = changes.pop("sender", self.server), changes.pop("value", REWARD_WEI)
        terms |= changes
        return int(self.training.publish(*terms.values(), sender=sender, value=value))

    def enrol(self, task_id: int, count: int = 3) -> list[str]:
        """The first hospitals enrol."""
        for hospital in self.hospitals[:count]:
            self.training.enrol(task_id, sender=hospital)
        return self.hospitals[:count]

    def issue_keys(self, task_id: int, hospitals: list[str]) -> None:
        """Each of them gets a task key."""
        self.training.issue_keys(task_id, hospitals, [b"\x09" * 32] * len(hospitals), sender=self.server)

    def start(self, task_id: int, **options: Any) -> None:
        """Round 0 opens."""
        self.training.start(task_id, ROOT, 10, ROOT, 20, DIGEST, **{"sender": self.server, **options})

    def training_task(self, **changes: Any) -> int:
        """A task in its round 0, with three hospitals."""
        task_id = self.publish(**changes)
        self.issue_keys(task_id, self.enrol(task_id))
        self.start(task_id)
        return task_id

    def register(self, task_id: int, round_index: int, hospital: str, num_examples: int = 5) -> None:
        """One update."""
        arguments = (task_id, round_index, ROOT, OTHER_ROOT, 30, num_examples, DIGEST)
        self.training.register_update(*arguments, sender=hospital)

    def close(self, task_id: int, round_index: int, included: int = 0b11, **options: Any) -> None:
        """Close a round with the updates whose bits are set."""
        words = [included % 2**256, included >> 256]
        counted = self.training.task(task_id).registered
        judged = (self.training.trails(task_id, max(counted, 1) - 1), counted)
        arguments = (task_id, round_index, *judged, words, ROOT, 40, DIGEST, OTHER_ROOT, 50, DIGEST)
        self.training.close_round(*arguments, **{"sender": self.server, **options})

    def run_round(self, task_id: int, round_index: int) -> None:
        """Two updates, both included."""
        for hospital in self.hospitals[:2]:
            self.register(task_id, round_index, hospital)
        self.close(task_id, round_index)

    def finished_task(self, **changes: Any) -> int:
        """A task with both rounds closed."""
        task_id = self.training_task(**changes)
        for round_index in range(2):
            self.run_round(task_id, round_index)
        return task_id


@pytest.fixture(autouse=True)
def own_evm() -> Iterator[None]:
    """Each test has a chain of its own, by London's rules."""
    with boa.swap_env(boa.Env()):
        boa.env.evm.patch.code_size_limit = 24_576  # EIP-170: what a real chain accepts
        yield


def account(number: int) -> LocalAccount:
    """The key of a party."""
    return Account.from_key(number.to_bytes(32, "big"))


def founder(key: LocalAccount, role: int, registry: str, **changes: Any) -> tuple[Any, ...]:
    """A founder's record as the constructor takes it, signed, then changed."""
    record: dict[str, Any] = {
        "recipient_key": Digest.of(key.address.encode()),
        "role": role,
        "certificate_digest": Digest.of(key.address.encode()),
        "valid_from": 0,
        "valid_to": VALID_TO,
    }
    record |= {name: value for name, value in changes.items() if name != "signature"}
    signature = sign_founder(key, **record, chain_id=boa.env.evm.patch.chain_id, registry=registry)
    return (key.address, *record.values(), changes.get("signature", signature))


def next_contract(deployer: str, ahead: int = 0) -> str:
    """Where the deployer's next contract but `ahead` lands."""
    nonce = boa.env.evm.vm.state.get_nonce(bytes.fromhex(deployer[2:]))
    return contract_address(deployer, nonce + ahead)


@cache
def compiled(name: str) -> Any:
    """A contract from its source, compiled once."""
    return boa.load_partial(str(SOURCES / f"{name}.vy"))


def load(name: str, *arguments: Any) -> Any:
    """Deploy a contract."""
    return compiled(name).deploy(*arguments)


def make_contracts() -> Contracts:
    """The contracts as `consilia.ledger.deployment.deploy` puts them on a chain."""
    deployer = str(boa.env.eoa)
    registry_address = next_contract(deployer)
    keys = [account(number + 1) for number in range(HOSPITALS + 2)]
    roles = [Role.SERVER, *[Role.HOSPITAL] * HOSPITALS, Role.AUDITOR]
    founders = [founder(key, role, registry_address) for key, role in zip(keys, roles, strict=True)]
    registry = load("registry", founders)
    escrow = load("escrow", registry.address, next_contract(deployer, 1))
    training = load("training", registry.address, escrow.address)
    exchange = load("exchange", registry.address, training.address)
    diagnosis = load("diagnosis", registry.address)
    addresses = [key.address for key in keys]
    stranger = boa.env.generate_address("stranger")
    for address in [*addresses, stranger]:
        boa.env.set_balance(address, RICH_WEI)
    return Contracts(
        registry,
        escrow,
        training,
        exchange,
        diagnosis,
        addresses[0],
        addresses[1:-1],
        addresses[-1],
        stranger,
    )


@pytest.fixture(scope="session")
def deployed() -> tuple[boa.Env, Contracts]:
    """Contracts on a chain that every test finds as they were deployed: that costs more than most tests do."""
    env = boa.Env()
    with boa.swap_env(env):
        boa.env.evm.patch.code_size_limit = 24_576
        return env, make_contracts()


@pytest.fixture
def contracts(own_evm: None, deployed: tuple[boa.Env, Contracts]) -> Iterator[Contracts]:
    """Contracts as if freshly deployed: what a test does to their chain is undone after it."""
    env, made = deployed
    timestamp = env.evm.patch.timestamp
    with boa.swap_env(env), env.anchor():
        yield replace(made)
    env.evm.patch.timestamp = timestamp
