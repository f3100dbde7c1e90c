"""Secret keys, in memory and on disk: identities (X25519, envelopes) and accounts (secp256k1, the ledger).

File formats: docs/formats/keys.md.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from consilia.crypto.password_box import (
    MOST_COST_BITS,
    SCRYPT_R,
    SHOWN_AT,
    ScryptCost,
    check_password,
    close_box,
    open_box,
)
from consilia.crypto.private_files import read_private, write_private
from consilia.errors import EnvelopeError, KeyFileError
from consilia.values import Address

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

MAGIC = b"CSLAIDN1"
_FILE_BYTES = 119
_MOST_KEYSTORE_BYTES = 1 << 16


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
    write_private(path, close_box(MAGIC, identity.recipient, identity.secret_bytes, password, cost))


def load_identity(path: Path, password: str) -> Identity:
    """Read an identity.

    Raises:
        KeyFileError: missing, open to others, damaged, or another password.
    """
    data = _read_identity(path)
    identity = Identity.from_bytes(open_box(str(path), data, MAGIC, 32, password))
    if identity.recipient != data[SHOWN_AT : SHOWN_AT + 32]:
        raise KeyFileError(f"{path} holds another secret than that of the public key written in it")
    return identity


def read_recipient(path: Path) -> bytes:
    """The public key written in an identity file, 32 bytes; no password is needed, and so nothing is proved.

    Raises:
        KeyFileError: missing, open to others, or no identity file.
    """
    return _read_identity(path)[SHOWN_AT : SHOWN_AT + 32]


def save_account(
    path: Path, account: LocalAccount, password: str, *, cost: ScryptCost = ScryptCost.STANDARD
) -> None:
    """Write a ledger account as an Ethereum keystore (version 3), mode 0600, to a name that must be free.

    Raises:
        KeyFileError: the file exists or cannot be written, or the password is empty.
    """
    check_password(password)
    keystore = account.encrypt(password, kdf="scrypt", iterations=1 << cost.value)
    write_private(path, json.dumps(keystore, indent=1, sort_keys=True).encode() + b"\n")


def load_account(path: Path, password: str) -> LocalAccount:
    """Read a ledger account.

    Raises:
        KeyFileError: missing, damaged, of another address than it says, or another password.
    """
    from eth_account import Account  # a second of imports, needed by no one who only opens envelopes

    check_password(password)
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


def read_address(path: Path) -> Address:
    """The address written in an account's key file, checksummed; no password is needed, and so nothing is proved.

    Raises:
        KeyFileError: missing, open to others, or no keystore.
    """
    from eth_utils.address import is_hex_address, to_checksum_address

    address = str(_parse_keystore(path).get("address", ""))
    if not is_hex_address(address):
        raise KeyFileError(f"{path} should name its account's address, it has {address!r}")
    return str(to_checksum_address(address))


def _parse_keystore(path: Path) -> dict[str, object]:
    try:
        keystore = json.loads(read_private(path, _MOST_KEYSTORE_BYTES))
        params = keystore["crypto"]["kdfparams"]
        known = keystore["crypto"]["kdf"] == "scrypt" and int(params["n"]) * int(params["r"]) * int(
            params["p"]
        )
    except (ValueError, TypeError, KeyError) as error:
        raise KeyFileError(f"{path} is no Ethereum keystore of version 3 with scrypt") from error
    if not 0 < known <= SCRYPT_R << MOST_COST_BITS:
        raise KeyFileError(f"{path} asks for another key derivation than scrypt of at most 1 GiB: refused")
    return dict(keystore)


def _read_identity(path: Path) -> bytes:
    data = read_private(path, _FILE_BYTES)
    if len(data) != _FILE_BYTES or data[:8] != MAGIC:
        raise KeyFileError(
            f"{path} is no identity file: {_FILE_BYTES} bytes that begin with {MAGIC!r} wanted"
        )
    return data
