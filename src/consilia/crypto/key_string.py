"""The key string: how a server hands every enrolled hospital its task key, readable by it alone.

Format: docs/formats/envelope.md, "Key string". The bytes travel inside an ordinary envelope.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from consilia.crypto import hpke
from consilia.crypto.custody import Opener
from consilia.crypto.keys import Identity
from consilia.errors import EnvelopeError

MAGIC = b"CSLAKEY1"
_ENTRIES_AT = len(MAGIC) + 2
_KEY_ID_BYTES = 32
_ENTRY_BYTES = _KEY_ID_BYTES + 32 + 32 + 16


def seal_key_string(task_keys: Mapping[bytes, Identity], info: bytes) -> bytes:
    """Seal each hospital's task key to its long-term key.

    Args:
        task_keys: by the hospital's long-term recipient key (32 bytes).
        info: what the keys are for: the encoded context of the artifact.

    Raises:
        EnvelopeError: no hospital, or a recipient key that is malformed or of low order.
    """
    hpke.check_recipients(list(task_keys))
    entries = sorted(
        _key_id(recipient) + hpke.seal(recipient, task_key.secret_bytes, _entry_info(info))
        for recipient, task_key in task_keys.items()
    )
    return b"".join((MAGIC, len(entries).to_bytes(2, "big"), *entries))


def open_key_string(data: bytes, identity: Opener, info: bytes) -> Identity:
    """Open one's own task key. The caller compares its public half with the one on the ledger.

    Raises:
        EnvelopeError: malformed, no entry for `identity`, or an entry that does not open here.
    """
    entries = _entries(data)
    own = next((key for key in identity.recipients if _key_id(key) in entries), None)
    if own is None:
        raise EnvelopeError(f"a key string has no entry for the recipient {identity.recipient.hex()}")
    secret = hpke.open_sealed(entries[_key_id(own)], identity, own, _entry_info(info))
    return Identity.from_bytes(secret)


def _entries(data: bytes) -> dict[bytes, bytes]:
    """Sealed task keys by key id; canonical or refused."""
    if len(data) < _ENTRIES_AT or data[: len(MAGIC)] != MAGIC:
        raise EnvelopeError(
            f"this is no key string: it should begin with {MAGIC!r}, it begins with {data[:8]!r}"
        )
    count = int.from_bytes(data[len(MAGIC) : _ENTRIES_AT], "big")
    if count == 0 or len(data) != _ENTRIES_AT + count * _ENTRY_BYTES:
        raise EnvelopeError(
            f"a key string of {len(data)} bytes cannot hold the {count} entries that it announces"
        )
    parts = [data[at : at + _ENTRY_BYTES] for at in range(_ENTRIES_AT, len(data), _ENTRY_BYTES)]
    entries = {part[:_KEY_ID_BYTES]: part[_KEY_ID_BYTES:] for part in parts}
    if list(entries) != sorted(entries) or len(entries) != count:
        raise EnvelopeError("a key string's entries are not in strictly ascending order")
    return entries


def _key_id(recipient: bytes) -> bytes:
    return hashlib.sha256(recipient).digest()


def _entry_info(info: bytes) -> bytes:
    return b"consilia/key-string/v1" + hashlib.sha256(info).digest()
