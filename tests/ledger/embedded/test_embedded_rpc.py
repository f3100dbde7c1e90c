"""web3.py 8 on the embedded chain, in process and over HTTP, and what the server does with garbage."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from web3 import Web3
from web3.exceptions import ContractLogicError, TransactionNotFound, Web3RPCError
from web3.middleware import SignAndSendRawMiddlewareBuilder

from consilia.ledger.embedded.local import LocalNode
from consilia.ledger.embedded.node_key import NodeKey
from consilia.ledger.embedded.rpc import MAX_WAIT_SECONDS
from tests.ledger.embedded.conftest import Contract
from tests.ledger.embedded.members import COINBASES, KEYS, OUTSIDER, genesis, payment, sign


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LocalNode]:
    with LocalNode(
        tmp_path / "chain.sqlite", genesis(min_difficulty=1), NodeKey(bytes(KEYS[0].key))
    ) as local:
        yield local


@pytest.fixture(params=["in process", "over HTTP"])
def web3(request: pytest.FixtureRequest, node: LocalNode) -> Web3:
    provider = node.provider() if request.param == "in process" else Web3.HTTPProvider(node.serve())
    connected = Web3(provider)
    for key in KEYS:
        connected.middleware_onion.inject(SignAndSendRawMiddlewareBuilder.build(key), layer=0)
    connected.eth.default_account = KEYS[0].address
    return connected


def deploy(web3: Web3, notes: Contract) -> Any:
    made = web3.eth.contract(abi=notes.abi, bytecode=notes.bytecode).constructor().transact()
    receipt = web3.eth.wait_for_transaction_receipt(made)
    assert receipt["status"] == 1
    return web3.eth.contract(address=receipt["contractAddress"], abi=notes.abi)


def test_web3_says_who_it_talks_to(web3: Web3) -> None:
    assert web3.is_connected()
    assert web3.client_version.startswith("consilia-embedded/")
    assert web3.eth.chain_id == 2407
    assert web3.net.version == "2407"
    assert web3.eth.block_number == 0


def test_there_is_always_a_latest_block(node: LocalNode, monkeypatch: pytest.MonkeyPatch) -> None:
    """A re-org to a chain of more work and fewer blocks leaves no block of the old head's number for a moment."""
    node.mine()
    latest = Web3(node.provider()).eth.get_block("latest")
    assert latest["number"] == 1
    monkeypatch.setattr(node.chain.file, "canonical_hash", lambda number: None)
    assert Web3(node.provider()).eth.get_block("latest") == latest


def test_a_contract_is_deployed_called_and_heard(web3: Web3, notes: Contract) -> None:
    contract = deploy(web3, notes)
    assert web3.eth.get_code(contract.address) != b""
    for slot in range(3):
        sent = contract.functions.note(slot, bytes([slot + 1]) * 32).transact()
        assert web3.eth.wait_for_transaction_receipt(sent)["status"] == 1
    sent = contract.functions.note(7, b"\7" * 32).transact({"from": KEYS[1].address})
    receipt = web3.eth.wait_for_transaction_receipt(sent)
    assert contract.functions.count().call() == 4
    assert contract.functions.count().call(block_identifier=receipt["blockNumber"] - 1) == 3
    assert contract.functions.notes(KEYS[1].address, 7).call() == b"\7" * 32

    (event,) = contract.events.Noted().process_receipt(receipt)
    assert event["args"]["who"] == KEYS[1].address
    every = contract.events.Noted.get_logs(from_block=0)
    assert [log["args"]["slot"] for log in every] == [0, 1, 2, 7]
    by_slot = contract.events.Noted.get_logs(from_block=0, argument_filters={"slot": 2})
    assert [log["args"]["digest"] for log in by_slot] == [b"\3" * 32]
    by_who = contract.events.Noted.get_logs(from_block=0, argument_filters={"who": [KEYS[1].address]})
    assert len(by_who) == 1
    assert web3.eth.get_logs({"fromBlock": 0, "address": KEYS[0].address}) == []
    assert web3.eth.get_logs({"fromBlock": 0, "toBlock": receipt["blockNumber"] - 1}) == [
        log for log in web3.eth.get_logs({"fromBlock": 0}) if log["blockNumber"] < receipt["blockNumber"]
    ]
    assert len(web3.eth.get_logs({"blockHash": receipt["blockHash"]})) == 1


def test_a_revert_tells_its_reason(web3: Web3, notes: Contract) -> None:
    contract = deploy(web3, notes)
    web3.eth.wait_for_transaction_receipt(contract.functions.note(1, b"\1" * 32).transact())
    with pytest.raises(ContractLogicError, match="notes: slot taken"):
        contract.functions.note(1, b"\1" * 32).call()
    with pytest.raises(ContractLogicError, match="notes: slot taken"):
        contract.functions.note(1, b"\1" * 32).estimate_gas()
    sent = contract.functions.note(1, b"\1" * 32).transact({"gas": 200_000})
    assert web3.eth.wait_for_transaction_receipt(sent)["status"] == 0


def test_the_gas_estimate_is_enough_and_not_wasteful(web3: Web3, notes: Contract) -> None:
    contract = deploy(web3, notes)
    call = contract.functions.note(1, b"\1" * 32)
    estimate = call.estimate_gas()
    receipt = web3.eth.wait_for_transaction_receipt(call.transact({"gas": estimate}))
    assert receipt["status"] == 1
    assert receipt["gasUsed"] <= estimate <= 1.3 * receipt["gasUsed"]


def test_blocks_and_transactions_hang_together(web3: Web3) -> None:
    sent = web3.eth.send_transaction({"to": KEYS[1].address, "value": 5, "gas": 21_000})
    receipt = web3.eth.wait_for_transaction_receipt(sent)
    block = web3.eth.get_block("latest", full_transactions=True)
    assert block["hash"] == receipt["blockHash"]
    assert block["miner"] == KEYS[0].address
    assert int.from_bytes(block["extraData"], "big") // 1000 == block["timestamp"]
    (transaction,) = block["transactions"]
    assert transaction["from"] == KEYS[0].address
    assert transaction == web3.eth.get_transaction(sent)
    assert web3.eth.get_block(block["hash"])["transactions"] == [sent]
    assert web3.eth.get_block(0)["number"] == 0
    assert web3.eth.get_block("earliest") == web3.eth.get_block(0)
    assert web3.eth.get_block(block["parentHash"])["number"] == block["number"] - 1
    paid_wei = receipt["gasUsed"] * receipt["effectiveGasPrice"]
    burnt_wei = receipt["gasUsed"] * block["baseFeePerGas"]
    spent_wei = 10**24 + 2 * 10**18 - web3.eth.get_balance(KEYS[0].address)
    assert spent_wei == 5 + burnt_wei  # the tip came back to the miner, who is the sender
    assert paid_wei > burnt_wei
    with pytest.raises(TransactionNotFound):
        web3.eth.get_transaction(b"\1" * 32)


def test_fees_nonces_and_storage(web3: Web3, node: LocalNode, notes: Contract) -> None:
    assert web3.eth.gas_price >= 7
    assert web3.eth.max_priority_fee == 1
    history = web3.eth.fee_history(4, "latest", [50.0])
    assert len(history["baseFeePerGas"]) == len(history["gasUsedRatio"]) + 1
    contract = deploy(web3, notes)
    web3.eth.wait_for_transaction_receipt(contract.functions.note(1, b"\1" * 32).transact())
    words = [int.from_bytes(web3.eth.get_storage_at(contract.address, slot), "big") for slot in range(4)]
    assert sorted(words) == [0, 0, 0, 1]  # the count; the mappings' own slots stay empty
    assert web3.eth.get_transaction_count(KEYS[0].address) == 2
    node.pool.add(payment(0, 3).raw)
    node.pool.add(payment(0, 2).raw)
    assert web3.eth.get_transaction_count(KEYS[0].address, "pending") == 4
    assert web3.eth.get_transaction_count(KEYS[0].address, "latest") == 2
    waiting = web3.eth.get_transaction(payment(0, 2).hash)
    assert waiting["blockNumber"] is None


def test_a_call_at_the_head_sees_the_present_time(web3: Web3, node: LocalNode, notes: Contract) -> None:
    """An idle chain's last block may be old; what has expired since must not look open."""
    contract = deploy(web3, notes)
    number = web3.eth.block_number
    node.advance(1000)
    then = contract.functions.now_seconds().call(block_identifier=number)
    assert then == web3.eth.get_block(number)["timestamp"]
    assert contract.functions.now_seconds().call() >= then + 1000


def test_refusals_reach_the_sender_as_words(web3: Web3) -> None:
    with pytest.raises(Web3RPCError, match="wrong chain id: expected 2407, got 5"):
        web3.eth.send_raw_transaction(sign(0, 0, chainId=5))
    poor = OUTSIDER.sign_transaction(
        {"chainId": 2407, "nonce": 0, "gas": 21_000, "gasPrice": 10, "to": KEYS[1].address, "value": 1}
    )
    with pytest.raises(Web3RPCError, match="insufficient funds"):
        web3.eth.send_raw_transaction(poor.raw_transaction)


def test_batches(web3: Web3) -> None:
    with web3.batch_requests() as batch:
        batch.add(web3.eth.get_block(0))
        batch.add(web3.eth.get_balance(KEYS[1].address))
        block, balance_wei = batch.execute()
    assert block["number"] == 0
    assert balance_wei == 10**24


@pytest.mark.parametrize(
    ("method", "parameters", "expected"),
    [
        ("eth_nothing", [], "does not exist"),
        ("eth_getBalance", ["0x12"], "40 hex digits"),
        ("eth_getBalance", [], "number of parameters"),
        ("eth_getBalance", [KEYS[0].address, "latest", 1, 2], "number of parameters"),
        ("eth_getBalance", [KEYS[0].address, "0x99"], "block 153 is not known"),
        ("eth_getBalance", [KEYS[0].address, "0x" + "f" * 64], "is not known"),
        ("eth_getBlockByNumber", [7], "block number in hex"),
        ("eth_getBlockByNumber", ["0x0", "yes"], "true or false"),
        ("eth_getBlockByHash", ["0xabcd", False], "32 bytes"),
        ("eth_getTransactionReceipt", [{}], "pairs of hex digits"),
        ("eth_getLogs", [[]], "JSON object"),
        ("eth_getLogs", [{"topics": ["0x01"]}], "32 bytes"),
        ("eth_getLogs", [{"topics": [None] * 5}], "at most four"),
        ("eth_getLogs", [{"adress": []}], "keys among"),
        ("eth_call", [{"to": KEYS[0].address, "gas": "0x1"}], "intrinsic gas too low"),
        ("eth_call", [{"to": KEYS[0].address, "value": "0x" + "f" * 64}], "execution failed"),
        ("eth_sendRawTransaction", ["0x"], "1 to 131072 bytes"),
        ("eth_sendRawTransaction", [None], "pairs of hex digits"),
        ("eth_getStorageAt", [KEYS[0].address, "0x" + "f" * 65], "hex digits"),
        ("consilia_waitForBlock", [0, MAX_WAIT_SECONDS + 1], "timeout"),
        ("consilia_waitForBlock", [0, float("nan")], "timeout"),
        ("consilia_waitForBlock", ["later", 1], "block number"),
    ],
)
def test_wrong_parameters_are_error_replies(
    node: LocalNode, method: str, parameters: list[Any], expected: str
) -> None:
    reply = node.provider().make_request(method, parameters)
    assert expected in reply["error"]["message"]
    assert node.provider().make_request("eth_blockNumber", [])["result"] == "0x0"


def post(url: str, body: bytes, **headers: str) -> tuple[int, Any]:
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=30)
    connection.request("POST", "/", body, {"Content-Type": "application/json"} | headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, answer


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"7",
        b"null",
        b"[" * 100_000,
        b'{"method": 5}',
        b'{"method": "eth_call", "params": 3}',
    ],
)
def test_garbage_is_an_error_reply_and_the_server_goes_on(node: LocalNode, body: bytes) -> None:
    url = node.serve()
    _, reply = post(url, body)
    assert "error" in reply
    status, reply = post(url, b'{"jsonrpc": "2.0", "id": 1, "method": "eth_blockNumber", "params": []}')
    assert (status, reply["result"]) == (200, "0x0")


def test_torn_requests_leave_the_server_whole(node: LocalNode) -> None:
    url = node.serve()
    host, port = url.removeprefix("http://").split(":")
    for torn in (
        b"",
        b"\0\1\2\n\n",
        b"POST / HTTP/1.1\r\nContent-Le",
        b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99\r\n\r\n{",
    ):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(torn)
    assert post(url, b'{"id": 1, "method": "eth_chainId"}')[1]["result"] == hex(2407)


def test_web_pages_and_other_hosts_cannot_reach_a_node(node: LocalNode) -> None:
    """A page in the hospital's browser may post to loopback; DNS rebinding makes its own name point there."""
    url, body = node.serve(), b'{"id": 1, "method": "eth_chainId"}'
    assert post(url, body)[0] == 200
    assert post(url, body, Origin="http://evil.example")[0] == 403
    assert post(url, body, Host="evil.example:8545")[0] == 403
    assert post(url, body, **{"Content-Type": "text/plain"})[0] == 403
    assert post(url, body, **{"Content-Length": "999999999999"})[0] == 413
    assert post(url, body, **{"Content-Length": "-1"})[0] == 413


def test_a_long_poll_ends_with_the_block_and_holds_up_nobody(node: LocalNode) -> None:
    url = node.serve()
    answers: list[Any] = []
    request = {"id": 1, "method": "consilia_waitForBlock", "params": [0, 50]}
    waiters = [
        threading.Thread(target=lambda: answers.append(post(url, json.dumps(request).encode())[1]["result"]))
        for _ in range(5)
    ]
    for waiter in waiters:
        waiter.start()
    assert post(url, b'{"id": 1, "method": "eth_blockNumber"}')[1]["result"] == "0x0"
    assert answers == []
    node.mine()
    for waiter in waiters:
        waiter.join(60)
    assert answers == [1] * 5


def test_too_large_batches_are_refused(node: LocalNode) -> None:
    one = {"id": 1, "method": "eth_chainId"}
    assert "batch" in post(node.serve(), json.dumps([one] * 201).encode())[1]["error"]["message"]
    assert len(post(node.serve(), json.dumps([one] * 200).encode())[1]) == 200


def test_the_miner_of_a_local_node_is_the_given_one(node: LocalNode) -> None:
    node.mine(3)
    assert node.chain.head.header.number == 3
    assert node.chain.head.header.coinbase == COINBASES[0]
