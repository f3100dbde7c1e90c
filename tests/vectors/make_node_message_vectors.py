"""Messages between nodes a second time, with nothing of consilia imported: writes node-message.json.

It follows docs/formats/node-message.md line by line.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from eth_keys import keys

SENDER = keys.PrivateKey(b"\1" * 32)
RECIPIENT = keys.PrivateKey(b"\2" * 32)
NETWORK = bytes(range(32))
KINDS = {"HELLO": 1, "HEAD": 2, "HEADERS": 3, "BLOCKS": 4, "NEW_BLOCKS": 5, "NEW_TRANSACTIONS": 6}


def write_list(items: list[bytes]) -> bytes:
    parts = [len(items).to_bytes(2, "big")]
    for item in items:
        parts += [len(item).to_bytes(4, "big"), item]
    return b"".join(parts)


def write_message(fields: dict[str, Any], magic: bytes = b"CSM1") -> bytes:
    body = magic + bytes([KINDS[fields["kind"]]])
    body += bytes.fromhex(fields["sender"]) + bytes.fromhex(fields["recipient"])
    body += bytes.fromhex(fields["session"]) + fields["stamp_us"].to_bytes(8, "big")
    body += write_list([url.encode() for url in fields["told"]])
    body += write_list([bytes.fromhex(item) for item in fields["items"]])
    digest = hashlib.sha256(b"consilia/node-message/v1" + NETWORK + body).digest()
    return body + SENDER.sign_msg_hash(digest).to_bytes()


def main() -> None:
    head = {
        "kind": "HEAD",
        "sender": SENDER.public_key.to_canonical_address().hex(),
        "recipient": RECIPIENT.public_key.to_canonical_address().hex(),
        "session": bytes(range(16)).hex(),
        "stamp_us": 1_800_000_000_000_001,
        "told": [],
        "items": [],
    }
    head["signer"] = head["sender"]
    news = head | {
        "kind": "NEW_TRANSACTIONS",
        "told": ["http://127.0.0.1:8545", "http://127.0.0.1:8546"],
        "items": ["c0ffee", ""],
    }
    stranger = head | {"sender": head["recipient"]}
    good = write_message(head)
    cases: list[dict[str, Any]] = [
        {"name": "head", "expect": "success", "bytes": good.hex(), **head},
        {"name": "transactions", "expect": "success", "bytes": write_message(news).hex(), **news},
        {"name": "another version", "expect": "version 1", "bytes": write_message(head, b"CSM2").hex()},
        {"name": "for another", "expect": "success", "bytes": write_message(stranger).hex(), **stranger},
        {"name": "cut short", "expect": "ends|head", "bytes": (good[:40] + good[-65:]).hex()},
        {"name": "trailing byte", "expect": "more bytes", "bytes": (good[:-65] + b"\0" + good[-65:]).hex()},
        {"name": "only a signature", "expect": "expected 66 to", "bytes": good[-65:].hex()},
    ]
    for case in cases:
        case["network"] = NETWORK.hex()
    Path(__file__).with_name("node-message.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
