"""`consilia ledger verify`: a home by replay, a node by its answers; a node that lies is found, in any engine."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from eth_account import Account
from typer.testing import CliRunner

from consilia.cli import app
from consilia.errors import AuditError, LedgerError
from consilia.ledger.rpc import HttpProvider, Rpc
from consilia.roles.audit.node_check import check_node
from tests.consortium import Consortium, consortium
from tests.ledger.conftest import anvil, anvil_binary  # noqa: F401  # fixtures


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Two hospitals trained for a round; the node still serves."""
    with (
        pytest.MonkeyPatch.context() as patch,
        consortium(tmp_path_factory.mktemp("verified"), patch, 2) as made,
    ):
        made.start_server()
        made.finish()
        yield made


def verify(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(
        app, ["ledger", "verify", *arguments, "--format", "json"], catch_exceptions=False
    )
    last: dict[str, Any] = json.loads(done.output.splitlines()[-1])
    assert done.exit_code == 0 and last["step"] == "all in order"
    return last


def test_a_home_is_replayed_and_a_node_is_computed_again(run: Consortium) -> None:
    at_home = verify("--home", str(run.home))
    at_node = verify("--url", run.url, "--deployment", str(run.home / "deployment.json"))
    by_server = verify("--home", str(run.home / "server"))
    assert (at_home["state_replayed"], at_node["state_replayed"], by_server["state_replayed"]) == (
        True,
        False,
        False,
    )
    assert at_home["height"] == at_node["height"] == by_server["height"]
    assert at_home["shares"] == at_node["shares"] == 2
    assert at_home["transactions"] == at_node["transactions"] > 10


class Lying:
    """A node that changes its answers."""

    def __init__(self, url: str, method: str, change: Callable[[Any], None]) -> None:
        self._honest = HttpProvider(url)
        self._method = method
        self._change = change

    def make_request(self, method: Any, params: Any) -> Any:
        reply = self._honest.make_request(method, params)
        if method == self._method and isinstance(reply.get("result"), dict):
            reply = copy.deepcopy(reply)
            self._change(reply["result"])
        return reply


def in_block(number: int, change: Callable[[dict[str, Any]], None]) -> Callable[[Any], None]:
    return lambda block: change(block) if int(block["number"], 16) == number else None


LIES: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "another miner": (
        "eth_getBlockByNumber",
        in_block(5, lambda b: b.update(miner="0x" + "11" * 20)),
        "block 5: its hash is not that of its header",
    ),
    "another parent": (
        "eth_getBlockByNumber",
        in_block(5, lambda b: b.update(parentHash="0x" + "11" * 32)),
        "block 5: its hash",
    ),
    "a block in another's place": (
        "eth_getBlockByNumber",
        in_block(5, lambda b: b.update(number="0x6")),
        "block 5: the node gave block 6",
    ),
    "another sender": (
        "eth_getBlockByNumber",
        in_block(5, lambda b: b["transactions"][0].update({"from": Account.create().address})),
        "block 5: 0x.* did not sign",
    ),
    "another value": (
        "eth_getBlockByNumber",
        in_block(5, lambda b: b["transactions"][0].update(value="0x1")),
        "block 5: its transactions are not those",
    ),
    "a transaction left out": (
        "eth_getBlockByNumber",
        in_block(5, lambda b: b["transactions"].clear()),
        "block 5: its transactions are not those",
    ),
    "a failed transaction as done": (
        "eth_getTransactionReceipt",
        lambda receipt: receipt.update(status="0x0"),
        "its receipts are not those",
    ),
    "an event left out": (
        "eth_getTransactionReceipt",
        lambda receipt: receipt["logs"].clear(),
        "its receipts are not those",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_a_node_that_lies_is_found(run: Consortium, name: str) -> None:
    method, change, problem = LIES[name]
    first, last = run.deployment.block, run.deployment.block + 6
    assert check_node(Rpc(run.url), first, last).transactions > 0
    with pytest.raises(AuditError, match=problem):
        check_node(Rpc("a node", Lying(run.url, method, change)), first, last)


def test_an_engine_whose_hashes_are_of_another_kind_is_not_called_a_liar(run: Consortium) -> None:
    lie = in_block(run.deployment.block, lambda block: block.update(extraData="0x"))
    with pytest.raises(LedgerError, match="own tools"):
        check_node(Rpc("a node", Lying(run.url, "eth_getBlockByNumber", lie)), run.deployment.block, 5)


@pytest.mark.network
def test_every_kind_of_transaction_is_put_together_on_anvil(anvil: str) -> None:  # noqa: F811
    rpc = Rpc(anvil)
    sender, receiver = rpc.call("eth_accounts")[:2]
    kinds = (
        {"gasPrice": hex(10**10)},
        {"gasPrice": hex(10**10), "accessList": [{"address": receiver, "storageKeys": ["0x" + "0" * 64]}]},
        {"maxFeePerGas": hex(10**10), "maxPriorityFeePerGas": "0x1"},
    )
    for fees in kinds:
        rpc.call("eth_sendTransaction", {"from": sender, "to": receiver, "value": "0x1", **fees})
    rpc.call("eth_sendTransaction", {"from": sender, "data": "0x00", "gas": hex(100_000)})
    report = check_node(rpc, 0, 4)
    assert report.transactions == 4 and not report.blocks_with_foreign_transactions
