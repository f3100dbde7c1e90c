"""Headers and blocks as values, and their canonical bytes (RLP, Ethereum Yellow Paper B)."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import rlp
from eth_hash.auto import keccak

from consilia.errors import ChainError

MAX_BLOCK_BYTES = 1 << 20
MAX_TRANSACTIONS_PER_BLOCK = 1000
EMPTY_UNCLES_HASH = keccak(b"\xc0")
EMPTY_TRIE_ROOT = keccak(b"\x80")
BLOOM_BYTES = 256
MINER_SIGNATURE_BYTES = 130  # the account's delegation to its node's key, and that key's signature

# London's order, and the miner's signature. mix_hash and nonce are the seal and stay out of the mining hash.
_FIELD_BYTES: dict[str, int | None] = {  # the exact length of byte strings; None for whole numbers
    "parent_hash": 32,
    "uncles_hash": 32,
    "coinbase": 20,
    "state_root": 32,
    "transactions_root": 32,
    "receipts_root": 32,
    "bloom": BLOOM_BYTES,
    "difficulty": None,
    "number": None,
    "gas_limit": None,
    "gas_used": None,
    "timestamp": None,
    "extra_data": 8,
    "mix_hash": 32,
    "nonce": 8,
    "base_fee_wei": None,
    "miner_signature": MINER_SIGNATURE_BYTES,
}
_SEAL_FIELDS = ("mix_hash", "nonce")


@dataclass(frozen=True)
class Header:
    """A London header and its miner's signature (block_signature.py).

    `extra_data` is the block time in Unix milliseconds, 8 bytes big-endian.
    """

    parent_hash: bytes
    uncles_hash: bytes
    coinbase: bytes
    state_root: bytes
    transactions_root: bytes
    receipts_root: bytes
    bloom: bytes
    difficulty: int
    number: int
    gas_limit: int
    gas_used: int
    timestamp: int
    extra_data: bytes
    mix_hash: bytes
    nonce: bytes
    base_fee_wei: int
    miner_signature: bytes

    def items(self) -> list[bytes]:
        """The fields as byte strings, in their order."""
        values = (getattr(self, name) for name in _FIELD_BYTES)
        return [_number_bytes(value) if isinstance(value, int) else value for value in values]

    @cached_property
    def encoded(self) -> bytes:
        """The canonical bytes."""
        return bytes(rlp.encode(self.items()))

    @cached_property
    def hash(self) -> bytes:
        """The block's name: keccak-256 of the canonical bytes."""
        return keccak(self.encoded)

    @cached_property
    def mining_hash(self) -> bytes:
        """The hash that the seal works over: every field but the seal itself."""
        return self._hash_without(_SEAL_FIELDS)

    @cached_property
    def signing_hash(self) -> bytes:
        """The hash that the miner signs: every field but the seal and the signature."""
        return self._hash_without((*_SEAL_FIELDS, "miner_signature"))

    def _hash_without(self, names: tuple[str, ...]) -> bytes:
        items = zip(_FIELD_BYTES, self.items(), strict=True)
        return keccak(rlp.encode([item for name, item in items if name not in names]))

    @property
    def time_ms(self) -> int:
        """The block time in Unix milliseconds."""
        return int.from_bytes(self.extra_data, "big")

    @property
    def is_empty(self) -> bool:
        """Whether the block carries no transaction."""
        return self.transactions_root == EMPTY_TRIE_ROOT

    @classmethod
    def decode(cls, data: bytes) -> Header:
        """Parse canonical bytes.

        Raises:
            ChainError: the bytes are not the canonical encoding of a header.
        """
        return cls.from_items(_decode(data, "header"))

    @classmethod
    def from_items(cls, items: object) -> Header:
        """Build a header from decoded byte strings.

        Raises:
            ChainError: a field is missing, too long, too short, or not canonical.
        """
        if not isinstance(items, list) or len(items) != len(_FIELD_BYTES):
            raise ChainError(f"expected a header of {len(_FIELD_BYTES)} fields")
        values: list[Any] = [_field(name, item) for name, item in zip(_FIELD_BYTES, items, strict=True)]
        return cls(*values)


assert tuple(_FIELD_BYTES) == tuple(field.name for field in fields(Header))


@dataclass(frozen=True)
class Block:
    """A header and its transactions, each as the bytes that its signer sent."""

    header: Header
    transactions: tuple[bytes, ...]

    @cached_property
    def encoded(self) -> bytes:
        """The bytes that travel between nodes."""
        return bytes(rlp.encode([self.header.items(), list(self.transactions)]))

    @cached_property
    def transaction_hashes(self) -> tuple[bytes, ...]:
        """The hash of each transaction, in order."""
        return tuple(keccak(raw) for raw in self.transactions)

    @classmethod
    def decode(cls, data: bytes) -> Block:
        """Parse a block from a peer.

        Raises:
            ChainError: the bytes are too many, or not the canonical encoding of a block.
        """
        if len(data) > MAX_BLOCK_BYTES:
            raise ChainError(f"expected a block of at most {MAX_BLOCK_BYTES} bytes, got {len(data)}")
        parts = _decode(data, "block")
        if not isinstance(parts, list) or len(parts) != 2:
            raise ChainError("expected a block of a header and its transactions")
        return cls(Header.from_items(parts[0]), _byte_strings(parts[1]))


def encode_list(items: tuple[bytes, ...]) -> bytes:
    """The canonical bytes of a list of byte strings (a block's transactions or receipts)."""
    return bytes(rlp.encode(list(items)))


def decode_list(data: bytes) -> tuple[bytes, ...]:
    """The byte strings of a list.

    Raises:
        ChainError: the bytes are not the canonical encoding of a list of byte strings.
    """
    return _byte_strings(_decode(data, "list"))


def _byte_strings(items: object) -> tuple[bytes, ...]:
    if not isinstance(items, list) or not all(isinstance(item, bytes) for item in items):
        raise ChainError("expected a list of byte strings")
    if len(items) > MAX_TRANSACTIONS_PER_BLOCK:
        raise ChainError(f"expected at most {MAX_TRANSACTIONS_PER_BLOCK} items, got {len(items)}")
    return tuple(items)


def _decode(data: bytes, what: str) -> object:
    try:
        decoded: object = rlp.decode(data, strict=True)
    except (rlp.exceptions.RLPException, RecursionError) as error:  # deep nesting is an attack on the stack
        raise ChainError(f"expected the canonical bytes of a {what}: {error}") from error
    return decoded


def _field(name: str, item: object) -> bytes | int:
    length = _FIELD_BYTES[name]
    if not isinstance(item, bytes):
        raise ChainError(f"header field {name}: expected bytes, got a list")
    if length is not None:
        if len(item) != length:
            raise ChainError(f"header field {name}: expected {length} bytes, got {len(item)}")
        return item
    if len(item) > 32 or item[:1] == b"\0":
        raise ChainError(f"header field {name}: expected a whole number below 2^256 without leading zeros")
    return int.from_bytes(item, "big")


def _number_bytes(value: int) -> bytes:
    return value.to_bytes((value.bit_length() + 7) // 8, "big")
