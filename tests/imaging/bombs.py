"""Small files, or small enough, that ask a reader for absurd memory or time, and why each is refused."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
)

from tests.imaging.hostile_files import small_ct

_ITEM = b"\xfe\xff\x00\xe0"
_PRIVATE_SEQUENCE = b"\x09\x00\x02\x10SQ\0\0"
"""(0009,1002), explicit little endian; its length follows."""
_STUDY = b"\x08\x00\x40\x11SQ\0\0"


def _split(path: Path) -> tuple[bytes, bytes]:
    """A plain CT as preamble with file meta information, and data set."""
    content = small_ct(path).read_bytes()
    at = 144 + struct.unpack("<I", content[140:144])[0]
    return content[:at], content[at:]


def _deflated_meta(path: Path) -> bytes:
    header = pydicom.dcmread(small_ct(path))
    header.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    header.save_as(path)
    content = path.read_bytes()
    return content[: 144 + struct.unpack("<I", content[140:144])[0]]


def _deflate(path: Path, block: bytes, times: int, *, group_length: bool = True, start: bytes = b"") -> None:
    meta = _deflated_meta(path)
    if not group_length:
        meta = meta[:132] + meta[144:]  # without (0002,0000), which only says how long the rest is
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = packer.compress(start) + b"".join(packer.compress(block) for _ in range(times)) + packer.flush()
    assert len(packed) < 2**21
    path.write_bytes(meta + packed)


def _insert(path: Path, element: bytes) -> None:
    """Before the first attribute of group 0010."""
    meta, data = _split(path)
    at = data.index(b"\x10\x00\x10\x00PN")
    path.write_bytes(meta + data[:at] + element + data[at:])


def _sequence(tag_and_vr: bytes, content: bytes) -> bytes:
    return tag_and_vr + struct.pack("<I", len(content)) + content


def _elements(count: int) -> bytes:
    """So many empty elements with different tags."""
    parts = (
        struct.pack("<HH2sH", 0x0011 + (n >> 15 << 1), 0x1000 + (n & 0x7FFF), b"LO", 0) for n in range(count)
    )
    return b"".join(parts)


def _nested(levels: int) -> bytes:
    opened = _STUDY + b"\xff\xff\xff\xff" + _ITEM + b"\xff\xff\xff\xff"
    closed = b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0"
    return opened * levels + closed * levels


def _nested_with_lengths(levels: int) -> bytes:
    content = b""
    for _ in range(levels):
        content = _sequence(_STUDY, _ITEM + struct.pack("<I", len(content)) + content)
    return content


def _many_values(path: Path) -> None:
    header = pydicom.dcmread(small_ct(path))
    header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    header.save_as(path, implicit_vr=True)
    content = path.read_bytes()
    at = content.index(struct.pack("<HHI", 0x0008, 0x0008, len("ORIGINAL\\PRIMARY\\AXIAL")))
    value = b"\\" * 2**26
    path.write_bytes(content[: at + 4] + struct.pack("<I", len(value)) + value + content[at + 30 :])


def _four_gigabytes(path: Path) -> None:
    meta, data = _split(path)
    at = data.index(b"\xe0\x7f\x10\x00OW")
    path.write_bytes(meta + data[: at + 8] + b"\xf0\xff\xff\xff" + data[at + 12 :])


def _large(path: Path) -> None:
    small_ct(path)
    os.truncate(path, 300 * 2**20)  # sparse


def _change(**changes: object) -> Callable[[Path], object]:
    return lambda path: small_ct(path, **changes)


def _codestream(path: Path) -> bytes:
    header = pydicom.dcmread(small_ct(path))
    header.compress(JPEG2000Lossless)
    data = bytes(header.PixelData)
    return data[data.index(b"\xff\x4f\xff\x51") : data.rindex(b"\xff\xd9") + 2]


def _claiming(stream: bytes, side: int = 60000) -> bytes:
    at = stream.index(b"\xff\x4f\xff\x51")
    return stream[: at + 8] + struct.pack(">II", side, side) + stream[at + 16 :]


def _pixels(path: Path, data: bytes, syntax: str = JPEG2000Lossless) -> None:
    header = pydicom.dcmread(small_ct(path))
    header.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    header.PixelData = data
    header["PixelData"].VR, header["PixelData"].is_undefined_length = "OB", True
    header.save_as(path)


def _j2k_behind_offsets(path: Path) -> None:
    """The basic offset table is so long that a codestream begins far behind."""
    stream = _claiming(_codestream(path))
    stream += b"\0" * (len(stream) % 2)
    table = _ITEM + struct.pack("<I", 8000) + bytes(8000)
    _pixels(path, table + _ITEM + struct.pack("<I", len(stream)) + stream)


def _j2k_in_boxes(path: Path) -> None:
    """A JP2 file, which decoders take as well, with an empty box of 10 000 bytes before the codestream."""
    mark = struct.pack(">I4sI", 12, b"jP  ", 0x0D0A870A)
    free = struct.pack(">I4s", 10_008, b"free") + bytes(10_000)
    stream = _claiming(_codestream(path))
    _pixels(path, encapsulate([mark + free + struct.pack(">I4s", 0, b"jp2c") + stream]))


def _j2k_of_tiles(path: Path) -> None:
    """4096 x 4096 pixels in tiles of one."""
    stream = bytearray(_claiming(_codestream(path), 4096))
    stream[24:32] = struct.pack(">II", 1, 1)
    _pixels(path, encapsulate([bytes(stream)]))


def _jpeg(path: Path) -> None:
    """A frame header that claims 65 535 x 65 535 behind segments of other things."""
    other = b"\xff\xe0\x40\x00" + bytes(0x3FFE)
    frame = b"\xff\xc3\x00\x0b\x10" + struct.pack(">HH", 65535, 65535) + b"\x01\x01\x11\x00"
    _pixels(path, encapsulate([b"\xff\xd8" + 3 * other + frame + b"\xff\xd9"]), JPEGLosslessSV1)


_MANY = r"at most \d+ (attributes|items|fragments)"
BOMBS: dict[str, tuple[Callable[[Path], object], str]] = {
    "deflated zeros": (lambda p: _deflate(p, bytes(2**20), 300), "inflates to more"),
    "deflated, no length": (lambda p: _deflate(p, bytes(2**20), 300, group_length=False), "inflates to more"),
    "deflated items": (
        lambda p: _deflate(p, 2**17 * (_ITEM + bytes(4)), 100, start=_STUDY + b"\xff\xff\xff\xff"),
        _MANY,
    ),
    "deflated elements": (lambda p: _deflate(p, _elements(2**20), 1), _MANY),
    "items": (lambda p: _insert(p, _sequence(_STUDY, (_ITEM + bytes(4)) * 400_000)), _MANY),
    "private items": (
        lambda p: _insert(p, _sequence(_PRIVATE_SEQUENCE, (_ITEM + bytes(4)) * 400_000)),
        _MANY,
    ),
    "large sequence": (
        lambda p: _insert(p, _sequence(_STUDY, _ITEM + b"\xff" * 4 + _elements(2**21))),
        "bytes in an",
    ),
    "deep": (lambda p: _insert(p, _nested(20_000)), "cannot be parsed|deep"),
    "deep with lengths": (lambda p: _insert(p, _nested_with_lengths(400)), "deep|cannot be parsed"),
    "many values": (_many_values, "bytes in an attribute"),
    "four gigabytes": (_four_gigabytes, "match the header"),
    "large file": (_large, "the file is larger"),
    "large matrix": (_change(Rows=65535, Columns=65535), "at most"),
    "many frames": (_change(NumberOfFrames=10**9), "at most"),
    "no pixels": (_change(Rows=0), "claims 0 x 32"),
    "many fragments": (lambda p: _pixels(p, (_ITEM + bytes(4)) * 2**18), _MANY),
    "jpeg 2000": (lambda p: _pixels(p, encapsulate([_claiming(_codestream(p))])), "at most"),
    "jpeg 2000 behind offsets": (_j2k_behind_offsets, "at most|compressed frames"),
    "jpeg 2000 in boxes": (_j2k_in_boxes, "at most"),
    "jpeg 2000 of tiles": (_j2k_of_tiles, "damaged|the decoder"),
    "jpeg": (_jpeg, "at most"),
}
