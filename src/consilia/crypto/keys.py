"""Secret keys, in memory and on disk: identities (X25519, envelopes) and accounts (secp256k1, the ledger).

File formats: docs/formats/envelope.md, "Key files".
"""

from __future__ import annotations

import json
import os
import secrets
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from consilia.errors import EnvelopeError, KeyFileError

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

MAGIC = b"CSLAIDN1"
_SALT_AT, _NONCE_AT, _RECIPIENT_AT, _SECRET_AT, _FILE_BYTES = 11, 27, 39, 71, 119
_SCRYPT_R, _SCRYPT_P = 8, 1
_MOST_COST_BITS = 20  # 1 GiB of memory: more in a file is an attack or a mistake
_MOST_KEYSTORE_BYTES = 1 << 16


class ScryptCost(Enum):
    """How hard a stolen key file makes each guess at its password; the value is log2 of scrypt's N."""

    STANDARD = 17
    """OWASP Password Storage Cheat Sheet: N = 2^17, r = 8, p = 1; 128 MiB, about half a second."""
    TESTS = 4
    """No protection at all: for tests, whose keys protect nothing."""


class Identity:
    """The secret half of an encryption key (X25519). It is neither shown by `repr` nor pickled."""

    __slots__ = ("_private_key", "recipient")

    def __init__(self, private_key: X25519PrivateKey) -> None:
        self._private_key = private_key
        self.recipient: bytes = private_key.public_key().public_bytes_raw()
        """The public half, 32 bytes: what others seal to."""

    @classmethod
    def generate(cls) -> Self:
        """A new identity from the system's random source."""
        return cls(X25519PrivateKey.generate())

    @classmethod
    def from_bytes(cls, secret: bytes) -> Self:
        """The identity of a 32-byte secret.

        Raises:
            KeyFileError: it has another size.
        """
        if len(secret) != 32:
            raise KeyFileError(f"an identity's secret has 32 bytes, this has {len(secret)}")
        return cls(X25519PrivateKey.from_private_bytes(secret))

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """Its one public key, as an `Opener` tells it."""
        return (self.recipient,)

    def exchange(self, recipient: bytes, public_key: bytes) -> bytes:
        """The X25519 shared secret with somebody's public key (32 bytes each).

        Raises:
            EnvelopeError: the public key is no key, or of low order.
        """
        assert recipient == self.recipient, "asked for a key that is not this one"
        try:
            return self._private_key.exchange(X25519PublicKey.from_public_bytes(public_key))
        except ValueError as error:
            raise EnvelopeError(
                f"a sealed key does not open: it came with {public_key.hex()}, of low order"
            ) from error

    @property
    def secret_bytes(self) -> bytes:
        """The secret, 32 bytes. Never to be logged or stored in clear."""
        return self._private_key.private_bytes_raw()

    def __repr__(self) -> str:
        return f"Identity(recipient={self.recipient.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an identity is not pickled; save it with save_identity")


def save_identity(
    path: Path, identity: Identity, password: str, *, cost: ScryptCost = ScryptCost.STANDARD
) -> None:
    """Write an identity under a password, with mode 0600, to a name that must be free.

    Raises:
        KeyFileError: the file exists or cannot be written, or the password is empty.
    """
    salt, nonce = secrets.token_bytes(16), secrets.token_bytes(12)
    head = b"".join((MAGIC, bytes((cost.value, _SCRYPT_R, _SCRYPT_P)), salt, nonce, identity.recipient))
    key = _derive_key(password, salt, cost.value)
    _write_new(path, head + AESGCM(key).encrypt(nonce, identity.secret_bytes, head))


def load_identity(path: Path, password: str) -> Identity:
    """Read an identity.

    Raises:
        KeyFileError: missing, damaged, or another password.
    """
    data = _read(path, _FILE_BYTES)
    if len(data) != _FILE_BYTES or data[:8] != MAGIC:
        raise KeyFileError(
            f"{path} is no identity file: {_FILE_BYTES} bytes that begin with {MAGIC!r} wanted"
        )
    cost_bits, scrypt_r, scrypt_p = data[8:_SALT_AT]
    if not 1 <= cost_bits <= _MOST_COST_BITS or (scrypt_r, scrypt_p) != (_SCRYPT_R, _SCRYPT_P):
        raise KeyFileError(
            f"{path} asks for scrypt with N = 2^{cost_bits}, r = {scrypt_r}, p = {scrypt_p}: refused"
        )
    key = _derive_key(password, data[_SALT_AT:_NONCE_AT], cost_bits)
    try:
        secret = AESGCM(key).decrypt(data[_NONCE_AT:_RECIPIENT_AT], data[_SECRET_AT:], data[:_SECRET_AT])
    except InvalidTag as error:
        raise KeyFileError(f"{path} does not open: the password is wrong or the file is damaged") from error
    identity = Identity.from_bytes(secret)
    if identity.recipient != data[_RECIPIENT_AT:_SECRET_AT]:
        raise KeyFileError(f"{path} holds another secret than that of the public key written in it")
    return identity


def save_account(
    path: Path, account: LocalAccount, password: str, *, cost: ScryptCost = ScryptCost.STANDARD
) -> None:
    """Write a ledger account as an Ethereum keystore (version 3), mode 0600, to a name that must be free.

    Raises:
        KeyFileError: the file exists or cannot be written, or the password is empty.
    """
    _check_password(password)
    keystore = account.encrypt(password, kdf="scrypt", iterations=1 << cost.value)
    _write_new(path, json.dumps(keystore, indent=1, sort_keys=True).encode() + b"\n")


def load_account(path: Path, password: str) -> LocalAccount:
    """Read a ledger account.

    Raises:
        KeyFileError: missing, damaged, of another address than it says, or another password.
    """
    from eth_account import Account  # a second of imports, needed by no one who only opens envelopes

    _check_password(password)
    keystore = _parse_keystore(path)
    try:
        account: LocalAccount = Account.from_key(Account.decrypt(keystore, password))
    except (ValueError, TypeError, KeyError) as error:
        raise KeyFileError(
            f"{path} does not open: the password is wrong or the file is damaged ({error})"
        ) from error
    if account.address.lower().removeprefix("0x") != str(keystore.get("address", "")).lower().removeprefix(
        "0x"
    ):
        raise KeyFileError(
            f"{path} holds the key of {account.address}, which is not the address written in it"
        )
    return account


def _parse_keystore(path: Path) -> dict[str, object]:
    try:
        keystore = json.loads(_read(path, _MOST_KEYSTORE_BYTES))
        params = keystore["crypto"]["kdfparams"]
        known = keystore["crypto"]["kdf"] == "scrypt" and int(params["n"]) * int(params["r"]) * int(
            params["p"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise KeyFileError(f"{path} is no Ethereum keystore of version 3 with scrypt") from error
    if not 0 < known <= _SCRYPT_R << _MOST_COST_BITS:
        raise KeyFileError(f"{path} asks for another key derivation than scrypt of at most 1 GiB: refused")
    return dict(keystore)


def _derive_key(password: str, salt: bytes, cost_bits: int) -> bytes:
    _check_password(password)
    return Scrypt(salt, 32, 1 << cost_bits, _SCRYPT_R, _SCRYPT_P).derive(password.encode())


def _check_password(password: str) -> None:
    if not password:
        raise KeyFileError("a key file needs a password, an empty one came")


def _read(path: Path, most_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(most_bytes + 1)
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from error


def _write_new(path: Path, data: bytes) -> None:
    """Write a whole file or none: synced under another name, then linked, which fails where `path` exists."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            temporary.unlink()
        _sync_directory(path.parent)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists; keys are never overwritten, move it away first") from error
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be written: {error.strerror}") from error


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
