"""Stored values of a file's frames: claims are checked first, compressed frames are decoded by another process.

A decoder that breaks takes that process with it and not the import; the next frame gets a new one (`decoder.py`).
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import UnusableImageError
from consilia.imaging.compressed import claimed_sizes, compressed_frames
from consilia.imaging.decoder import ATTRIBUTES, CPU_SECONDS, MEMORY_BYTES, PLUGINS
from consilia.imaging.dicom_file import parser_errors

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

MAX_PIXELS = 4096 * 4096
"""Rows x Columns beyond this are refused before decoding: the header alone can ask for terabytes."""
MAX_FRAMES = 4096
MAX_FILE_PIXELS = 2**28
"""All frames of a file together: about a thousand of 512 x 512."""

_EXTENDED_JPEG = "1.2.840.10008.1.2.4.51"
_DAMAGED = "expected pixel data that match the header, they are damaged, cut short or in an unknown encoding"
_BROKEN = (
    f"expected compressed pixels that can be decoded within {CPU_SECONDS} seconds and {MEMORY_BYTES >> 30} GiB, "
    "the decoder broke on these: have the image sent uncompressed"
)
_KINDS = {"u1": "<u1", "i1": "<i1", "u2": "<u2", "i2": "<i2", "u4": "<u4", "i4": "<i4"}


class Frames:
    """The frames of one file, found once; each is decoded when it is asked for."""

    def __init__(self, header: FileDataset) -> None:
        """Check what header and compressed frames claim; nothing is decoded.

        Raises:
            UnusableImageError: a claim is absurd or not true, there are colours, or nothing here decodes this.
        """
        self._header = header
        self._size = rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
        self.count = _whole(header, "NumberOfFrames") if header.get("NumberOfFrames") is not None else 1
        _check_claim(rows, columns, self.count)
        bits = _check_sample(header)
        _check_encoding(header)
        self._compressed: list[bytes] = []
        if not header.file_meta.TransferSyntaxUID.is_encapsulated:
            _check_length(header, bits, rows * columns * self.count, columns)
            return
        self._compressed = compressed_frames(header, self.count)
        for frame in self._compressed:
            for size in claimed_sizes(frame):
                _check_claim(*size, 1)

    def stored(self, index: int) -> NDArray[Any]:
        """The stored values of one frame, (rows, columns).

        Raises:
            UnusableImageError: they do not match the header, or cannot be decoded.
        """
        found = self._decompressed(index) if self._compressed else self._plain(index)
        if found.shape != self._size:
            raise UnusableImageError(f"expected {self._size} pixels, the decoder gave {found.shape}")
        return found

    def _plain(self, index: int) -> NDArray[Any]:
        from pydicom.pixels.utils import pixel_array

        try:
            return np.asarray(pixel_array(self._header, index=index))
        except parser_errors():
            raise UnusableImageError(_DAMAGED) from None

    def _decompressed(self, index: int) -> NDArray[Any]:
        request = {keyword: self._header.get(keyword) for keyword in ATTRIBUTES}
        request["syntax"] = str(self._header.file_meta.TransferSyntaxUID)
        return _PROCESS.decode(request, self._compressed[index])


def _whole(header: FileDataset, keyword: str) -> int:
    value = header.get(keyword)
    if not isinstance(value, int):
        raise UnusableImageError(f"expected a whole number as {keyword}, the file has none")
    return int(value)


def _check_claim(rows: int, columns: int, frames: int) -> None:
    if rows < 1 or columns < 1 or frames < 1:
        raise UnusableImageError(f"expected an image, the header claims {rows} x {columns} x {frames} pixels")
    if rows * columns > MAX_PIXELS or frames > MAX_FRAMES or rows * columns * frames > MAX_FILE_PIXELS:
        raise UnusableImageError(
            f"expected at most {MAX_PIXELS} pixels, the file claims {rows} x {columns} x {frames}"
        )


def _check_sample(header: FileDataset) -> int:
    """How a pixel is stored (PS3.3 C.7.6.3.1); the bits that each takes."""
    if _whole(header, "SamplesPerPixel") != 1:
        raise UnusableImageError("expected one grey channel (0028,0002), the file has colours")
    bits, stored = _whole(header, "BitsAllocated"), _whole(header, "BitsStored")
    if bits not in (1, 8, 16, 32) or not 1 <= stored <= bits:
        raise UnusableImageError(
            f"expected 1, 8, 16 or 32 bits a pixel (0028,0100-0101), the header says {stored} of {bits}"
        )
    if header.get("HighBit", stored - 1) != stored - 1:
        raise UnusableImageError(
            "expected the stored bits (0028,0102) to be the lowest, the header says other"
        )
    if _whole(header, "PixelRepresentation") not in (0, 1):
        raise UnusableImageError("expected a PixelRepresentation (0028,0103) of 0 or 1, the file has another")
    return bits


def _check_encoding(header: FileDataset) -> None:
    """Refuse a transfer syntax that nothing here decodes."""
    syntax = header.file_meta.TransferSyntaxUID
    known = (
        not syntax.is_private and syntax.is_transfer_syntax
    )  # a number that is not the standard's may be somebody's
    if not known or (syntax.is_encapsulated and str(syntax) not in PLUGINS):
        raise UnusableImageError(
            "expected a transfer syntax (0002,0010) that is decoded here, the file has "
            f"{syntax.name if known else 'another'}: have it sent uncompressed"
        )
    if str(syntax) == _EXTENDED_JPEG and header.BitsStored > 8:
        raise UnusableImageError(
            "expected JPEG Extended (0002,0010) of 8 bits, the file has more: have it sent uncompressed"
        )


def _check_length(header: FileDataset, bits: int, pixels: int, columns: int) -> None:
    """Uncompressed data are as long as the header says; longer ones would be read as another image than they are."""
    expected, found = (pixels * bits + 7) // 8, len(header.PixelData)
    if not expected <= found < expected + max(2, columns * bits // 8):
        raise UnusableImageError(
            f"expected pixel data that match the header, {expected} bytes, the file has {found}"
        )


class _DecoderProcess:
    """The other process: started when it is needed, again after it broke, and anew in every forked process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def forget(self) -> None:
        """In a forked process: the decoder answers its parent, and a thread that is not here may hold the lock."""
        self._lock, self._process = threading.Lock(), None

    def decode(self, request: dict[str, Any], frame: bytes) -> NDArray[Any]:
        with self._lock:
            try:
                return self._ask(request, frame)
            except (OSError, EOFError, ValueError, LookupError):
                self.end()
                raise UnusableImageError(_BROKEN) from None

    def _ask(self, request: dict[str, Any], frame: bytes) -> NDArray[Any]:
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps({**request, "bytes": len(frame)}).encode() + b"\n" + frame)
        process.stdin.flush()
        head = json.loads(_all(process.stdout.readline()))
        if not head:
            raise UnusableImageError(_DAMAGED)
        data = _all(process.stdout.read(head["bytes"]), head["bytes"])
        return np.frombuffer(data, _KINDS[head["kind"]]).reshape(head["shape"])

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = _start()
        return self._process

    def end(self) -> None:
        """Have no process any more."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None


def _start() -> subprocess.Popen[bytes]:
    pipe: IO[bytes] | int = subprocess.PIPE
    # -P: the folder that somebody works in is no place to import from. What decoders say can quote a file.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "consilia.imaging.decoder"],
        stdin=pipe,
        stdout=pipe,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )


def _all(data: bytes, count: int = 1) -> bytes:
    if len(data) < count:
        raise EOFError
    return data


_PROCESS = _DecoderProcess()
os.register_at_fork(after_in_child=_PROCESS.forget)
atexit.register(_PROCESS.end)
