"""A DICOM file (PS3.10) becomes a data set within limits: a small file can ask a parser for all memory and time.

pydicom reads what lengths and counts in the file say. So it reads through a file that has no more than its bytes and
no more than so many answers, and what it keeps for later is measured before anybody has it converted.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from consilia.errors import UnusableImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

MAX_FILE_BYTES = 256 * 2**20
TOO_LARGE = f"expected at most {MAX_FILE_BYTES >> 20} MiB, the file is larger"
MAX_SEQUENCE_BYTES = 8 * 2**20
"""Of one sequence whose items are not parsed yet; a frame of an enhanced CT needs one or two thousand."""
MAX_ITEMS = 200_000
MAX_ELEMENTS = 300_000
MAX_DEPTH = 64
MAX_VALUE_BYTES = 2**20
"""Of one attribute that is neither a sequence nor bulk: a text of backslashes is a million values."""

_MOST_READS = 800_000
_BULK = frozenset("OB OD OF OL OV OW UN".split())  # noqa: SIM905
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
"""The tag that begins an item (FFFE,E000), little and big endian."""
_NOT_EXPLICIT_LITTLE = {"1.2.840.10008.1.2": (True, True), "1.2.840.10008.1.2.2": (False, False)}
"""Transfer syntaxes, implicit and little endian; all others are explicit little endian (PS3.5 A)."""
_DEFLATED = "1.2.840.10008.1.2.1.99"
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_PYTHON_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Not our own errors, which say what was expected."""


def is_dicom(path: Path) -> bool:
    """Whether the file carries the mark of PS3.10, `DICM` after 128 bytes."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def parser_errors() -> tuple[type[Exception], ...]:
    """What pydicom and the decoders raise on hostile files.

    Their texts may quote the header, patient names included: they are never passed on, hence `from None`.
    """
    from pydicom.errors import BytesLengthException, InvalidDicomError

    return (*_PYTHON_ERRORS, BytesLengthException, InvalidDicomError)


@contextmanager
def quiet_parser() -> Iterator[None]:
    """Turn whatever pydicom and the decoders raise into an `UnusableImageError` that quotes nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values, names among them
            yield
    except parser_errors():
        raise UnusableImageError("expected a DICOM file, this one cannot be parsed") from None


def parse(path: Path, *, pixels: bool = True, only: Sequence[str] = ()) -> FileDataset:
    """Parse a file that is a DICOM file and within the limits; in `quiet_parser` only.

    Args:
        pixels: whether to read on to the pixel data, which come last.
        only: keywords, where nothing else is needed.

    Raises:
        UnusableImageError: it is neither.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.tag import Tag

    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its log lines quote header values too
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnusableImageError(TOO_LARGE)
    with path.open("rb") as plain:
        preamble = plain.read(128)
        if plain.read(4) != b"DICM":
            raise UnusableImageError("expected a DICOM file, the mark DICM is missing")
        file = cast(BinaryIO, _Bounded(plain))
        meta = FileMetaDataset(read_dataset(file, False, True, stop_when=lambda tag, _vr, _n: tag >> 16 != 2))
        syntax = str(meta.get("TransferSyntaxUID") or "")
        if not syntax:
            raise UnusableImageError("expected a TransferSyntaxUID (0002,0010), the file has none")
        if syntax == _DEFLATED:
            file = cast(BinaryIO, _Bounded(io.BytesIO(_inflate(plain))))
        implicit, little = _NOT_EXPLICIT_LITTLE.get(syntax, (False, True))
        stop = None if pixels else lambda tag, _vr, _n: tag in _PIXELS
        tags: list[Any] | None = [Tag(keyword) for keyword in only] or None
        found = read_dataset(file, implicit, little, stop_when=stop, specific_tags=tags)
    check_value(found, "PixelRepresentation")  # pydicom looks at it for the values of other attributes
    _measure(found, [0, 0], 0)
    header = FileDataset(io.BytesIO(), found, preamble, meta, implicit, little)
    header.set_original_encoding(implicit, little, found.original_character_set)
    return header


def check_value(dataset: Dataset, keyword: str) -> None:
    """Refuse a value that cannot be what its VR says.

    Raises:
        UnusableImageError: it cannot.
    """
    from pydicom.tag import Tag

    try:
        dataset.get(keyword)
    except parser_errors():
        tag = Tag(keyword)
        raise UnusableImageError(
            f"expected {keyword} ({tag.group:04X},{tag.element:04X}) as its VR says, it cannot be read so"
        ) from None


class _Bounded:
    """A file to read from that is never asked for more than it has, nor more often than an image needs."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        here = file.tell()
        self._end = file.seek(0, io.SEEK_END)
        file.seek(here)
        self._reads_left = _MOST_READS
        self.tell, self.seek = file.tell, file.seek

    def read(self, count: int = -1) -> bytes:
        """At most what is there: a length of 4 GiB in the file takes no 4 GiB of memory."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise UnusableImageError(
                f"expected at most {MAX_ELEMENTS} attributes and items, the file has more"
            )
        there = max(0, self._end - self._file.tell())
        return self._file.read(there if count < 0 else min(count, there))


def _inflate(file: BinaryIO) -> bytes:
    """The rest of a deflated file (PS3.5 A.5), which may be small and unfold to anything."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = inflater.decompress(file.read(), MAX_FILE_BYTES)
    if inflater.unconsumed_tail:
        raise UnusableImageError(f"expected at most {MAX_FILE_BYTES >> 20} MiB, the file inflates to more")
    return data


def _measure(dataset: Dataset, counts: list[int], depth: int) -> None:
    """Refuse a data set that would need absurd memory once it is converted; `counts` are elements and items so far."""
    if depth > MAX_DEPTH:
        raise UnusableImageError(f"expected sequences at most {MAX_DEPTH} deep, the file has deeper ones")
    for tag in dataset.keys():  # noqa: SIM118 - iterating gives elements, and converting a broken one fails
        raw = dataset.get_item(tag)
        vr = value_representation(raw)
        _count(counts, 0, 1, MAX_ELEMENTS, "attributes")
        data = getattr(raw, "value", None)
        if vr == "SQ":
            if isinstance(data, bytes):
                _count(counts, 1, max(map(data.count, _ITEMS)), MAX_ITEMS, "items of sequences")
                _check_length(data, MAX_SEQUENCE_BYTES)
            for item in dataset[tag].value or ():
                _measure(item, counts, depth + 1)
        elif isinstance(data, bytes) and _BULK.isdisjoint(vr.split()):
            _check_length(data, MAX_VALUE_BYTES)


def value_representation(element: Any) -> str:
    """The kind of an element's value, converted or not, such as SQ or OB or OW (PS3.5 6.2); UN where nobody knows."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    known = getattr(element, "VR", None)
    if known and known != "UN":
        return str(known)
    return str(dictionary_VR(element.tag)) if dictionary_has_tag(element.tag) else "UN"


def _count(counts: list[int], index: int, more: int, limit: int, what: str) -> None:
    counts[index] += more
    if counts[index] > limit:
        raise UnusableImageError(f"expected at most {limit} {what}, the file has more")


def _check_length(data: bytes, limit: int) -> None:
    if len(data) > limit:
        raise UnusableImageError(f"expected at most {limit} bytes in an attribute, the file has {len(data)}")
