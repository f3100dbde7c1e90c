"""What nodes say to one another, byte by byte (docs/formats/node-message.md): a request and its reply.

Every message is signed in the name of a member's account and bound to the chain's genesis, to its recipient, to that
recipient's current run, and to a stamp that is taken once: what somebody recorded is worth nothing anywhere
else, or again. All lengths are written with a fixed width, so each message has one encoding.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Any

from consilia.errors import MessageError
from consilia.ledger.embedded.block import MAX_BLOCK_BYTES
from consilia.ledger.embedded.node_key import ADDRESS_BYTES, SIGNATURE_BYTES, NodeKey, signer

MESSAGE_DOMAIN = b"consilia/node-message/v1"
REPLY_DOMAIN = b"consilia/node-reply/v1"
SESSION_BYTES = 16
NOBODY = bytes(ADDRESS_BYTES)  # the recipient of a greeting, whose name is not known yet
NO_SESSION = bytes(SESSION_BYTES)
MAX_MESSAGE_BYTES = MAX_BLOCK_BYTES + (1 << 16)
MAX_REPLY_BYTES = 2 * MAX_BLOCK_BYTES + (1 << 16)
MAX_ITEMS = 1024
MAX_TOLD = 128
MAX_URL_BYTES = 100
_MESSAGE_MAGIC, _REPLY_MAGIC = b"CSM1", b"CSR1"
_HEAD = struct.Struct(f">4sB{ADDRESS_BYTES}s{ADDRESS_BYTES}s{SESSION_BYTES}sQ")
_REPLY_HEAD = struct.Struct(">4sB")
_COUNT = struct.Struct(">H")
_LENGTH = struct.Struct(">I")


class Kind(IntEnum):
    """What a message asks for or tells."""

    HELLO = 1
    HEAD = 2
    HEADERS = 3
    BLOCKS = 4
    NEW_BLOCKS = 5
    NEW_TRANSACTIONS = 6


class Verdict(IntEnum):
    """How a request was received."""

    ANSWER = 0
    GREET_AGAIN = 1
    TOO_FAST = 2
    CUT_OFF = 3
    NOT_ADMITTED = 4
    REFUSED = 5
    LATER = 6


@dataclass(frozen=True)
class Message:
    """A request. `stamp_us` is the sender's clock in Unix microseconds, and rises with every message."""

    kind: Kind
    sender: bytes
    recipient: bytes
    session: bytes
    stamp_us: int
    told: tuple[str, ...]
    items: tuple[bytes, ...]
    signer: bytes = NOBODY
    """Whose key signed it, found by `open`: the sender itself, or a key that it has delegated."""

    def seal(self, network: bytes, key: NodeKey) -> bytes:
        """The signed bytes; `network` is the digest of the genesis, 32 bytes."""
        head = _HEAD.pack(_MESSAGE_MAGIC, self.kind, self.sender, self.recipient, self.session, self.stamp_us)
        told = _encode_items(tuple(url.encode() for url in self.told))
        body = b"".join((head, told, _encode_items(self.items)))
        return body + key.sign(_digest(MESSAGE_DOMAIN, network, body))

    @classmethod
    def open(cls, network: bytes, data: bytes) -> Message:
        """Parse a message and find out who signed it; whether that one may speak for the sender is not known here.

        Raises:
            MessageError: it is too long or malformed. A message for another chain names a stranger as signer.
        """
        body, signature = _split(data, MAX_MESSAGE_BYTES)
        magic, kind, sender, recipient, session, stamp_us = _unpack(_HEAD, body)
        if magic != _MESSAGE_MAGIC or kind not in set(Kind):
            raise MessageError(f"expected a message of version 1, got {magic!r} of kind {kind}")
        told, at = _decode_items(body, _HEAD.size, MAX_TOLD)
        items, at = _decode_items(body, at, MAX_ITEMS)
        _expect_end(body, at)
        signed_by = signer(_digest(MESSAGE_DOMAIN, network, body), signature)
        return cls(Kind(kind), sender, recipient, session, stamp_us, _read_urls(told), items, signed_by)


@dataclass(frozen=True)
class Reply:
    """An answer, or the reason why there is none; `signer` is whose key signed it."""

    verdict: Verdict
    signer: bytes
    items: tuple[bytes, ...]

    @classmethod
    def open(cls, network: bytes, request: bytes, data: bytes) -> Reply:
        """Parse the reply to the signed bytes `request`, and find out who signed it.

        Raises:
            MessageError: it is too long or malformed. A reply to another request names a stranger as signer.
        """
        body, signature = _split(data, MAX_REPLY_BYTES)
        magic, verdict = _unpack(_REPLY_HEAD, body)
        if magic != _REPLY_MAGIC or verdict not in set(Verdict):
            raise MessageError(f"expected a reply of version 1, got {magic!r} with verdict {verdict}")
        items, at = _decode_items(body, _REPLY_HEAD.size, MAX_ITEMS)
        _expect_end(body, at)
        digest = _digest(REPLY_DOMAIN, network, sha256(request).digest(), body)
        return cls(Verdict(verdict), signer(digest, signature), items)

    @property
    def text(self) -> str:
        """The reason of a refusal, for the log."""
        return self.items[0][:300].decode("utf-8", "replace") if self.items else ""


def seal_reply(
    network: bytes, key: NodeKey, request: bytes, verdict: Verdict, items: tuple[bytes, ...]
) -> bytes:
    """The signed bytes of a reply to the signed bytes `request`."""
    body = _REPLY_HEAD.pack(_REPLY_MAGIC, verdict) + _encode_items(items)
    return body + key.sign(_digest(REPLY_DOMAIN, network, sha256(request).digest(), body))


def claimed_sender(data: bytes) -> bytes:
    """Who a message says that it comes from, before anything is checked; empty if it is too short."""
    return data[5 : 5 + ADDRESS_BYTES] if len(data) >= _HEAD.size else b""


def _digest(*parts: bytes) -> bytes:
    return sha256(b"".join(parts)).digest()


def _split(data: bytes, max_bytes: int) -> tuple[bytes, bytes]:
    if not SIGNATURE_BYTES < len(data) <= max_bytes:
        raise MessageError(f"expected {SIGNATURE_BYTES + 1} to {max_bytes} bytes, got {len(data)}")
    return data[:-SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]


def _unpack(head: struct.Struct, body: bytes) -> tuple[Any, ...]:
    if len(body) < head.size:
        raise MessageError(f"expected {head.size} bytes of head, got {len(body)}")
    return head.unpack_from(body)


def _encode_items(items: tuple[bytes, ...]) -> bytes:
    parts = [_COUNT.pack(len(items))]
    for item in items:
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)


def _decode_items(body: bytes, at: int, max_count: int) -> tuple[tuple[bytes, ...], int]:
    """The list that starts at `at`, and where it ends."""
    if len(body) < at + _COUNT.size:
        raise MessageError("the message ends where a list was expected")
    (count,) = _COUNT.unpack_from(body, at)
    if count > max_count:
        raise MessageError(f"expected a list of at most {max_count} items, got {count}")
    at += _COUNT.size
    items: list[bytes] = []
    for _ in range(count):
        if len(body) < at + _LENGTH.size:
            raise MessageError("the message ends within a list")
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        if len(body) < at + length:
            raise MessageError(f"the message ends within an item of {length} bytes")
        items.append(body[at : at + length])
        at += length
    return tuple(items), at


def _expect_end(body: bytes, at: int) -> None:
    if at != len(body):
        raise MessageError(f"expected the end of the message, got {len(body) - at} more bytes")


def _read_urls(told: tuple[bytes, ...]) -> tuple[str, ...]:
    if any(len(url) > MAX_URL_BYTES or not url.isascii() for url in told):
        raise MessageError(f"expected addresses of nodes of at most {MAX_URL_BYTES} ASCII bytes")
    return tuple(url.decode("ascii") for url in told)
