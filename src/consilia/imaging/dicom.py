"""CT slices from DICOM files: checked, decoded by pydicom and pylibjpeg, rescaled to Hounsfield units."""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import UnusableImageError
from consilia.imaging.acquisition import acquisition_of
from consilia.imaging.cases import Acquisition

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT, and its legacy converted form: many frames a file, with their places in functional groups."""
_DEFLATED = "1.2.840.10008.1.2.1.99"

MAX_PIXELS = 4096 * 4096
"""Rows x Columns x frames beyond this are refused before decoding: the header alone can ask for terabytes."""
MAX_FRAMES = 4096
MAX_FILE_PIXELS = 2**28
"""All frames of a file together: about a thousand of 512 x 512."""
MAX_FILE_BYTES = 256 * 2**20

AIR_HU = -1024.0
"""What padding outside the reconstruction circle becomes."""


@dataclass(frozen=True, eq=False)
class CtSlice:
    """One axial slice and the part of its header that the readers need."""

    hu: NDArray[np.float32]
    """(rows, columns), Hounsfield units."""
    sop_instance_uid: str
    series_uid: str
    study_uid: str
    patient_id: str
    """As in the header, (0010,0020): make it a `patient_key` at once."""
    body_part: str
    spacing_mm: tuple[float, float] | None
    """Between rows, between columns."""
    orientation: tuple[float, ...]
    """Direction cosines of a row and of a column (0020,0037); empty where absent."""
    position_mm: tuple[float, ...]
    """The centre of the first pixel (0020,0032); empty where absent."""
    acquisition: Acquisition
    burned_in: bool = False
    """Burned In Annotation (0028,0301) is YES."""

    @property
    def level_mm(self) -> float:
        """Where the slice lies along the normal of its plane; 0 where the header does not tell."""
        if not self.orientation or not self.position_mm:
            return 0.0
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return float(normal @ np.asarray(self.position_mm))


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

    python = (ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError)
    more = (NotImplementedError, RuntimeError, TypeError, ValueError, struct.error, zlib.error)
    return (*python, *more, BytesLengthException, InvalidDicomError)


@contextmanager
def quiet_parser() -> Iterator[None]:
    """Turn whatever pydicom and the decoders raise into an `UnusableImageError` that quotes nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's warnings quote header values, names among them
            yield
    except parser_errors():
        raise UnusableImageError("expected a DICOM file, this one cannot be parsed") from None


def read_ct(path: Path) -> CtSlice:
    """Read one CT slice of any transfer syntax that pydicom and pylibjpeg decode.

    Raises:
        UnusableImageError: not a single-frame CT image with a usable rescale; the message is the reason and
            quotes nothing of the header but sizes.
    """
    with quiet_parser():
        header = parse(path)
        check_kind(header)
        frames = check_size(header)
        if frames != 1:
            raise UnusableImageError(f"expected one frame a file, this one has {frames}: import it")
        slope, intercept = rescale(header)
        stored = decode(header, 0)
        hu = _to_hu(stored, slope, intercept, header)
        check_hu(hu)
        return _slice(header, hu)


def parse(path: Path) -> FileDataset:
    """Parse a file that is a DICOM file and within the limits; in `quiet_parser` only.

    Raises:
        UnusableImageError: it is neither.
    """
    from pydicom import dcmread

    check_file(path)
    return dcmread(path)


def check_file(path: Path) -> None:
    """Refuse a file that is no DICOM file or beyond the limits, before anything of it is parsed.

    Raises:
        UnusableImageError: it is one of these.
    """
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)  # its log lines quote header values too
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UnusableImageError(f"expected at most {MAX_FILE_BYTES >> 20} MiB, the file is larger")
    if not is_dicom(path):
        raise UnusableImageError("expected a DICOM file, the mark DICM is missing")
    _check_deflated(path)


def _check_deflated(path: Path) -> None:
    """Refuse a deflated data set that unfolds beyond the file limit: pydicom would inflate it whole."""
    with path.open("rb") as file:
        start = file.read(144)
        if start[132:138] != b"\x02\x00\x00\x00UL":
            return
        meta = file.read(struct.unpack("<I", start[140:144])[0])
        if _DEFLATED.encode() not in meta:
            return
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        inflater.decompress(file.read(), MAX_FILE_BYTES)
        if inflater.unconsumed_tail:
            raise UnusableImageError(
                f"expected at most {MAX_FILE_BYTES >> 20} MiB, the file inflates to more"
            )


def check_kind(header: FileDataset, *, enhanced: bool = False) -> None:
    """Refuse what is no axial CT image; many frames are welcome where `enhanced`.

    Raises:
        UnusableImageError: it is none.
    """
    classes = (CT_IMAGE_STORAGE, *(ENHANCED_CT_STORAGE if enhanced else ()))
    if header.get("Modality") != "CT":
        raise UnusableImageError("expected modality CT (0008,0060), the file has another")
    if header.get("SOPClassUID") not in classes:
        raise UnusableImageError("expected CT Image Storage (0008,0016), the file has another SOP class")
    if "LOCALIZER" in (header.get("ImageType") or ()):
        raise UnusableImageError("expected an axial slice, the file is a localizer (0008,0008)")
    if not header.get("SOPInstanceUID"):
        raise UnusableImageError("expected a SOPInstanceUID (0008,0018), the file has none")
    if "PixelData" not in header:
        raise UnusableImageError("expected pixel data (7FE0,0010), the file has none")
    if header.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnusableImageError("expected one grey channel (0028,0004), the file has colours")


def check_size(header: FileDataset) -> int:
    """Check what header and compressed frames claim before anything is decoded; the number of frames.

    Raises:
        UnusableImageError: a claim is absurd, or there are colours.
    """
    rows, columns = _whole(header, "Rows"), _whole(header, "Columns")
    frames = _whole(header, "NumberOfFrames") if header.get("NumberOfFrames") is not None else 1
    _check_claim(rows, columns, frames)
    if _whole(header, "SamplesPerPixel") != 1:
        raise UnusableImageError("expected one grey channel (0028,0002), the file has colours")
    if header.file_meta.TransferSyntaxUID.is_encapsulated:
        for frame in _encoded_frames(header, frames):
            claim = _codestream_size(frame)
            if claim is not None:
                _check_claim(*claim, 1)
    return frames


def _encoded_frames(header: FileDataset, frames: int) -> Iterator[bytes]:
    from pydicom.encaps import generate_frames

    yield header.PixelData  # whatever the item tags say, as far as a decoder may look
    if frames > 1:
        yield from generate_frames(header.PixelData, number_of_frames=frames)


def _check_claim(rows: int, columns: int, frames: int) -> None:
    if rows < 1 or columns < 1 or frames < 1:
        raise UnusableImageError(f"expected an image, the header claims {rows} x {columns} x {frames} pixels")
    if rows * columns > MAX_PIXELS or frames > MAX_FRAMES or rows * columns * frames > MAX_FILE_PIXELS:
        raise UnusableImageError(
            f"expected at most {MAX_PIXELS} pixels, the file claims {rows} x {columns} x {frames}"
        )


def _whole(header: FileDataset, keyword: str) -> int:
    value = header.get(keyword)
    if not isinstance(value, int):
        raise UnusableImageError(f"expected a whole number as {keyword}, the file has none")
    return int(value)


def _codestream_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns that the compressed frame itself claims; None for codecs without such a claim (RLE).

    A decoder allocates what the codestream says, not what the header says: a bomb can hide there.
    """
    siz = data.find(b"\xff\x4f\xff\x51", 0, 4096)  # JPEG 2000: SOC, SIZ (ISO 15444-1 A.5.1)
    if siz >= 0 and len(data) >= siz + 24:
        x_end, y_end, x_start, y_start = struct.unpack(">IIII", data[siz + 8 : siz + 24])
        return y_end - y_start, x_end - x_start
    soi = data.find(b"\xff\xd8\xff", 0, 4096)  # JPEG and JPEG-LS: SOI, then segments up to a frame header
    at = soi + 2
    while soi >= 0 and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], struct.unpack(">H", data[at + 2 : at + 4])[0]
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = struct.unpack(">HH", data[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    return None


def rescale(header: Dataset) -> tuple[float, float]:
    """Slope and intercept (0028,1053), (0028,1052); without them the stored values mean nothing.

    Raises:
        UnusableImageError: one is missing or no number, the slope is 0, or the unit is not HU (0028,1054).
    """
    if str(header.get("RescaleType") or "HU").strip().upper() != "HU":
        raise UnusableImageError("expected a rescale to HU (0028,1054), the file has another unit")
    slope, intercept = _number(header.get("RescaleSlope")), _number(header.get("RescaleIntercept"))
    if slope is None or intercept is None or slope == 0.0:
        raise UnusableImageError(
            "expected a rescale to HU (0028,1052-1053), it is missing, zero or no number"
        )
    return slope, intercept


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def decode(header: FileDataset, index: int) -> NDArray[Any]:
    """The stored values of one frame, (rows, columns).

    Raises:
        UnusableImageError: they do not match the header, or cannot be decoded.
    """
    from pydicom.pixels.utils import pixel_array

    try:
        stored = pixel_array(header, index=index)
    except parser_errors():
        raise UnusableImageError(
            "expected pixel data that match the header, they are damaged, cut short or in an unknown encoding"
        ) from None
    if stored.shape != (header.Rows, header.Columns):
        raise UnusableImageError(
            f"expected {header.Rows} x {header.Columns} pixels, the decoder gave {stored.shape}"
        )
    return np.asarray(stored)


def check_hu(hu: NDArray[np.float32]) -> None:
    """Refuse what cannot be Hounsfield units: a slice of a person holds air or water, and no 100 000 HU.

    Raises:
        UnusableImageError: the rescale in the header is wrong.
    """
    low, high = float(hu.min()), float(hu.max())
    if low > 500.0 or high < -1100.0 or low < -40_000.0 or high > 100_000.0:
        raise UnusableImageError(
            f"expected Hounsfield units after the rescale (0028,1052-1053), got {low:.0f} to {high:.0f}"
        )


def _to_hu(stored: NDArray[Any], slope: float, intercept: float, header: FileDataset) -> NDArray[np.float32]:
    """HU = stored x slope + intercept, and air where the scanner padded (0028,0120), (0028,0121).

    MONOCHROME1 asks a viewer to show low values white. The rescaled values are HU all the same, and the
    window works on HU: inverting here would turn bone into air.
    """
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = _number(header.get("PixelPaddingValue"))
    if padding is not None:
        limit = _number(header.get("PixelPaddingRangeLimit"))
        low, high = sorted((padding, padding if limit is None else limit))
        hu[(stored >= low) & (stored <= high)] = AIR_HU
    return hu


def _slice(header: FileDataset, hu: NDArray[np.float32]) -> CtSlice:
    spacing = _numbers(header.get("PixelSpacing"), 2)
    return CtSlice(
        hu=hu,
        sop_instance_uid=str(header.SOPInstanceUID),
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        patient_id=str(header.get("PatientID") or "").strip(),
        body_part=str(header.get("BodyPartExamined") or ""),
        spacing_mm=(spacing[0], spacing[1]) if spacing and min(spacing) > 0 else None,
        orientation=_numbers(header.get("ImageOrientationPatient"), 6),
        position_mm=_numbers(header.get("ImagePositionPatient"), 3),
        acquisition=acquisition_of(header),
        burned_in=str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES",
    )


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    """`count` finite numbers, or nothing."""
    try:
        numbers = tuple(float(number) for number in value)
    except (TypeError, ValueError):
        return ()
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()
