"""A backup: all of a party's secrets in one file under one password (docs/formats/keys.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from consilia.crypto.password_box import ScryptCost, close_box, open_box
from consilia.errors import KeyFileError

MAGIC = b"CSLABAK1"
Hex32 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Backup:
    """What a backup holds. Keys that live in a token are not in it."""

    name: str
    """Whose it is, as the settings call it."""
    made_at: int
    """Unix seconds."""
    account: bytes | None = field(repr=False)
    """The ledger account's secret key, 32 bytes."""
    identities: tuple[bytes, ...] = field(repr=False)
    """The identities' secret keys, 32 bytes each, the current one first, then those that were replaced."""
    files: dict[str, bytes] = field(repr=False)
    """The databases of what cannot be rebuilt, by their names in the home."""
    next_account: bytes | None = field(default=None, repr=False)
    """The account that waits for the members' vote; None where none does."""
    next_identity: bytes | None = field(default=None, repr=False)
    """The identity that waits for it: apart from the others, or nobody would know that it is to be adopted."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)


class _File(_Strict):
    name: Annotated[
        str, Field(pattern=r"^[a-z][a-z0-9-]*\.sqlite$")
    ]  # from a stranger, it must not leave the home
    bytes: Annotated[int, Field(ge=0)]


class _Contents(_Strict):
    name: str
    made_at: int
    account: Hex32 | None
    identities: list[Hex32]
    files: list[_File]
    next_account: Hex32 | None = None
    next_identity: Hex32 | None = None


def close_backup(backup: Backup, password: str, cost: ScryptCost = ScryptCost.STANDARD) -> bytes:
    """The bytes of a backup file.

    Raises:
        KeyFileError: the password is empty.
    """
    contents = _Contents(
        name=backup.name,
        made_at=backup.made_at,
        account=_hex(backup.account),
        identities=[secret.hex() for secret in backup.identities],
        files=[_File(name=name, bytes=len(data)) for name, data in backup.files.items()],
        next_account=_hex(backup.next_account),
        next_identity=_hex(backup.next_identity),
    )
    head = contents.model_dump_json(exclude_defaults=True).encode()  # what does not wait is not named
    plain = b"".join((len(head).to_bytes(4, "big"), head, *backup.files.values()))
    return close_box(MAGIC, b"", plain, password, cost)


def open_backup(name: str, data: bytes, password: str) -> Backup:
    """Read a backup.

    Args:
        name: what messages call it, such as its path.

    Raises:
        KeyFileError: no backup, damaged, or another password.
    """
    plain = open_box(name, data, MAGIC, 0, password)
    files_at = 4 + int.from_bytes(plain[:4], "big")
    try:
        contents = _Contents.model_validate_json(plain[4:files_at])
    except ValidationError as error:
        raise KeyFileError(f"{name} opens, but this version cannot read what is inside: {error}") from error
    if len(plain) != files_at + sum(file.bytes for file in contents.files):
        raise KeyFileError(f"{name} opens, but its parts have other sizes than it says")
    files: dict[str, bytes] = {}
    for file in contents.files:
        files[file.name] = plain[files_at : files_at + file.bytes]
        files_at += file.bytes
    return Backup(
        name=contents.name,
        made_at=contents.made_at,
        account=_bytes(contents.account),
        identities=tuple(bytes.fromhex(secret) for secret in contents.identities),
        files=files,
        next_account=_bytes(contents.next_account),
        next_identity=_bytes(contents.next_identity),
    )


def _hex(secret: bytes | None) -> str | None:
    return None if secret is None else secret.hex()


def _bytes(secret: str | None) -> bytes | None:
    return None if secret is None else bytes.fromhex(secret)
