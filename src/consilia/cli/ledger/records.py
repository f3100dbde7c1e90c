"""The same as JSON, one object a line; the keys are documented in docs/traceability.md and stay as they are.

Digests, hashes and byte strings are 0x and hex; amounts in wei are decimal strings, for they do not fit into the
numbers of most JSON readers; times are Unix seconds; an account is an object of `address` and `name` (or null).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import TYPE_CHECKING

from consilia.cli.output import to_json
from consilia.ledger.contracts import Argument
from consilia.ledger.history import Block, Logged, Receipt, Transaction
from consilia.roles.audit.trace import find_deed
from consilia.roles.audit.view import LedgerView
from consilia.values import Json

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def print_record(record: str, values: Mapping[str, Json]) -> None:
    """Print one object on a line of its own."""
    sys.stdout.write(to_json({"record": record, **values}) + "\n")


def document(value: DataclassInstance) -> dict[str, Json]:
    """A dataclass as an object of its fields, in their order."""
    return {item.name: plain(getattr(value, item.name), item.name) for item in fields(value)}


def plain(value: object, name: str = "") -> Json:
    """A value of ours as JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return document(value)
    match value:
        case bytes():
            return f"0x{value.hex()}"
        case Enum():
            return value.name.lower()
        case bool() | str() | float() | None:
            return value
        case int():
            return str(value) if name.endswith("_wei") else value
        case Mapping():
            return {str(key): plain(item, str(key)) for key, item in value.items()}
        case Sequence():
            return [plain(item, name) for item in value]
        case _:
            raise TypeError(f"{name}: no JSON is defined for {type(value).__name__}")


def arguments_record(arguments: Sequence[Argument]) -> Json:
    """The values of a call or an event by the contract's names; lists of words (bitmaps) as decimal strings."""
    return {argument.name: _argument(argument) for argument in arguments}


def _argument(argument: Argument) -> Json:
    if argument.type.startswith("uint256["):
        return [str(word) for word in argument.value]
    return plain(argument.value, argument.name)


def event_record(view: LedgerView, event: Logged) -> dict[str, Json]:
    """An event, where it was recorded and by whom."""
    return {
        "contract": event.contract,
        "event": event.event,
        "task_id": event.task_id,
        "arguments": arguments_record(event.arguments),
        "log_index": event.log_index,
        **document(find_deed(view, event)),
    }


def transaction_record(
    view: LedgerView, transaction: Transaction, events: Sequence[Logged]
) -> dict[str, Json]:
    """A transaction and what it recorded."""
    return {
        "transaction": plain(transaction.hash),
        "block_number": transaction.block_number,
        "position": transaction.position,
        "by": plain(view.account(transaction.sender)),
        "to": transaction.to,
        "contract": transaction.contract or None,
        "function": transaction.function or None,
        "arguments": arguments_record(transaction.arguments),
        "value_wei": str(transaction.value_wei),
        "nonce": transaction.nonce,
        "events": [
            {"contract": e.contract, "event": e.event, "arguments": arguments_record(e.arguments)}
            for e in events
        ],
    }


def receipt_record(receipt: Receipt) -> dict[str, Json]:
    """What came of a transaction."""
    return {
        "succeeded": receipt.succeeded,
        "gas_used": receipt.gas_used,
        "fee_wei": str(receipt.gas_used * receipt.gas_price_wei),
        "created": receipt.created,
    }


def block_record(view: LedgerView, block: Block, events: Mapping[bytes, Sequence[Logged]]) -> dict[str, Json]:
    """A block, its miner, and its transactions with what they recorded; `events` by transaction."""
    return {
        "block_number": block.number,
        "hash": plain(block.hash),
        "parent_hash": plain(block.parent_hash),
        "timestamp": block.timestamp,
        "miner": plain(view.account(block.miner)),
        "difficulty": block.difficulty,
        "gas_used": block.gas_used,
        "size_bytes": block.size_bytes,
        "transactions": [transaction_record(view, t, events.get(t.hash, ())) for t in block.transactions],
    }
