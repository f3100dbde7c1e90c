"""Files for their owner alone: written whole or not at all; refused where others could have read or changed them."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from consilia.errors import KeyFileError


def make_private_directory(path: Path) -> None:
    """Make a directory, and the missing ones above it, with mode 0700; one that is there stays as it is.

    Raises:
        KeyFileError: it cannot be made.
    """
    try:
        for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
            missing.mkdir(mode=0o700)
    except OSError as error:
        raise KeyFileError(f"the directory {path} cannot be made: {error.strerror}") from error


def read_private(path: Path, most_bytes: int) -> bytes:
    """Read a secret file, no more than one byte beyond `most_bytes`.

    Raises:
        KeyFileError: missing, or open to others than its owner. As OpenSSH does, also where others may write to
            its directory: they could put another file in its place.
    """
    try:
        with path.open("rb") as file:
            _check_mode(path, os.fstat(file.fileno()).st_mode, 0o077, "600")
            _check_mode(path.parent, path.parent.stat().st_mode, 0o022, "700")
            return file.read(most_bytes + 1)
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from error


def write_private(path: Path, data: bytes) -> None:
    """Write a file with mode 0600: synced under another name, then linked, which fails where `path` exists.

    Raises:
        KeyFileError: the name is taken, or the disk refuses; then there is no file.
    """
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
        sync_directory(path.parent)
    except FileExistsError as error:
        raise KeyFileError(f"{path} exists; keys are never overwritten, move it away first") from error
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be written: {error.strerror}") from error


def require_private_directory(path: Path) -> None:
    """Refuse a directory in which others than its owner may put another file in the place of one.

    Raises:
        KeyFileError: it is one, or there is none.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise KeyFileError(f"the directory {path} cannot be used: {error.strerror}") from error
    if mode & 0o022:
        raise KeyFileError(
            f"others may write to {path} (mode {stat.S_IMODE(mode):04o}): expected a directory of your own alone; "
            "take another one"
        )


def sync_directory(directory: Path) -> None:
    """Make the names in a directory last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_mode(path: Path, mode: int, forbidden: int, wanted: str) -> None:
    if mode & forbidden:
        raise KeyFileError(
            f"{path} is open to others than its owner (mode {stat.S_IMODE(mode):04o}): chmod {wanted} {path}, "
            "and if somebody else uses this machine, take it for stolen"
        )
