"""What a round costs in gas and in bytes of chain, for few hospitals and for many, with the contracts as they are.

The calls run on the embedded chain in this process, so the figures are receipts and not estimates; any EVM network
with London's rules charges the same. The registry takes 64 founders and votes on all others: to have 500 without 436
votes, it is compiled here with a longer founding list and no other change, and deployed by a larger transaction than
a node would take.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from eth_account import Account
from eth_account.signers.local import LocalAccount
from rich.console import Console
from rich.table import Table

from consilia.contracts import build
from consilia.ledger import deployment
from consilia.ledger.client import Founder, Ledger, contract_address, deploy, sign_founder
from consilia.ledger.contracts import ContractAbi, contract_abi
from consilia.ledger.embedded import transaction
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.local import LocalNode
from consilia.ledger.embedded.node_key import NodeKey
from consilia.ledger.events import UpdateRegistered
from consilia.ledger.outbox import Outbox
from consilia.ledger.rpc import Rpc, quantity
from consilia.protocols.training import to_bitmap
from consilia.values import Digest, Role

CHAIN_ID = 2407
MANY_FOUNDERS = 512
ROUNDS = 3
FAR_FUTURE = 2**40
MOST_GAS = 2**38
"""Of a block: the deployment of a registry with 500 founders is one transaction."""


@dataclass(frozen=True)
class GasOfTask:
    """The gas of each call for one number of hospitals, and the bytes that its rounds add to the chain file."""

    hospitals: int
    publish: int
    enrol: int
    issue_keys: int
    """All hospitals' keys together."""
    start: int
    first_update: int
    """The dearest registration of a hospital's first round: some words are new."""
    update: int
    """The dearest registration of later rounds: the first of a round, which sets its counter to 1 again."""
    close_round: int
    """The dearest of all rounds."""
    settle: int
    """All hospitals' shares together."""
    claim: int
    round: int
    """The last round: all registrations and its closing."""
    round_bytes: int
    """What the last round added to the chain file."""


class Town:
    """A server and many hospitals on one mined chain; the hospitals' calls of a round share a block."""

    def __init__(self, home: Path, hospitals: int) -> None:
        self.server = _account(0)
        self.hospitals = [_account(number) for number in range(1, hospitals + 1)]
        everybody = [self.server, *self.hospitals]
        genesis = Genesis(
            chain_id=CHAIN_ID,
            timestamp=int(time.time()) - 3600,
            miners=(self.server.address,),
            balances_wei={account.address: 10**24 for account in everybody},
            min_difficulty=1,
            gas_limit=MOST_GAS,
        )
        self.file = home / "chain.sqlite"
        self.node = LocalNode(self.file, genesis, NodeKey(bytes(self.server.key)))
        self.rpc = Rpc("embedded", self.node.provider())
        outbox = Outbox(home / "outbox.sqlite")
        with (
            patch.object(deployment, "contract_abi", _with_long_founding_list),
            patch.object(transaction, "MAX_TRANSACTION_BYTES", 1 << 20),
        ):
            self.deployment = deploy(
                "embedded", self.server, _founders(everybody), outbox, provider=self.node.provider()
            )
        self.ledger = Ledger(
            "embedded", self.deployment, account=self.server, outbox=outbox, provider=self.node.provider()
        )
        self._nonces = dict.fromkeys((account.address for account in self.hospitals), 0)

    def all_call(self, contract: str, function: str, *arguments: object) -> list[int]:
        """Every hospital calls the same; the gas of each."""
        data = contract_abi(contract).call(function, *arguments)
        return self._mine([(account, data) for account in self.hospitals], contract)

    def _mine(self, calls: Sequence[tuple[LocalAccount, bytes]], contract: str) -> list[int]:
        hashes = []
        for account, data in calls:
            signed = account.sign_transaction(
                {
                    "type": 2,
                    "chainId": CHAIN_ID,
                    "nonce": self._nonces[account.address],
                    "gas": 1_000_000,
                    "maxFeePerGas": 10**10,
                    "maxPriorityFeePerGas": 1,
                    "value": 0,
                    "to": getattr(self.deployment, contract),
                    "data": data,
                }
            )
            self._nonces[account.address] += 1
            self.node.pool.add(bytes(signed.raw_transaction))
            hashes.append("0x" + bytes(signed.hash).hex())
        self.node.mine()
        receipts: list[Any] = [self.rpc.call("eth_getTransactionReceipt", item) for item in hashes]
        failed = [receipt for receipt in receipts if receipt is None or quantity(receipt["status"]) != 1]
        if failed:
            raise AssertionError(f"{len(failed)} of {len(receipts)} calls failed")
        return [quantity(receipt["gasUsed"]) for receipt in receipts]

    def next_second(self) -> None:
        """A round that opens in the same second as the one before writes the same deadline again, for less gas."""
        opened = self.ledger.confirmed_block().timestamp
        while int(time.time()) <= opened:
            time.sleep(0.05)

    def bytes(self) -> int:
        """The chain file once its log is written into it."""
        with closing(sqlite3.connect(self.file)) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.file.stat().st_size

    def close(self) -> None:
        """Close the chain."""
        self.node.close()


def measure(hospitals: int) -> GasOfTask:
    """Run one whole task and note what each call used.

    Raises:
        AssertionError: a call failed.
    """
    with tempfile.TemporaryDirectory(prefix="consilia-gas-") as folder:
        town = Town(Path(folder), hospitals)
        try:
            return _run(town, hospitals)
        finally:
            town.close()


def _run(town: Town, hospitals: int) -> GasOfTask:
    ledger, addresses = town.ledger, [account.address for account in town.hospitals]
    task_id = ledger.publish_task(
        "publish", b"{}", ROUNDS, hospitals, hospitals, 86_400, 86_400, hospitals * 10**6
    )
    publish = _gas_of_last(town)
    enrol = max(town.all_call("training", "enrol", task_id))
    keys = ledger.issue_keys("keys", task_id, {address: _digest(address) for address in addresses})
    started = ledger.start_task("start", task_id, **_model("key_string", ""))
    updates, closings, size = [], [], 0
    for index in range(ROUNDS):
        size = town.bytes()
        names = [_digest(f"{kind} {index}") for kind in ("root", "key hash", "metrics")]
        arguments = (task_id, index, *names[:2], 10**8, 1000, names[2])
        registrations = town.all_call("training", "register_update", *arguments)
        updates.append(max(registrations))
        town.next_second()
        closings.append(_close(town, task_id, index, hospitals))
    size = town.bytes() - size
    shares = ledger.settle("settle", task_id, dict.fromkeys(addresses, 10**6))
    claim = max(town.all_call("escrow", "claim", task_id))
    return GasOfTask(
        hospitals=hospitals,
        publish=publish,
        enrol=enrol,
        issue_keys=keys.gas_used,
        start=started.gas_used,
        first_update=updates[0],
        update=max(updates[1:]),
        close_round=max(closings),
        settle=shares.gas_used,
        claim=claim,
        round=sum(registrations) + closings[-1],
        round_bytes=size,
    )


def _close(town: Town, task_id: int, index: int, hospitals: int) -> int:
    events = town.ledger.events(town.ledger.confirmed_block().number, task_id=task_id)
    trail = [event.trail for event in events if isinstance(event, UpdateRegistered)][-1]
    return town.ledger.close_round(
        f"close/{index}",
        task_id,
        index,
        trail=trail,
        counted=hospitals,
        included=to_bitmap(range(hospitals)),
        **_model("report", index),
    ).gas_used


def _model(other: str, index: object) -> dict[str, Any]:
    """The names of a model and of what is registered with it."""
    names = {f"{kind}_root": _digest(f"{kind} {index}") for kind in ("model", other)}
    sizes = {f"{kind}_size": 10**8 for kind in ("model", other)}
    digests = {"model_digest": _digest(f"digest {index}")}
    if other == "report":
        digests["report_digest"] = _digest(f"report digest {index}")
    return {**names, **sizes, **digests}


def _gas_of_last(town: Town) -> int:
    block = town.ledger.confirmed_block()
    receipt: Any = town.rpc.call("eth_getTransactionReceipt", "0x" + block.transactions[-1].hex())
    return quantity(receipt["gasUsed"])


def _account(number: int) -> LocalAccount:
    return Account.from_key(Digest.of(b"gas %d" % number))


def _digest(text: str) -> Digest:
    return Digest.of(text.encode())


def _founders(accounts: Sequence[LocalAccount]) -> list[Founder]:
    registry = contract_address(accounts[0].address, 0)
    founders = []
    for index, account in enumerate(accounts):
        founder = Founder(
            account=account.address,
            recipient_key=_digest(f"recipient {index}"),
            role=Role.HOSPITAL if index else Role.SERVER,
            certificate_digest=_digest(f"certificate {index}"),
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
            chain_id=CHAIN_ID,
            registry=registry,
        )
        founders.append(replace(founder, signature=signature))
    return founders


def _with_long_founding_list(name: str) -> ContractAbi:
    return _long_registry() if name == "registry" else contract_abi(name)


def _long_registry() -> ContractAbi:
    with tempfile.TemporaryDirectory(prefix="consilia-contracts-") as folder:
        for source in build.FOLDER.glob("*.vy"):
            shutil.copy(source, folder)
        registry = Path(folder) / "registry.vy"
        text, found = re.subn(
            r"(MAX_FOUNDERS: constant\(uint256\)) = \d+", rf"\1 = {MANY_FOUNDERS}", registry.read_text()
        )
        if found != 1:
            raise AssertionError("registry.vy has no MAX_FOUNDERS any more")
        registry.write_text(text)
        with patch.object(build, "FOLDER", Path(folder)):
            return ContractAbi(json.loads(build.compile_contract("registry")))


def print_gas(console: Console, measured: Sequence[GasOfTask]) -> None:
    """One column for each number of hospitals."""
    table = Table(title="Gas, by number of hospitals")
    table.add_column("")
    for item in measured:
        table.add_column(str(item.hospitals), justify="right")
    rows = {
        "publish a task": "publish",
        "enrol, each hospital": "enrol",
        "issue task keys, all": "issue_keys",
        "start": "start",
        "register an update, first round": "first_update",
        "register an update": "update",
        "close a round": "close_round",
        "a round after the first": "round",
        "settle, all": "settle",
        "claim, each hospital": "claim",
        "bytes of chain file a round": "round_bytes",
    }
    for title, name in rows.items():
        table.add_row(title, *(f"{getattr(item, name):,}" for item in measured))
    console.print(table)
