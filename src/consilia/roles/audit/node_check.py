"""Checks what a node tells, as far as it can be checked without executing: for any EVM engine (Yellow Paper 4.3).

Block hashes, links, the roots over transactions and receipts, and every signature are computed again; state is not,
that is the engine's own nodes' work. A node can still tell a shorter chain, or another one than the others have.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import rlp
from eth_utils.crypto import keccak

from consilia.errors import AuditError, LedgerError, RpcError, TransactionRefusedError
from consilia.ledger.embedded.evm import list_root
from consilia.ledger.embedded.transaction import decode_transaction
from consilia.ledger.rpc import METHOD_NOT_FOUND, Rpc, data_bytes, quantity

HEADER_FIELDS = {
    "parentHash": False,
    "sha3Uncles": False,
    "miner": False,
    "stateRoot": False,
    "transactionsRoot": False,
    "receiptsRoot": False,
    "logsBloom": False,
    "difficulty": True,
    "number": True,
    "gasLimit": True,
    "gasUsed": True,
    "timestamp": True,
    "extraData": False,
    "mixHash": False,
    "nonce": False,
    "baseFeePerGas": True,
    "withdrawalsRoot": False,
    "blobGasUsed": True,
    "excessBlobGas": True,
    "parentBeaconBlockRoot": False,
    "requestsHash": False,
    "minerSignature": False,
}
"""A header's fields in their order, and whether each is a number; those after `nonce` came with later forks, and the
last one is the embedded chain's own."""

KNOWN_TYPES = 3  # legacy, EIP-2930, EIP-1559: what Consilia sends


@dataclass(frozen=True)
class NodeReport:
    """What was computed again from a node's answers."""

    first: int
    height: int
    transactions: int
    blocks_with_foreign_transactions: int
    """Blocks with a transaction of a newer type, whose bytes are not put together here: only their hash was checked."""


def check_node(rpc: Rpc, first: int, last: int) -> NodeReport:
    """Compute again what the blocks from `first` to `last` claim.

    Raises:
        AuditError: a block's hash, link, root or signature is not what its parts give.
        LedgerError: the engine makes its block hashes in another way than Ethereum, so nothing can be said.
    """
    parent: str | None = None
    transactions = foreign = 0
    for number in range(first, last + 1):
        block = rpc.call("eth_getBlockByNumber", hex(number), True)
        if block is None:
            raise LedgerError(f"expected block {number} at {rpc.url}, but its chain is shorter: ask again")
        _check_header(block, number, parent)
        parent = block["hash"]
        listed = block["transactions"]
        if all(quantity(item.get("type")) < KNOWN_TYPES for item in listed):
            _check_contents(rpc, block)
            transactions += len(listed)
        else:
            foreign += 1
    return NodeReport(first, last, transactions, foreign)


def _check_header(block: dict[str, Any], number: int, parent: str | None) -> None:
    if quantity(block["number"]) != number:
        raise AuditError(f"block {number}: the node gave block {quantity(block['number'])} in its place")
    items = [
        _number(block[name]) if is_number else data_bytes(block[name])
        for name, is_number in HEADER_FIELDS.items()
        if block.get(name) is not None
    ]
    if keccak(rlp.encode(items)) != data_bytes(block["hash"]):
        if parent is None:
            raise LedgerError(
                f"block {number}: its hash is not that of an Ethereum header; some engines (QBFT) leave seals out of "
                "it. Check this chain with the engine's own tools"
            )
        raise AuditError(f"block {number}: its hash is not that of its header")
    if parent is not None and block["parentHash"] != parent:
        raise AuditError(f"block {number}: it does not name the block before it as its parent")


def _check_contents(rpc: Rpc, block: dict[str, Any]) -> None:
    number = quantity(block["number"])
    raws = [_raw_transaction(item) for item in block["transactions"]]
    if list_root(tuple(raws)) != data_bytes(block["transactionsRoot"]):
        raise AuditError(f"block {number}: its transactions are not those that its header names")
    for raw, item in zip(raws, block["transactions"], strict=True):
        try:
            sender = decode_transaction(raw).sender
        except TransactionRefusedError as error:
            raise AuditError(f"block {number}, transaction {item['hash']}: {error}") from error
        if sender != data_bytes(item["from"]):
            raise AuditError(f"block {number}: {item['from']} did not sign transaction {item['hash']}")
    receipts = _receipts(rpc, block)
    if list_root(tuple(_raw_receipt(item) for item in receipts)) != data_bytes(block["receiptsRoot"]):
        raise AuditError(f"block {number}: its receipts are not those that its header names")


def _receipts(rpc: Rpc, block: dict[str, Any]) -> list[dict[str, Any]]:
    if not block["transactions"]:
        return []
    try:
        found: list[dict[str, Any]] | None = rpc.call("eth_getBlockReceipts", block["number"])
    except RpcError as error:
        if error.code != METHOD_NOT_FOUND:
            raise
        found = None
    if found is not None:
        return found
    return [rpc.call("eth_getTransactionReceipt", item["hash"]) for item in block["transactions"]]


def _raw_transaction(item: dict[str, Any]) -> bytes:
    """A transaction's signed bytes (EIP-155, EIP-2930, EIP-1559), put together from what the node shows of it."""
    kind = quantity(item.get("type"))
    to = data_bytes(item.get("to"))
    signature = [_number(item[name]) for name in ("r", "s")]
    body = [to, _number(item["value"]), data_bytes(item["input"])]
    head = [_number(item["nonce"])]
    if kind == 0:
        return bytes(
            rlp.encode(
                [
                    *head,
                    _number(item["gasPrice"]),
                    _number(item["gas"]),
                    *body,
                    _number(item["v"]),
                    *signature,
                ]
            )
        )
    fees = ["gasPrice"] if kind == 1 else ["maxPriorityFeePerGas", "maxFeePerGas"]
    access = [
        [data_bytes(entry["address"]), [data_bytes(slot) for slot in entry["storageKeys"]]]
        for entry in item.get("accessList") or ()
    ]
    priced = [_number(item[name]) for name in (*fees, "gas")]
    parity = _number(item.get("yParity", item["v"]))
    return bytes([kind]) + bytes(
        rlp.encode([_number(item["chainId"]), *head, *priced, *body, access, parity, *signature])
    )


def _raw_receipt(item: dict[str, Any]) -> bytes:
    logs = [
        [data_bytes(log["address"]), [data_bytes(topic) for topic in log["topics"]], data_bytes(log["data"])]
        for log in item["logs"]
    ]
    fields = [
        _number(item["status"]),
        _number(item["cumulativeGasUsed"]),
        data_bytes(item["logsBloom"]),
        logs,
    ]
    kind = quantity(item.get("type"))
    return (bytes([kind]) if kind else b"") + bytes(rlp.encode(fields))


def _number(value: int | str) -> bytes:
    number = quantity(value)
    return number.to_bytes((number.bit_length() + 7) // 8, "big")
