"""How an image was made, from a DICOM header: what decides which images can hide one another."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import TYPE_CHECKING, Any

from consilia.imaging.cases import Acquisition

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

AXIS_COSINE = 0.9
"""A slice within about 26 degrees of an axis is named after it: gantries tilt."""

_DAYS = {"D": 1.0, "W": 7.0, "M": 365.25 / 12, "Y": 365.25}
_AGE = re.compile(r"([0-9]{3})([DWMY])")
_DATE = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})")


def acquisition_of(header: Dataset) -> Acquisition:
    """Read it; what is missing or malformed stays empty, since no image is refused for it."""
    thickness = _number(header.get("SliceThickness"))
    return Acquisition(
        modality=_word(header.get("Modality")).upper(),
        body_part=_word(header.get("BodyPartExamined")).upper(),
        manufacturer=_word(header.get("Manufacturer")),
        model=_word(header.get("ManufacturerModelName")),
        plane=plane_of(header.get("ImageOrientationPatient")) or _word(header.get("ViewPosition")).upper(),
        slice_thickness_mm=thickness if thickness and thickness > 0 else None,
        patient_age_years=_age_years(header),
    )


def plane_of(cosines: Any) -> str:
    """The plane of a slice from the direction cosines of its rows and columns (0020,0037); empty without them."""
    try:
        row_x, row_y, row_z, column_x, column_y, column_z = (float(value) for value in cosines)
    except (TypeError, ValueError):
        return ""
    normal = (
        row_y * column_z - row_z * column_y,
        row_z * column_x - row_x * column_z,
        row_x * column_y - row_y * column_x,
    )
    names = ("sagittal", "coronal", "axial")
    name, cosine = max(zip(names, map(abs, normal), strict=True), key=lambda pair: pair[1])
    return name if cosine >= AXIS_COSINE else "oblique"


def _age_years(header: Dataset) -> float | None:
    """Patient's Age (0010,1010), or else the years between birth and study."""
    age = _AGE.fullmatch(_word(header.get("PatientAge")))
    if age:
        return int(age[1]) * _DAYS[age[2]] / 365.25
    born, seen = _date(header.get("PatientBirthDate")), _date(header.get("StudyDate"))
    if born is None or seen is None or seen < born:
        return None
    return (seen - born).days / 365.25


def _date(value: Any) -> date | None:
    parts = _DATE.fullmatch(_word(value).replace(".", ""))
    try:
        return date(int(parts[1]), int(parts[2]), int(parts[3])) if parts else None
    except ValueError:
        return None


def _word(value: Any) -> str:
    return " ".join(str(value).split()) if isinstance(value, str) else ""


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
