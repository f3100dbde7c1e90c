"""The attributes of a CT image that survive de-identification, each with what its values may be.

The profile's table says what must go. That is not enough: an attribute that it does not list can hold a name as
well, put there by hand or by a broken device. So an attribute stays only if a detector needs it, and only with a
value of a closed set: a number, a date, a code of a list. No free text stays.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

Rule = Callable[[Any], Any]
"""The value to keep, or None to drop the attribute."""

_PARTS = (
    "ABDOMEN ABDOMENPELVIS ANKLE BRAIN BREAST CHEST CHESTABDOMEN CHESTABDPELVIS CSPINE ELBOW EXTREMITY FOOT HAND "
    "HEAD HEADNECK HEART HIP KIDNEY KNEE LEG LIVER LSPINE LUNG NECK NECKCHEST NECKCHESTABDOMEN ORBIT PANCREAS PELVIS "
    "SHOULDER SKULL SPINE TSPINE WHOLEBODY WRIST"
)
_KINDS = "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL VOLUME HELIX HELICAL MPR MIP AVERAGE OTHER"
BODY_PARTS = frozenset(_PARTS.split())
IMAGE_TYPES = frozenset(_KINDS.split())
MAKERS = (
    "Canon",
    "GE",
    "Hitachi",
    "Neusoft",
    "NeuroLogica",
    "Philips",
    "Samsung",
    "Siemens",
    "Toshiba",
    "United Imaging",
)

_OLDEST_YEARS = 89
"""Ages above are so rare that they single a person out; all of them become 90."""


def number(low: float = -1e6, high: float = 1e6) -> Rule:
    """One finite number within a range."""

    def rule(value: Any) -> float | None:
        try:
            found = float(value)
        except (TypeError, ValueError):
            return None
        # nine digits: a decimal string (DS) holds sixteen characters
        return float(f"{found:.9g}") if math.isfinite(found) and low <= found <= high else None

    return rule


def numbers(count: int) -> Rule:
    """Exactly `count` finite numbers."""
    single = number()

    def rule(value: Any) -> list[float] | None:
        if isinstance(value, str | bytes) or not hasattr(value, "__iter__"):
            return None
        found = [single(item) for item in value]
        return None if len(found) != count or None in found else found

    return rule


def whole(low: int, high: int) -> Rule:
    """One whole number within a range."""

    def rule(value: Any) -> int | None:
        found = number(low, high)(value)
        return None if found is None or found != int(found) else int(found)

    return rule


def rounded(low: float, high: float) -> Rule:
    """One number within a range, to the next whole one: the attribute is an integer string (IS)."""

    def rule(value: Any) -> int | None:
        found = number(low, high)(value)
        return None if found is None else round(found)

    return rule


def one_of(*codes: str) -> Rule:
    """One of these codes."""
    allowed = frozenset(codes)
    return lambda value: _code(value) if _code(value) in allowed else None


def _code(value: Any) -> str:
    return value.strip().upper() if isinstance(value, str) else ""


def _age(value: Any) -> str | None:
    """An age string (AS) such as 058Y; above 89 years 090Y."""
    found = re.fullmatch(r"([0-9]{3})([DWMY])", _code(value))
    if found is None:
        return None
    return "090Y" if found[2] == "Y" and int(found[1]) > _OLDEST_YEARS else found[0]


def _image_type(value: Any) -> list[str] | None:
    """Image Type (0008,0008) with unknown values left out; the first two have fixed meanings."""
    values = [value] if isinstance(value, str) else list(value or ())
    known = [_code(item) for item in values]
    if len(known) < 2 or known[0] not in ("ORIGINAL", "DERIVED") or known[1] not in ("PRIMARY", "SECONDARY"):
        return None
    return known[:2] + [item for item in known[2:6] if item in IMAGE_TYPES]


def _maker(value: Any) -> str | None:
    """The maker's name as it is in our list, whatever else the file says."""
    text = _code(value)
    return next((maker for maker in MAKERS if text.startswith(maker.upper())), None)


KEPT: dict[str, Rule] = {
    "ImageType": _image_type,
    "Modality": one_of("CT"),
    "Manufacturer": _maker,
    "BodyPartExamined": one_of(*BODY_PARTS),
    "PatientPosition": one_of("HFS", "HFP", "HFDL", "HFDR", "FFS", "FFP", "FFDL", "FFDR"),
    "Laterality": one_of("L", "R"),
    "ImageLaterality": one_of("L", "R", "B", "U"),
    # Retain Patient Characteristics, as far as the values are of a closed set
    "PatientSex": one_of("M", "F", "O"),
    "PatientAge": _age,
    "PatientSize": number(0.1, 2.8),
    "PatientWeight": number(0.2, 500),
    "SmokingStatus": one_of("YES", "NO", "UNKNOWN"),
    "PregnancyStatus": whole(1, 4),
    # acquisition
    "KVP": number(1, 500),
    "XRayTubeCurrent": rounded(0, 10_000),
    "Exposure": rounded(0, 100_000),
    "ExposureTime": rounded(0, 1_000_000),
    "SliceThickness": number(0, 1000),
    "SpacingBetweenSlices": number(-1000, 1000),
    "GantryDetectorTilt": number(-90, 90),
    "ReconstructionDiameter": number(1, 10_000),
    "DataCollectionDiameter": number(1, 10_000),
    "SpiralPitchFactor": number(0, 100),
    "SeriesNumber": whole(0, 99_999),
    "AcquisitionNumber": whole(0, 99_999),
    "InstanceNumber": whole(0, 99_999),
    # place
    "ImagePositionPatient": numbers(3),
    "ImageOrientationPatient": numbers(6),
    "SliceLocation": number(),
    "PixelSpacing": numbers(2),
    # pixels
    "RescaleSlope": number(),
    "RescaleIntercept": number(),
    "RescaleType": one_of("HU"),
    "PhotometricInterpretation": one_of("MONOCHROME1", "MONOCHROME2"),
    "PixelPaddingValue": whole(-65_536, 65_535),
    "PixelPaddingRangeLimit": whole(-65_536, 65_535),
    "LossyImageCompression": one_of("00", "01"),
}

SHIFTED_DATES = ("StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate")
NEW_UIDS = ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")
