"""CT slices from DICOM files: checked, decoded, rescaled to Hounsfield units."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import UnusableImageError
from consilia.imaging.acquisition import acquisition_of
from consilia.imaging.cases import Acquisition
from consilia.imaging.decoding import Frames
from consilia.imaging.dicom_file import check_value, parse, quiet_parser
from consilia.imaging.kept import KEPT, NEW_UIDS, SHIFTED_DATES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
ENHANCED_CT_STORAGE = ("1.2.840.10008.5.1.4.1.1.2.1", "1.2.840.10008.5.1.4.1.1.2.2")
"""Enhanced CT, and its legacy converted form: many frames a file, with their places in functional groups."""

AIR_HU = -1024.0
"""What padding outside the reconstruction circle becomes."""

_OTHERS = (
    "PatientID PatientBirthDate ManufacturerModelName ViewPosition SOPClassUID BurnedInAnnotation ConversionType "
    "SecondaryCaptureDeviceManufacturer NumberOfFrames Rows Columns SamplesPerPixel BitsAllocated BitsStored HighBit "
    "PixelRepresentation"
)
_READ = (*KEPT, *NEW_UIDS, *SHIFTED_DATES, *_OTHERS.split())
_BONE_HU = 1000.0
_SPACING_MM = (0.01, 20.0)
_COSINE_ERROR = 0.02


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


def read_ct(path: Path) -> CtSlice:
    """Read one CT slice of any transfer syntax that is decoded here (docs/imaging.md).

    Raises:
        UnusableImageError: not a single-frame CT image with a usable rescale; the message is the reason and
            quotes nothing of the header but sizes.
    """
    with quiet_parser():
        header = parse(path)
        check_kind(header)
        frames = Frames(header)
        if frames.count != 1:
            raise UnusableImageError(f"expected one frame a file, this one has {frames.count}: import it")
        check_place(header)
        return _slice(header, to_hu(frames.stored(0), header))


def check_values(header: Dataset) -> None:
    """Refuse a file that has a needed value in a form that its VR cannot have.

    Raises:
        UnusableImageError: it has one.
    """
    for keyword in _READ:
        check_value(header, keyword)


def check_kind(header: FileDataset, *, enhanced: bool = False) -> None:
    """Refuse what is no axial CT image; many frames are welcome where `enhanced`.

    Raises:
        UnusableImageError: it is none.
    """
    check_values(header)
    classes = (CT_IMAGE_STORAGE, *(ENHANCED_CT_STORAGE if enhanced else ()))
    if _text(header, "Modality") != "CT":
        raise UnusableImageError("expected modality CT (0008,0060), the file has another")
    if _text(header, "SOPClassUID") not in classes:
        raise UnusableImageError("expected CT Image Storage (0008,0016), the file has another SOP class")
    if "LOCALIZER" in image_type(header):
        raise UnusableImageError("expected an axial slice, the file is a localizer (0008,0008)")
    if not _text(header, "SOPInstanceUID"):
        raise UnusableImageError("expected a SOPInstanceUID (0008,0018), the file has none")
    if "PixelData" not in header:
        raise UnusableImageError("expected pixel data (7FE0,0010), the file has none")
    if _text(header, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise UnusableImageError("expected one grey channel (0028,0004), the file has colours")


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return value if isinstance(value, str) else ""


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


def to_hu(stored: NDArray[Any], header: Dataset) -> NDArray[np.float32]:
    """HU = stored x slope + intercept, and air where the scanner padded (0028,0120), (0028,0121).

    MONOCHROME1 asks a viewer to show low values white. The rescaled values are HU all the same, and the
    window works on HU: inverting here would turn bone into air.

    Raises:
        UnusableImageError: there is no usable rescale, or what comes out cannot be HU.
    """
    slope, intercept = rescale(header)
    hu = stored.astype(np.float32) * np.float32(slope) + np.float32(intercept)
    padding = padding_of(header)
    if padding is None:
        _check_hu(hu)
        return hu
    padded = (stored >= padding[0]) & (stored <= padding[1])
    _check_hu(hu[~padded])
    hu[padded] = AIR_HU
    return hu


def padding_of(header: Dataset) -> tuple[int, int] | None:
    """The lowest and the highest stored value that pad (0028,0120), (0028,0121); None where none do.

    Scanners write the value of signed pixels as if they were unsigned, and the other way round: 63536 is -2000.

    Raises:
        UnusableImageError: there is a value, and it is no number.
    """
    if header.get("PixelPaddingValue") is None:
        return None
    ends = [header.PixelPaddingValue]
    if header.get("PixelPaddingRangeLimit") is not None:
        ends.append(header.PixelPaddingRangeLimit)
    numbers = [_number(end) for end in ends]
    if any(number is None or not -65_536 <= number <= 65_536 for number in numbers):
        raise UnusableImageError(
            "expected numbers as Pixel Padding Value (0028,0120-0121), the file has others"
        )
    low = -32_768 if header.get("PixelRepresentation") == 1 else 0
    values = [(round(number or 0.0) - low) % 65_536 + low for number in numbers]
    return min(values), max(values)


def _check_hu(hu: NDArray[np.float32]) -> None:
    """Refuse what cannot be Hounsfield units of a person, who has fat or air wherever there is bone.

    The usual mistake is an intercept of 0: air becomes water, and nothing is lighter.
    """
    low, high = (float(hu.min()), float(hu.max())) if hu.size else (AIR_HU, AIR_HU)
    possible = -40_000.0 <= low <= 500.0 and -1100.0 <= high <= 100_000.0
    if not possible or (low >= 0.0 and high >= _BONE_HU):
        raise UnusableImageError(
            f"expected Hounsfield units after the rescale (0028,1052-1053), got {low:.0f} to {high:.0f}"
        )


def check_place(header: Dataset) -> None:
    """Refuse a pixel's size or a plane that cannot be; without either an image can be used.

    Raises:
        UnusableImageError: Pixel Spacing is no part of a human's size, or the cosines are no two directions.
    """
    spacing = _numbers(header.get("PixelSpacing"), 2)
    if spacing and not all(_SPACING_MM[0] <= mm <= _SPACING_MM[1] for mm in spacing):
        raise UnusableImageError(
            f"expected a Pixel Spacing (0028,0030) of {_SPACING_MM[0]} to {_SPACING_MM[1]} mm, the file has another"
        )
    cosines = np.array(_numbers(header.get("ImageOrientationPatient"), 6)).reshape(-1, 3)
    if len(cosines) and np.abs(cosines @ cosines.T - np.eye(2)).max() > _COSINE_ERROR:
        raise UnusableImageError(
            "expected two directions at a right angle (0020,0037), the file has other numbers"
        )


def image_type(header: Dataset) -> tuple[str, ...]:
    """The values of Image Type (0008,0008), upper case; none where they are no texts."""
    values = header.get("ImageType") or ()
    values = (values,) if isinstance(values, str) else values
    if not isinstance(values, Iterable):
        return ()
    return tuple(str(value).strip().upper() for value in values)


def _slice(header: FileDataset, hu: NDArray[np.float32]) -> CtSlice:
    spacing = _numbers(header.get("PixelSpacing"), 2)
    return CtSlice(
        hu=hu,
        sop_instance_uid=str(header.SOPInstanceUID),
        series_uid=str(header.get("SeriesInstanceUID") or ""),
        study_uid=str(header.get("StudyInstanceUID") or ""),
        patient_id=str(header.get("PatientID") or "").strip(),
        body_part=str(header.get("BodyPartExamined") or ""),
        spacing_mm=(spacing[0], spacing[1]) if spacing else None,
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
