"""How a secret would look if it leaked."""

from __future__ import annotations

import base64
from collections.abc import Iterator


def spellings(secret: bytes) -> Iterator[str]:
    """The ways in which a secret could stand in a text."""
    yield secret.hex()
    yield secret.hex().upper()
    yield str(int.from_bytes(secret, "big"))
    yield base64.b64encode(secret).decode().rstrip("=")
    yield base64.urlsafe_b64encode(secret).decode().rstrip("=")
    yield repr(secret)[2:-1]
    yield str(list(secret))
