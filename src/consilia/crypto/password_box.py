"""Bytes under a password: scrypt (RFC 7914) and AES-256-GCM, with a part that can be read without the password.

Format: docs/formats/keys.md. Identity files and backups are such boxes.
"""

from __future__ import annotations

import secrets
from enum import Enum

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from consilia.errors import KeyFileError

SCRYPT_R, SCRYPT_P = 8, 1
MOST_COST_BITS = 20
"""1 GiB of memory: more in a file is an attack or a mistake."""

_SALT_AT, _NONCE_AT, SHOWN_AT = 11, 27, 39
_TAG_BYTES = 16


class ScryptCost(Enum):
    """How hard a stolen key file makes each guess at its password; the value is log2 of scrypt's N."""

    STANDARD = 17
    """OWASP Password Storage Cheat Sheet: N = 2^17, r = 8, p = 1; 128 MiB, about half a second."""
    TESTS = 4
    """No protection at all: for tests, whose keys protect nothing."""


def close_box(magic: bytes, shown: bytes, secret: bytes, password: str, cost: ScryptCost) -> bytes:
    """Lock `secret` under a password; `shown` stays readable and cannot be changed.

    Args:
        magic: 8 bytes that say what is inside.

    Raises:
        KeyFileError: the password is empty.
    """
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    head = b"".join((magic, bytes((cost.value, SCRYPT_R, SCRYPT_P)), salt, nonce, shown))
    return head + AESGCM(_derive_key(password, salt, cost.value)).encrypt(nonce, secret, head)


def open_box(name: str, data: bytes, magic: bytes, shown_bytes: int, password: str) -> bytes:
    """Unlock a box.

    Args:
        name: what messages call it, such as its path.

    Raises:
        KeyFileError: another kind of file, damaged, asking for a gigabyte, or another password.
    """
    secret_at = SHOWN_AT + shown_bytes
    if len(data) < secret_at + _TAG_BYTES or data[:8] != magic:
        raise KeyFileError(f"{name} should begin with {magic!r} and be whole; it is neither, or not both")
    cost_bits, scrypt_r, scrypt_p = data[8:_SALT_AT]
    if not 1 <= cost_bits <= MOST_COST_BITS or (scrypt_r, scrypt_p) != (SCRYPT_R, SCRYPT_P):
        raise KeyFileError(
            f"{name} asks for scrypt with N = 2^{cost_bits}, r = {scrypt_r}, p = {scrypt_p}: refused"
        )
    key = _derive_key(password, data[_SALT_AT:_NONCE_AT], cost_bits)
    try:
        return AESGCM(key).decrypt(data[_NONCE_AT:SHOWN_AT], data[secret_at:], data[:secret_at])
    except InvalidTag as error:
        raise KeyFileError(f"{name} does not open: the password is wrong or the file is damaged") from error


def check_password(password: str) -> None:
    """Refuse an empty password.

    Raises:
        KeyFileError: it is empty.
    """
    if not password:
        raise KeyFileError("a key file needs a password, an empty one came")


def _derive_key(password: str, salt: bytes, cost_bits: int) -> bytes:
    check_password(password)
    return Scrypt(salt, 32, 1 << cost_bits, SCRYPT_R, SCRYPT_P).derive(password.encode())
