"""Real chains for the tests: anvil (Foundry's node, from npm) and the embedded proof-of-work engine."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from consilia.errors import LedgerUnreachableError
from consilia.ledger.client import Founder, Ledger, contract_address, deploy, sign_founder
from consilia.ledger.contracts import Deployment
from consilia.ledger.outbox import Outbox
from consilia.ledger.rpc import Provider, Rpc, quantity
from consilia.values import Digest, Role

FOUNDRY_VERSION = "1.7.1"
FOUNDRY_TOOLS = ("anvil", "cast")
CACHE = Path(__file__).parents[2] / "node_modules"
PLATFORM = {("Linux", "x86_64"): "linux-amd64", ("Linux", "aarch64"): "linux-arm64"} | {
    ("Darwin", "arm64"): "darwin-arm64",
    ("Darwin", "x86_64"): "darwin-amd64",
}
START_SECONDS = 30.0
HOSPITALS = 3
FAR_FUTURE = 2**40


def unavailable(reason: str) -> None:
    """Skip, loudly; in CI a missing engine is a failure: half of the promise would go untested."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must test against anvil and cast: {reason}")
    pytest.skip(f"NOT TESTED AGAINST ANVIL AND CAST: {reason}")


@pytest.fixture(scope="session")
def anvil_binary() -> Path:
    """The anvil of the platform package; installed into node_modules/ at first."""
    return foundry_binary("anvil")


@pytest.fixture(scope="session")
def cast_binary() -> Path:
    """Foundry's command-line client, likewise."""
    return foundry_binary("cast")


def foundry_binary(tool: str) -> Path:
    """A program of Foundry, of the version that the tests were written for."""
    system = PLATFORM.get((platform.system(), platform.machine()))
    if system is None:
        unavailable(f"no {tool} for {platform.system()} {platform.machine()}")
    binary = CACHE / "@foundry-rs" / f"{tool}-{system}" / "bin" / tool
    if binary.exists():
        return binary
    npm = shutil.which("npm")
    if npm is None:
        unavailable("npm is missing: apt install npm")
    # The binary is inside the platform package. The install scripts would download it: not needed.
    command = [
        npm,
        "install",
        "--prefix",
        str(CACHE.parent),
        "--no-save",
        "--no-package-lock",
        "--ignore-scripts",
    ]
    # All of them at once: an npm that saves nothing removes what the command does not name.
    command += ["--no-audit", "--no-fund"]
    command += [f"@foundry-rs/{name}-{system}@{FOUNDRY_VERSION}" for name in FOUNDRY_TOOLS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode != 0 or not binary.exists():
        unavailable(f"npm could not install {tool}: {done.stderr.strip()[-300:]}")
    return binary


@pytest.fixture
def anvil(anvil_binary: Path) -> Iterator[str]:
    """The URL of a fresh anvil that makes a block for each transaction."""
    with running_anvil(anvil_binary) as url:
        yield url


@contextmanager
def running_anvil(binary: Path, *options: str) -> Iterator[str]:
    """An anvil with London's rules, by its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(binary),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--silent",
        "--hardfork",
        "london",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(url, process)
        yield url
    finally:
        process.terminate()
        process.wait(10)


def wait_until_it_answers(url: str, process: subprocess.Popen[bytes]) -> None:
    rpc = Rpc(url)
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            rpc.call("eth_chainId")
            return
        except LedgerUnreachableError:
            if process.poll() is not None or time.monotonic() > until:
                raise


@dataclass
class Consortium:
    """Contracts on a chain, a server and its hospitals, each with an outbox of its own."""

    url: str
    provider: Provider | None
    home: Path
    deployment: Deployment
    server_account: LocalAccount
    hospital_accounts: list[LocalAccount]
    founders: list[Founder]

    def ledger(self, account: LocalAccount | None = None, **options: object) -> Ledger:
        """A new client for an account; a second one shares the outbox, as a restarted process would."""
        outbox = None if account is None else Outbox(self.home / f"{account.address}.sqlite")
        return Ledger(
            self.url, self.deployment, account=account, outbox=outbox, provider=self.provider, **options
        )

    @property
    def server(self) -> Ledger:
        return self.ledger(self.server_account)

    @property
    def hospitals(self) -> list[Ledger]:
        return [self.ledger(account) for account in self.hospital_accounts]


def found(
    url: str, provider: Provider | None, home: Path, deployer: LocalAccount, accounts: list[LocalAccount]
) -> Consortium:
    """Deploy the contracts with one server, accounts[0], and hospitals."""
    chain_id = quantity(Rpc(url, provider).call("eth_chainId"))
    registry = contract_address(deployer.address, 0)
    founders = []
    for index, account in enumerate(accounts):
        founder = Founder(
            account=account.address,
            recipient_key=bytes([index + 1]) * 32,
            role=Role.HOSPITAL if index else Role.SERVER,
            certificate_digest=Digest.of(b"certificate %d" % index),
            valid_from=0,
            valid_to=FAR_FUTURE,
            signature=b"",
        )
        signature = sign_founder(
            account,
            recipient_key=founder.recipient_key,
            role=founder.role,
            certificate_digest=founder.certificate_digest,
            valid_from=founder.valid_from,
            valid_to=founder.valid_to,
            chain_id=chain_id,
            registry=registry,
        )
        founders.append(replace(founder, signature=signature))
    deployment = deploy(url, deployer, founders, Outbox(home / "deployer.sqlite"), provider=provider)
    return Consortium(url, provider, home, deployment, accounts[0], accounts[1:], founders)


@pytest.fixture
def accounts() -> list[LocalAccount]:
    """The deployer, the server, the hospitals: fresh keys."""
    return [Account.from_key(bytes([index + 1]) * 32) for index in range(HOSPITALS + 2)]


@pytest.fixture
def on_anvil(anvil: str, tmp_path: Path, accounts: list[LocalAccount]) -> Consortium:
    """A consortium whose chain is anvil."""
    rpc = Rpc(anvil)
    for account in accounts:
        rpc.call("anvil_setBalance", account.address, hex(100 * 10**18))
    return found(anvil, None, tmp_path, accounts[0], accounts[1:])


@pytest.fixture
def on_embedded(tmp_path: Path, accounts: list[LocalAccount]) -> Iterator[Consortium]:
    """A consortium whose chain is the embedded engine, in this process."""
    from consilia.ledger.embedded.genesis import Genesis
    from consilia.ledger.embedded.local import LocalNode
    from consilia.ledger.embedded.node_key import NodeKey

    genesis = Genesis(
        chain_id=2407,
        timestamp=int(time.time()) - 60,
        miners=(accounts[2].address,),
        balances_wei={account.address: 100 * 10**18 for account in accounts},
    )
    node = LocalNode(tmp_path / "chain", genesis, NodeKey(bytes(accounts[2].key)))
    yield found("embedded", node.provider(), tmp_path, accounts[0], accounts[1:])
    node.close()


@pytest.fixture(params=["anvil", "embedded"])
def consortium(request: pytest.FixtureRequest) -> Consortium:
    """The same consortium on either engine: whatever is tested with it must hold on both."""
    return request.getfixturevalue(f"on_{request.param}")
