"""The container of a data set: an uncompressed POSIX tar in its one canonical spelling (docs/formats/dataset.md).

Any tar program lists it in thirty years; this reader takes no other header than the one that the writer would
write. No links, devices, owners, times or long names: there is nothing to lead a reader out of its folder.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from consilia.artifact import read_full
from consilia.errors import VerificationError

BLOCK_BYTES = 512
MAX_MEMBER_BYTES = 256 * 2**20
MAX_MEMBERS = 1_000_000
_NAME = re.compile(r"(annotations|manifest)\.json|images/[0-9]{6}\.(dcm|png)")


def write_member(stream: BinaryIO, name: str, data: bytes) -> None:
    """Append one member; the caller keeps the names in ascending order."""
    stream.write(_header(name, len(data)))
    stream.write(data)
    stream.write(bytes(-len(data) % BLOCK_BYTES))


def finish(stream: BinaryIO) -> None:
    """End the archive: two empty blocks, and nothing after them."""
    stream.write(bytes(2 * BLOCK_BYTES))


def read_members(stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """The members, one in memory at a time.

    Raises:
        VerificationError: not canonical: another header than ours, a name that is not of this format or out of
            order, a member too large, padding that is not empty, too short, or longer than its end.
    """
    last = ""
    for _ in range(MAX_MEMBERS):
        header = _read(stream, BLOCK_BYTES)
        if not any(header):
            if any(_read(stream, BLOCK_BYTES)) or stream.read(1):
                raise VerificationError("expected a data set's archive to end after two empty blocks")
            return
        name, size = _parse(header)
        if name <= last:
            raise VerificationError(
                f"expected a data set's members in ascending order, {name} follows {last}"
            )
        last = name
        data = _read(stream, size)
        if any(_read(stream, -size % BLOCK_BYTES)):
            raise VerificationError(f"expected empty padding after {name}")
        yield name, data
    raise VerificationError(f"expected at most {MAX_MEMBERS} members in a data set")


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o644, 0
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def _parse(header: bytes) -> tuple[str, int]:
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    if not _NAME.fullmatch(name):
        raise VerificationError(f"expected annotations, images/NNNNNN and a manifest, found {name[:60]!r}")
    try:
        size = int(header[124:135], 8)
    except ValueError:
        size = -1
    if not 0 <= size <= MAX_MEMBER_BYTES:
        raise VerificationError(f"expected {name} to have at most {MAX_MEMBER_BYTES >> 20} MiB")
    if header != _header(name, size):
        raise VerificationError(f"expected the canonical header of {name}, found another spelling")
    return name, size


def _read(stream: BinaryIO, size: int) -> bytes:
    data = read_full(stream, size)
    if len(data) != size:
        raise VerificationError("a data set's archive ends too early")
    return data
