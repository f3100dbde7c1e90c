"""What each call costs on a real chain, and that the client's limits leave room; docs/contracts.md has the table."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from eth_account import Account

from consilia.ledger import client, deployment, sender
from consilia.ledger.client import Ledger, Receipt
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.local import LocalNode
from consilia.ledger.embedded.node_key import NodeKey
from consilia.ledger.registry import MAX_PROOFS_BYTES, Application, Kind
from consilia.ledger.rpc import Rpc, quantity
from consilia.values import Digest
from tests.ledger.conftest import found
from tests.ledger.gas_page import assert_as_told, table_after
from tests.ledger.test_client_task import REWARD_WEI, await_death, close, digest, publish, register, start

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from tests.ledger.conftest import Consortium

ROWS = {
    "keys": "issue_keys, 3 hospitals",
    "update": "register_update",
    "close": "close_round",
    "settle": "settle, 3 hospitals",
    "propose_application": "propose_application, 64 proofs",
    "vote": "vote, of 4 members",
}
"""What the page calls the decisions of a key."""

BLOCK_GAS = 30_000_000
FULL_BATCH = 64


class Meter:
    """Notes the gas and the limit of each transaction, by the first word of its key."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: dict[str, list[tuple[int, int]]] = {}
        send = sender.Sender.send

        def metered(this: sender.Sender, key: str, call: sender.Call) -> sender.Included:
            included = send(this, key, call)
            self.rows.setdefault(key.split("/")[0], []).append((included.receipt.gas_used, call.gas))
            return included

        monkeypatch.setattr(sender.Sender, "send", metered)

    def table(self, names: Mapping[str, str] = MappingProxyType({})) -> dict[str, list[int]]:
        """Least and most gas and the limit, as the page has them; printed for whoever mends the page."""
        rows = {names.get(name, name): rows for name, rows in self.rows.items()}
        cells = {
            name: [min(g for g, _ in used), max(g for g, _ in used), used[-1][1]]
            for name, used in rows.items()
        }
        sys.stdout.write("\n| call | gas, least | gas, most | limit |\n|---|---:|---:|---:|\n")
        for name, (least, most, limit) in cells.items():
            sys.stdout.write(f"| {name} | {least:,} | {most:,} | {limit:,} |\n")
        return cells


def run_everything(consortium: Consortium) -> None:
    """Each call at least once, in the dear and in the cheap case."""
    server, hospitals = consortium.server, consortium.hospitals
    addresses = [account.address for account in consortium.hospital_accounts]
    task_id = publish(server, "publish, 19 B spec/1", rounds=3)
    for hospital in hospitals:
        hospital.enrol("enrol/1", task_id)
    start(server, task_id, addresses)
    for round_index in range(3):
        for hospital in hospitals:
            register(hospital, task_id, round_index)
        close(server, task_id, round_index, (0b111, 0))
    server.settle("settle/1", task_id, dict.fromkeys(addresses, REWARD_WEI // 3))
    for hospital in hospitals:
        hospital.claim("claim/1", task_id)
    doomed = publish_large(server)
    await_death(server, doomed)
    server.refund("refund/1", doomed)
    vote_on_members(consortium)


def vote_on_members(consortium: Consortium) -> None:
    """A change with as many proofs as there can be, a suspension that is decided, and a member that leaves."""
    first, second, third = (ledger.registry for ledger in consortium.hospitals)
    own, proofs = consortium.founders[1], bytes(MAX_PROOFS_BYTES)
    record = (own.role, own.certificate_digest, 0, own.valid_to, own.account, Digest.of(proofs))
    application = Application(own.account, digest("key"), *record)
    place = (consortium.deployment.chain_id, consortium.deployment.registry)
    signature = application.sign(consortium.hospital_accounts[0], *place)
    first.propose_application("propose_application/1", application, signature, proofs)
    second.propose("propose/1", Kind.REMOVAL, own.account)
    second.propose_quorum("propose_quorum/1", 60, 25)
    for registry in (third, consortium.server.registry):
        registry.vote("vote/1", 2)
    third.leave("leave/1")


def publish_large(server: Ledger) -> int:
    """The largest spec there can be, in a task that dies at once."""
    return server.publish_task("publish, 8 KiB spec/1", b"\xff" * 8192, 1, 1, 1, 1, 1, REWARD_WEI)


def test_each_call_leaves_room_below_its_limit(
    on_embedded: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = Meter(monkeypatch)
    run_everything(on_embedded)
    told = table_after("contracts.md", "Measured on the embedded chain by `tests/ledger/test_client_gas.py`")
    calls = {name: row for name, row in told.items() if not name.startswith("deploy ")}
    assert_as_told(calls, meter.table(ROWS))
    tight = {name: rows for name, rows in meter.rows.items() for gas, limit in rows if gas * 1.5 > limit}
    assert not tight


def test_deployment_leaves_room_below_its_limits(on_embedded: Consortium) -> None:
    founders = len(on_embedded.founders)
    limits = [deployment.REGISTRY_GAS + deployment.FOUNDER_GAS * founders]
    limits += [deployment.ESCROW_GAS, deployment.TRAINING_GAS, deployment.EXCHANGE_GAS]
    limits += [deployment.DIAGNOSIS_GAS]
    names = [f"registry, {founders} founders", "escrow", "training", "exchange", "diagnosis"]
    measured = {
        f"deploy {name}": [deployment_gas(on_embedded, offset), None, limit]
        for offset, (name, limit) in enumerate(zip(names, limits, strict=True))
    }
    sys.stdout.write(f"\n{measured}\n")
    told = table_after("contracts.md", "Measured on the embedded chain by `tests/ledger/test_client_gas.py`")
    assert_as_told({name: told[name] for name in measured}, measured)
    assert all(used * 1.3 < limit for used, _, limit in measured.values())


def deployment_gas(consortium: Consortium, offset: int) -> int:
    """What the deployment of the `offset`-th contract used."""
    block = consortium.ledger().block(consortium.deployment.block + offset)
    rpc = Rpc("embedded", consortium.provider)
    receipt: Any = rpc.call("eth_getTransactionReceipt", "0x" + block.transactions[0].hex())
    return quantity(receipt["gasUsed"])


def test_the_largest_founding_fits_into_a_block_as_the_pages_say(tmp_path: Path) -> None:
    accounts = [Account.from_key(bytes([index + 1]) * 32) for index in range(FULL_BATCH + 1)]
    genesis = Genesis(
        chain_id=2407,
        timestamp=int(time.time()) - 60,
        miners=(accounts[0].address,),
        balances_wei={accounts[0].address: 10**20},
        min_difficulty=1,
    )
    assert genesis.gas_limit == BLOCK_GAS
    node = LocalNode(tmp_path / "chain", genesis, NodeKey(bytes(accounts[0].key)))
    try:
        used = deployment_gas(found("embedded", node.provider(), tmp_path, accounts[0], accounts[1:]), 0)
    finally:
        node.close()
    limit = deployment.REGISTRY_GAS + deployment.FOUNDER_GAS * FULL_BATCH
    measured = {f"deploy registry, {FULL_BATCH} founders": [used, None, limit]}
    sys.stdout.write(f"\n{measured}\n")
    told = table_after("contracts.md", "Measured on the embedded chain by `tests/ledger/test_client_gas.py`")
    assert_as_told({name: told[name] for name in measured}, measured)
    assert used * 1.1 < limit < BLOCK_GAS


def test_full_batches_fit_into_a_block() -> None:
    assert client.MAX_BATCH == FULL_BATCH
    assert client.ISSUE_GAS + client.KEY_GAS * FULL_BATCH < BLOCK_GAS
    assert client.SETTLE_GAS + client.SHARE_GAS * FULL_BATCH < BLOCK_GAS
    assert deployment.REGISTRY_GAS + deployment.FOUNDER_GAS * FULL_BATCH < BLOCK_GAS


def await_next_second(server: Ledger) -> None:
    """A round that opens in the same second as the last one writes the same deadline again, for 2,800 gas less."""
    opened = server.confirmed_block().timestamp
    while int(time.time()) <= opened:
        time.sleep(0.05)


def test_closing_a_round_costs_the_same_however_many_took_part(on_embedded: Consortium) -> None:
    server, hospitals = on_embedded.server, on_embedded.hospitals
    task_id = publish(server, rounds=4, quorum=1)
    for hospital in hospitals:
        hospital.enrol("enrol/1", task_id)
    start(server, task_id, [account.address for account in on_embedded.hospital_accounts])
    receipts: list[Receipt] = []
    for round_index, present in enumerate((1, 1, 3)):
        for hospital in hospitals[:present]:
            register(hospital, task_id, round_index)
        included = (2**present - 1, 0)
        await_next_second(server)
        close(server, task_id, round_index, included)
        newest = server.block(server.confirmed_block().number).transactions[-1]
        rpc = Rpc("embedded", on_embedded.provider)
        found: Any = rpc.call("eth_getTransactionReceipt", "0x" + newest.hex())
        receipts.append(Receipt(quantity(found["blockNumber"]), digest(""), quantity(found["gasUsed"])))
    # of the trail's 32 bytes some may be zero, and a zero byte of calldata costs 12 gas less than another
    assert abs(receipts[1].gas_used - receipts[2].gas_used) < 32 * 12
