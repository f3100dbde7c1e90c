"""`python -m consilia.imaging.decoder`: decodes compressed frames in a process that may break.

The decoders are C and C++ and were not written for hostile data: some abort, some take all memory. This process has
limits of its own, takes one frame after another from standard input, and answers on standard output. It is given pixels
and sizes alone, no file and no name.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any, BinaryIO

from consilia.imaging.dicom_file import parser_errors

MEMORY_BYTES = 2 * 2**30
CPU_SECONDS = 60
"""For one frame."""

PLUGINS = {
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "pillow",  # JPEG, 8 bits
    "1.2.840.10008.1.2.4.51": "pillow",
    "1.2.840.10008.1.2.4.57": "gdcm",  # JPEG, lossless
    "1.2.840.10008.1.2.4.70": "gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg",  # JPEG 2000
    "1.2.840.10008.1.2.4.91": "pylibjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg",  # JPEG 2000, high throughput
    "1.2.840.10008.1.2.4.202": "pylibjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg",
}
"""Which decoder of pydicom's is used for a transfer syntax: one, so that every hospital gets the same pixels."""

_LAYOUT = (
    "Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored PixelRepresentation"
)
ATTRIBUTES = tuple(_LAYOUT.split())
"""What a decoder is told."""


def main() -> None:
    """Answer until standard input ends."""
    _limit()
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        frame = sys.stdin.buffer.read(request.pop("bytes"))
        _allow_seconds()
        try:
            _answer(_decode(request, frame), out)
        except parser_errors():
            out.write(b"{}\n")
        out.flush()


def _limit() -> None:
    _set_limit(resource.RLIMIT_AS, MEMORY_BYTES)
    _set_limit(resource.RLIMIT_CORE, 0)


def _allow_seconds() -> None:
    """From now on: the kernel ends this process when it has used them up."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    _set_limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)


def _set_limit(kind: int, value: int) -> None:
    """Never more than what this process was given: that would be refused."""
    _, most = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if most == resource.RLIM_INFINITY else min(value, most), most))


def _decode(request: dict[str, Any], frame: bytes) -> Any:
    """The stored values, (rows, columns)."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.pixels.utils import pixel_array

    header, syntax = Dataset(), request.pop("syntax")
    for keyword, value in request.items():
        setattr(header, keyword, value)
    header.PixelData = encapsulate([frame])
    header.file_meta = FileMetaDataset()
    header.file_meta.TransferSyntaxUID = syntax
    return pixel_array(header, decoding_plugin=PLUGINS[syntax])


def _answer(stored: Any, out: BinaryIO) -> None:
    data = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    head = {"kind": stored.dtype.kind + str(stored.dtype.itemsize), "shape": stored.shape, "bytes": len(data)}
    out.write(json.dumps(head).encode() + b"\n" + data)


if __name__ == "__main__":
    main()
