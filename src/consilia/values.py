"""The small values that every layer shares: digests, addresses, contexts, and canonical bytes for them."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import accumulate
from typing import Any, TypeAlias

Address: TypeAlias = str
"""A ledger account as an EIP-55 checksummed hex string."""

Json: TypeAlias = "str | int | float | bool | Sequence[Json] | Mapping[str, Json] | None"


class Digest(bytes):
    """32 bytes that name something: a SHA-256, a keccak-256 or an envelope's root."""

    def __new__(cls, value: bytes) -> Digest:
        if len(value) != 32:
            raise ValueError(f"a digest has 32 bytes, this has {len(value)}")
        return super().__new__(cls, value)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The SHA-256 of `data`."""
        return cls(hashlib.sha256(data).digest())

    @classmethod
    def from_hex(cls, text: str) -> Digest:
        """The digest written as 64 hex digits, with or without 0x."""
        return cls(bytes.fromhex(text.removeprefix("0x")))

    def __str__(self) -> str:
        return self.hex()

    def __repr__(self) -> str:
        return f"Digest({self.hex()[:12]}…)"


class Role(IntEnum):
    """What a member of the consortium may do; the numbers are those of contracts/registry.vy."""

    HOSPITAL = 1
    SERVER = 2
    AUDITOR = 3


class ArtifactKind(IntEnum):
    """What an artifact holds; bound into its context, so that one kind never passes for another."""

    KEY_STRING = 1
    MODEL = 2
    UPDATE = 3
    ROUND_REPORT = 4
    DATASET = 5
    QUERY = 6
    REPORTS = 7


@dataclass(frozen=True)
class ArtifactContext:
    """Where an artifact belongs. Sealed into its envelope: the same bytes are refused anywhere else."""

    chain_id: int
    contract: Address
    task_id: int
    round_index: int
    owner: Address
    kind: ArtifactKind
    schema_version: int = 1

    def encode(self) -> bytes:
        """The canonical bytes: a label, then fixed-width big-endian fields (docs/formats/envelope.md)."""
        return b"".join(
            (
                b"consilia/context/v1",
                self.chain_id.to_bytes(8, "big"),
                _address_bytes(self.contract),
                self.task_id.to_bytes(8, "big"),
                self.round_index.to_bytes(4, "big"),
                _address_bytes(self.owner),
                int(self.kind).to_bytes(2, "big"),
                self.schema_version.to_bytes(2, "big"),
            )
        )


def _address_bytes(address: Address) -> bytes:
    # Fields have no lengths: with an address of another size, two contexts could have the same bytes.
    data = bytes.fromhex(address.removeprefix("0x"))
    if len(data) != 20:
        raise ValueError(f"an address has 20 bytes, {address} has {len(data)}")
    return data


def canonical_json(value: Json) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN; equal values, equal bytes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


MAX_JSON_DEPTH = 32
_JSON_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def parse_json(data: bytes) -> Any:
    """Read JSON that a stranger wrote.

    Raises:
        ValueError: it is not JSON in UTF-8, or something that `canonical_json` could not write again: NaN, half a
            surrogate pair, a key given twice; or it is nested deeper than anything of ours.
    """
    # Python would follow the nesting until its stack ends, and take the process along
    brackets = _JSON_STRING.sub(b"", data).translate(None, _NO_BRACKETS)
    if max(accumulate(1 if byte in b"[{" else -1 for byte in brackets), default=0) > MAX_JSON_DEPTH:
        raise ValueError(f"nested deeper than {MAX_JSON_DEPTH} levels")
    value = json.loads(data.decode(), parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    json.dumps(
        value, ensure_ascii=False, allow_nan=False
    ).encode()  # fails on what has no UTF-8, and on 1e999
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key stands there twice")
    return value
