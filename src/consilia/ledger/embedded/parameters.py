"""Strict readers of JSON-RPC parameters: an error reply says what was expected."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from eth_utils.address import is_hex_address

from consilia.errors import RpcError

INVALID_PARAMETERS = -32602
MAX_JSON_BRACKETS = 4096
TAGS = ("latest", "pending", "safe", "finalized", "earliest")
_QUANTITY = re.compile(r"0x(0|[1-9a-fA-F][0-9a-fA-F]{0,63})")
_DATA = re.compile(r"0x([0-9a-fA-F]{2})*")


@dataclass(frozen=True)
class LogFilter:
    """Which events eth_getLogs wants; an empty set in `topics` is a place where anything matches."""

    block_hash: bytes | None
    first_block: str
    last_block: str
    addresses: frozenset[bytes]
    topics: tuple[frozenset[bytes], ...]


def parse_json(body: bytes) -> object:
    """Parse a message from outside.

    py-evm raises Python's recursion limit so far that deeply nested JSON would overflow the C stack and kill
    the process; nesting is at most the number of opening brackets.

    Raises:
        ValueError: it is not JSON, or has more brackets than any message of ours.
    """
    if body.count(b"[") + body.count(b"{") > MAX_JSON_BRACKETS:
        raise ValueError(f"expected at most {MAX_JSON_BRACKETS} brackets")
    parsed: object = json.loads(body)
    return parsed


def invalid(expected: str, came: object) -> RpcError:
    """The error reply for a parameter that is not what was expected."""
    return RpcError(INVALID_PARAMETERS, f"expected {expected}, got {str(came)[:100]!r}")


def read_quantity(value: object, what: str) -> int:
    """A whole number below 2^256."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise invalid(f"{what} as 0x and hex digits without leading zeros", value)
    return int(value, 16)


def read_data(value: object, what: str, length: int | None = None) -> bytes:
    """A byte string, of exactly `length` bytes where given."""
    if not isinstance(value, str) or not _DATA.fullmatch(value):
        raise invalid(f"{what} as 0x and pairs of hex digits", value)
    decoded = bytes.fromhex(value[2:])
    if length is not None and len(decoded) != length:
        raise invalid(f"{what} of {length} bytes", value)
    return decoded


def read_address(value: object, what: str = "an address") -> bytes:
    """An account, 20 bytes."""
    if not isinstance(value, str) or not is_hex_address(value) or not value.startswith("0x"):
        raise invalid(f"{what} as 0x and 40 hex digits", value)
    return bytes.fromhex(value[2:])


def read_tag(value: object) -> str:
    """A block tag or number, as it came."""
    if value is None:
        return "latest"
    if not isinstance(value, str) or (value not in TAGS and not _QUANTITY.fullmatch(value)):
        raise invalid(f"a block number in hex or one of {', '.join(TAGS)}", value)
    return value


def read_flag(value: object, what: str) -> bool:
    """A boolean."""
    if not isinstance(value, bool):
        raise invalid(f"{what} as true or false", value)
    return value


def read_object(value: object, what: str, keys: frozenset[str]) -> dict[str, object]:
    """A JSON object with no other keys than these."""
    if not isinstance(value, dict):
        raise invalid(f"{what} as a JSON object", value)
    unknown = set(value) - keys
    if unknown:
        raise invalid(f"{what} with keys among {', '.join(sorted(keys))}", ", ".join(sorted(unknown)))
    return value


def read_log_filter(value: object) -> LogFilter:
    """The filter object of eth_getLogs."""
    keys = frozenset(("fromBlock", "toBlock", "address", "topics", "blockHash"))
    query = read_object(value, "a log filter", keys)
    addresses = query.get("address")
    if not isinstance(addresses, list):
        addresses = [] if addresses is None else [addresses]
    topics = query.get("topics")
    if topics is not None and (not isinstance(topics, list) or len(topics) > 4):
        raise invalid("topics as a list of at most four", topics)
    block_hash = query.get("blockHash")
    return LogFilter(
        block_hash=None if block_hash is None else read_data(block_hash, "blockHash", 32),
        first_block=read_tag(query.get("fromBlock")),
        last_block=read_tag(query.get("toBlock")),
        addresses=frozenset(read_address(item) for item in addresses),
        topics=tuple(_read_topic(item) for item in topics or ()),
    )


def _read_topic(value: object) -> frozenset[bytes]:
    if value is None:
        return frozenset()
    alternatives = value if isinstance(value, list) else [value]
    if None in alternatives:
        return frozenset()
    return frozenset(read_data(item, "a topic", 32) for item in alternatives)
