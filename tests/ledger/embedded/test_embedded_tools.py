"""Other people's programs against a node: web3.py with eth-account's keys, and Foundry's cast."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.messages import encode_defunct
from web3 import Web3

from tests.ledger.embedded.conftest import Contract
from tests.ledger.embedded.members import BALANCE_WEI, CHAIN_ID, KEYS, genesis
from tests.ledger.embedded.network import NodeProcess, build_network

pytestmark = pytest.mark.network


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeProcess]:
    (alone,) = build_network(tmp_path_factory.mktemp("tools"), genesis(min_difficulty=64), 1)
    alone.start()
    yield alone
    alone.kill()


class Cast:
    """`cast` on a node."""

    def __init__(self, binary: Path, url: str) -> None:
        self._binary = binary
        self._url = url

    def __call__(self, *arguments: str) -> str:
        """Its standard output; a failure is an assertion with its words."""
        done = subprocess.run(
            [str(self._binary), *arguments],
            env={**os.environ, "ETH_RPC_URL": self._url},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def json(self, *arguments: str) -> Any:
        """Its output as JSON."""
        return json.loads(self(*arguments, "--json"))


@pytest.fixture
def cast(cast_binary: Path, node: NodeProcess) -> Cast:
    return Cast(cast_binary, node.url)


def secret(index: int) -> str:
    return "0x" + bytes(KEYS[index].key).hex()


def test_cast_reads_the_chain(cast: Cast, node: NodeProcess) -> None:
    assert cast("chain-id") == str(CHAIN_ID)
    assert int(cast("block-number")) >= 0
    assert cast("client").startswith("consilia-embedded/")
    assert int(cast("gas-price")) > 0
    assert int(cast("base-fee")) >= 7
    assert cast("balance", KEYS[3].address) == str(BALANCE_WEI)
    assert cast("nonce", KEYS[3].address) == "0"
    assert cast("code", KEYS[3].address) == "0x"
    block = cast.json("block", "0")
    assert block["hash"] == node.hash_of(0)


def test_cast_sends_and_follows_a_transaction(cast: Cast) -> None:
    before_wei = int(cast("balance", KEYS[2].address))
    receipt = cast.json("send", KEYS[2].address, "--value", "12345", "--private-key", secret(0))
    assert receipt["status"] == "0x1"
    assert int(cast("balance", KEYS[2].address)) >= before_wei + 12345
    transaction = cast.json("tx", receipt["transactionHash"])
    assert transaction["from"].lower() == KEYS[0].address.lower()
    assert cast.json("receipt", receipt["transactionHash"])["blockHash"] == receipt["blockHash"]
    legacy = cast.json(
        "send", KEYS[2].address, "--value", "1", "--legacy", "--gas-price", "100", "--private-key", secret(0)
    )
    assert legacy["status"] == "0x1"


def test_cast_deploys_calls_and_reads_events(cast: Cast, notes: Contract) -> None:
    made = cast.json("send", "--private-key", secret(1), "--create", notes.bytecode)
    contract = made["contractAddress"]
    digest = "0x" + "07" * 32
    done = cast.json("send", contract, "note(uint256,bytes32)", "3", digest, "--private-key", secret(1))
    assert done["status"] == "0x1"
    assert cast("call", contract, "count()(uint256)") == "1"
    assert cast("call", contract, "notes(address,uint256)(bytes32)", KEYS[1].address, "3") == digest
    assert int(cast("storage", contract, "1"), 16) in (0, 1)
    assert int(cast("estimate", contract, "note(uint256,bytes32)", "4", digest)) > 21_000
    logs = cast.json(
        "logs", "--address", contract, "--from-block", "0", "Noted(address indexed,uint256 indexed,bytes32)"
    )
    assert [log["transactionHash"] for log in logs] == [done["transactionHash"]]


def test_a_revert_reaches_casts_user_as_words(cast: Cast, notes: Contract) -> None:
    contract = cast.json("send", "--private-key", secret(2), "--create", notes.bytecode)["contractAddress"]
    arguments = (contract, "note(uint256,bytes32)", "3", "0x" + "07" * 32)
    cast("send", *arguments, "--private-key", secret(2))
    with pytest.raises(AssertionError, match="notes: slot taken"):
        cast("send", *arguments, "--private-key", secret(2))


def test_web3_and_eth_account_on_a_running_node(node: NodeProcess, notes: Contract) -> None:
    web3 = Web3(Web3.HTTPProvider(node.url))
    account = Account.from_key(KEYS[3].key)
    fields = {
        "from": account.address,
        "nonce": web3.eth.get_transaction_count(account.address),
        "chainId": web3.eth.chain_id,
    }
    contract = web3.eth.contract(abi=notes.abi, bytecode=notes.bytecode)
    deployment = account.sign_transaction(contract.constructor().build_transaction(fields))
    sent = web3.eth.send_raw_transaction(deployment.raw_transaction)
    receipt = web3.eth.wait_for_transaction_receipt(sent, timeout=120)
    deployed = web3.eth.contract(address=receipt["contractAddress"], abi=notes.abi)
    call = deployed.functions.note(1, b"\1" * 32).build_transaction(fields | {"nonce": fields["nonce"] + 1})
    noted = web3.eth.wait_for_transaction_receipt(
        web3.eth.send_raw_transaction(account.sign_transaction(call).raw_transaction), timeout=120
    )
    assert noted["status"] == 1
    (event,) = deployed.events.Noted().process_receipt(noted)
    assert event["args"]["who"] == account.address
    message = encode_defunct(text="an account that the chain knows")
    assert Account.recover_message(message, signature=account.sign_message(message).signature) == (
        account.address
    )
