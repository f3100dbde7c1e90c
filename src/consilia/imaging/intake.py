"""One file of a hospital's PACS becomes de-identified slices: checked, decoded, cleaned, written anew.

Pixels are always decoded and written uncompressed: comments inside compressed streams, bits above the stored ones
(old overlays) and whatever trails the pixels do not survive that.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from consilia.errors import UnusableImageError
from consilia.imaging.burned_in import Suspicion, suspect
from consilia.imaging.decoding import Frames
from consilia.imaging.deidentification import Pseudonymiser, deidentify
from consilia.imaging.dicom import (
    CT_IMAGE_STORAGE,
    check_kind,
    check_place,
    check_values,
    padding_of,
    rescale,
    to_hu,
)
from consilia.imaging.dicom_file import parse, quiet_parser
from consilia.imaging.functional_groups import frame_header

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset


@dataclass(frozen=True)
class Place:
    """The new names of a slice, and so where it is kept."""

    patient: str
    study_uid: str
    series_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class Source:
    """What a file is, before its pixels are touched. Original identifiers: they stay in memory."""

    sop_class_uid: str
    sop_instance_uid: str
    frames: int
    places: tuple[Place, ...]
    """One a frame."""
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class CleanSlice:
    """A de-identified slice, ready to be written."""

    place: Place
    data: bytes
    """The whole DICOM file."""
    width: int
    height: int
    suspicion: Suspicion
    removed: Counter[str]


def identify(path: Path, pseudonyms: Pseudonymiser) -> Source:
    """Check a file as far as its header goes.

    Raises:
        UnusableImageError: not a CT image that can be used; the message quotes nothing of the header but sizes.
    """
    with quiet_parser():
        header = parse(path)
        return _identify(header, _frames(header), pseudonyms)


def clean_slices(path: Path, pseudonyms: Pseudonymiser) -> Iterator[CleanSlice]:
    """De-identify a file, frame by frame.

    Raises:
        UnusableImageError: as `identify`, and where pixels or rescale cannot be used.
    """
    with quiet_parser():
        header = parse(path)
        frames = _frames(header)
        source = _identify(header, frames, pseudonyms)
        for index, place in enumerate(source.places):
            flat = header if str(header.SOPClassUID) == CT_IMAGE_STORAGE else frame_header(header, index)
            yield _clean(flat, frames.stored(index), place, pseudonyms)


def _frames(header: FileDataset) -> Frames:
    check_kind(header, enhanced=True)
    frames = Frames(header)
    if frames.count > 1 and str(header.SOPClassUID) == CT_IMAGE_STORAGE:
        raise UnusableImageError(
            f"expected one frame in CT Image Storage, this file has {frames.count}: nobody knows where each lies"
        )
    return frames


def _identify(header: FileDataset, found: Frames, pseudonyms: Pseudonymiser) -> Source:
    for keyword, tag in (
        ("PatientID", "0010,0020"),
        ("StudyInstanceUID", "0020,000D"),
        ("SeriesInstanceUID", "0020,000E"),
    ):
        value = header.get(keyword)
        if not isinstance(value, str) or not value.strip():
            raise UnusableImageError(f"expected a {keyword} ({tag}), the file has none that is a text")
    uid, frames = str(header.SOPInstanceUID), found.count
    places = tuple(
        Place(
            patient=pseudonyms.patient(str(header.PatientID)),
            study_uid=pseudonyms.uid(str(header.StudyInstanceUID)),
            series_uid=pseudonyms.uid(str(header.SeriesInstanceUID)),
            sop_instance_uid=pseudonyms.uid(frame_name(uid, index, frames)),
        )
        for index in range(frames)
    )
    return Source(str(header.SOPClassUID), uid, frames, places, int(header.Columns), int(header.Rows))


def frame_name(sop_instance_uid: str, index: int, frames: int) -> str:
    """What names a frame: of a file with one frame the SOPInstanceUID, else that and the frame's number from 1."""
    return sop_instance_uid if frames == 1 else f"{sop_instance_uid}#{index + 1}"


def _clean(flat: Dataset, stored: NDArray[Any], place: Place, pseudonyms: Pseudonymiser) -> CleanSlice:
    check_values(flat)
    check_place(flat)
    to_hu(stored, flat)  # refuses what cannot be Hounsfield units
    slope, _ = rescale(flat)
    clean = deidentify(flat, pseudonyms)
    clean.header.SOPClassUID = CT_IMAGE_STORAGE
    clean.header.SOPInstanceUID = place.sop_instance_uid
    padding = padding_of(flat)
    if padding is not None:
        clean.header.PixelPaddingValue, clean.header.PixelPaddingRangeLimit = padding
    suspicion = suspect(flat, stored, slope)
    height, width = stored.shape
    data = write_slice(clean.header, stored)
    return CleanSlice(place, data, width, height, suspicion, clean.removed)


def write_slice(header: Dataset, stored: NDArray[Any]) -> bytes:
    """The bytes of a file with this header and these stored values, 16 bits each, explicit little endian."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    signed = bool(stored.min() < 0)
    if stored.min() < -32_768 or stored.max() > (32_767 if signed else 65_535):
        raise UnusableImageError("expected stored values of at most 16 bits, the file has larger ones")
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT_IMAGE_STORAGE)
    meta.MediaStorageSOPInstanceUID = UID(header.SOPInstanceUID)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(Pseudonymiser(b"consilia").uid("implementation"))
    out = io.BytesIO()
    file = FileDataset(out, {}, file_meta=meta, preamble=bytes(128))
    file.update(header)
    file.Rows, file.Columns = stored.shape
    file.SamplesPerPixel, file.PixelRepresentation = 1, int(signed)
    file.BitsAllocated, file.BitsStored, file.HighBit = 16, 16, 15
    if "PixelPaddingValue" in file:
        _fit_padding(file, signed)
    file.PixelData = stored.astype("<i2" if signed else "<u2").tobytes()
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()


def _fit_padding(file: FileDataset, signed: bool) -> None:
    """Padding takes the sign of the pixels (US or SS); what of its range no pixel can have pads nothing."""
    least, most = (-32_768, 32_767) if signed else (0, 65_535)
    value = int(file.PixelPaddingValue)
    limit = int(file.get("PixelPaddingRangeLimit", value))
    low, high = max(least, min(value, limit)), min(most, max(value, limit))
    del file.PixelPaddingValue
    file.pop("PixelPaddingRangeLimit", None)
    if low <= high:
        kind = "SS" if signed else "US"
        file.add_new("PixelPaddingValue", kind, low)
        file.add_new("PixelPaddingRangeLimit", kind, high)
