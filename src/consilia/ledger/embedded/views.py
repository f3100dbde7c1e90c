"""The JSON shapes of Ethereum's execution API: blocks, transactions, receipts, logs."""

from __future__ import annotations

import rlp
from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from consilia.ledger.embedded.block import Header
from consilia.ledger.embedded.chainfile import StoredBlock
from consilia.ledger.embedded.evm import Log, decode_receipt
from consilia.ledger.embedded.transaction import Transaction, decode_transaction
from consilia.values import Json

JsonObject = dict[str, Json]


def quantity(value: int) -> str:
    """A whole number as the API writes it: 0x and no leading zeros."""
    return hex(value)


def data(value: bytes) -> str:
    """Bytes as the API writes them."""
    return "0x" + value.hex()


def address(value: bytes) -> str:
    """An account as an EIP-55 checksummed string."""
    return str(to_checksum_address(value))


def block_view(stored: StoredBlock, full: bool) -> JsonObject:
    """A block, with whole transactions or only their hashes."""
    block, header = stored.block, stored.block.header
    transactions: list[Json] = (
        [transaction_view(decode_transaction(raw), header, at) for at, raw in enumerate(block.transactions)]
        if full
        else [data(item) for item in block.transaction_hashes]
    )
    return {
        "number": quantity(header.number),
        "hash": data(header.hash),
        "parentHash": data(header.parent_hash),
        "sha3Uncles": data(header.uncles_hash),
        "miner": address(header.coinbase),
        "stateRoot": data(header.state_root),
        "transactionsRoot": data(header.transactions_root),
        "receiptsRoot": data(header.receipts_root),
        "logsBloom": data(header.bloom),
        "difficulty": quantity(header.difficulty),
        "totalDifficulty": quantity(stored.score),
        "gasLimit": quantity(header.gas_limit),
        "gasUsed": quantity(header.gas_used),
        "timestamp": quantity(header.timestamp),
        "extraData": data(header.extra_data),
        "mixHash": data(header.mix_hash),
        "nonce": data(header.nonce),
        "baseFeePerGas": quantity(header.base_fee_wei),
        "minerSignature": data(header.miner_signature),
        "size": quantity(len(block.encoded)),
        "uncles": [],
        "transactions": transactions,
    }


def transaction_view(transaction: Transaction, header: Header | None, position: int = 0) -> JsonObject:
    """A transaction, in the block with this header or waiting."""
    view: JsonObject = {
        "hash": data(transaction.hash),
        "blockHash": None if header is None else data(header.hash),
        "blockNumber": None if header is None else quantity(header.number),
        "transactionIndex": None if header is None else quantity(position),
        "from": address(transaction.sender),
        "to": address(transaction.to) if transaction.to else None,
        "nonce": quantity(transaction.nonce),
        "gas": quantity(transaction.gas),
        "value": quantity(transaction.value_wei),
        "input": data(transaction.data),
        "type": quantity(transaction.type_id),
        "chainId": quantity(transaction.chain_id),
        "v": quantity(transaction.v),
        "r": quantity(transaction.r),
        "s": quantity(transaction.s),
        "gasPrice": quantity(
            transaction.effective_gas_price_wei(header.base_fee_wei) if header else transaction.max_fee_wei
        ),
    }
    if transaction.type_id:
        view["accessList"] = [
            {"address": address(account), "storageKeys": [data(slot.to_bytes(32, "big")) for slot in slots]}
            for account, slots in transaction.access_list
        ]
    if transaction.type_id == 2:
        view["maxFeePerGas"] = quantity(transaction.max_fee_wei)
        view["maxPriorityFeePerGas"] = quantity(transaction.max_priority_fee_wei)
    return view


def receipt_views(stored: StoredBlock) -> list[JsonObject]:
    """The receipts of a block, each with its logs; log indices count through the block."""
    header = stored.block.header
    views: list[JsonObject] = []
    gas_before = log_index = 0
    for position, raw in enumerate(stored.block.transactions):
        transaction, receipt = decode_transaction(raw), decode_receipt(stored.receipts[position])
        place: JsonObject = {
            "blockHash": data(header.hash),
            "blockNumber": quantity(header.number),
            "transactionHash": data(transaction.hash),
            "transactionIndex": quantity(position),
        }
        logs = [_log_view(log, place, log_index + at) for at, log in enumerate(receipt.logs)]
        log_index += len(logs)
        views.append(
            {
                **place,
                "from": address(transaction.sender),
                "to": address(transaction.to) if transaction.to else None,
                "contractAddress": None if transaction.to else address(made_contract(transaction)),
                "cumulativeGasUsed": quantity(receipt.cumulative_gas_used),
                "gasUsed": quantity(receipt.cumulative_gas_used - gas_before),
                "effectiveGasPrice": quantity(transaction.effective_gas_price_wei(header.base_fee_wei)),
                "status": quantity(int(receipt.succeeded)),
                "type": quantity(transaction.type_id),
                "logsBloom": data(receipt.bloom),
                "logs": logs,
            }
        )
        gas_before = receipt.cumulative_gas_used
    return views


def made_contract(transaction: Transaction) -> bytes:
    """The address of the contract that a transaction without recipient makes."""
    return bytes(keccak(rlp.encode([transaction.sender, transaction.nonce]))[12:])


def _log_view(log: Log, place: JsonObject, log_index: int) -> JsonObject:
    return {
        **place,
        "address": address(log.address),
        "topics": [data(topic) for topic in log.topics],
        "data": data(log.data),
        "logIndex": quantity(log_index),
        "removed": False,
    }
