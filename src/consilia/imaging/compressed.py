"""The frames of compressed pixel data, and the size that each claims by itself.

A decoder allocates what the codestream says, not what the header says: a bomb can hide there.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from consilia.errors import UnusableImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MAX_FRAGMENTS = 2**17
_ITEM = b"\xfe\xff\x00\xe0"
_J2K = b"\xff\x4f\xff\x51"
"""SOC and SIZ, with which a codestream begins (ISO 15444-1 A.4.1, A.5.1): inside one they cannot occur."""
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}
"""JPEG's and JPEG-LS's frame headers, without the tables whose markers lie among them (ISO 10918-1 B.1.1.3)."""


def compressed_frames(header: Dataset, count: int) -> list[bytes]:
    """The codestreams of a file, one a frame (PS3.5 A.4).

    Raises:
        UnusableImageError: there are more or fewer of them, or absurdly many fragments.
    """
    from pydicom.encaps import generate_frames

    data = header.PixelData
    if not isinstance(data, bytes) or data.count(_ITEM) > MAX_FRAGMENTS:
        raise UnusableImageError(f"expected at most {MAX_FRAGMENTS} fragments of pixel data (7FE0,0010)")
    offsets = None
    if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
        offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    frames = list(generate_frames(data, number_of_frames=count, extended_offsets=offsets))
    if len(frames) != count:
        raise UnusableImageError(
            f"expected {count} compressed frames as (0028,0008) says, the file has {len(frames)}"
        )
    return frames


def claimed_sizes(frame: bytes) -> Iterator[tuple[int, int]]:
    """Rows and columns that a codestream itself claims; none of codecs that claim nothing (RLE)."""
    at = frame.find(_J2K)
    while at >= 0 and len(frame) >= at + 24:
        x_end, y_end, x_start, y_start = struct.unpack(">IIII", frame[at + 8 : at + 24])
        yield y_end - y_start, x_end - x_start
        at = frame.find(_J2K, at + 4)
    if frame[:2] == b"\xff\xd8":
        yield from _jpeg_sizes(frame)


def _jpeg_sizes(frame: bytes) -> Iterator[tuple[int, int]]:
    """Of the frame headers before the first scan; segments are walked over by their lengths."""
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], struct.unpack(">H", frame[at + 2 : at + 4])[0]
        if marker == 0xFF:  # fill bytes may precede any marker
            at += 1
            continue
        if marker in _START_OF_FRAME:
            yield struct.unpack(">HH", frame[at + 5 : at + 9])
        if marker == 0xDA:
            return
        at += 2 + max(2, length)
