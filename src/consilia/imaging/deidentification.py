"""De-identify a CT image after PS3.15 Annex E: Basic Profile, Retain Patient Characteristics, Clean Pixel Data,
and dates shifted per patient (docs/deidentification.md says what that promises, and what it does not)."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import TYPE_CHECKING

from consilia.imaging.confidentiality import EDITION, METHODS, table
from consilia.imaging.dicom_file import value_representation
from consilia.imaging.kept import KEPT, NEW_UIDS, SHIFTED_DATES

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

KEY_BYTES = 32
_LONGEST_SHIFT_DAYS = 3650
_REWRITTEN = (
    "Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation PixelData "
    "SOPClassUID SpecificCharacterSet PatientID PatientName"
)
_WRITTEN = frozenset(_REWRITTEN.split())
"""Not removed: written anew with another value, or the same by necessity."""
_EMPTY = (
    "PatientBirthDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
    "PositionReferenceIndicator",
)
"""Type 2 in every image (PS3.3 A.3): there, without a value."""


@dataclass(frozen=True)
class Pseudonymiser:
    """New names and dates that hang on a hospital's secret: the same in every import, and for nobody to confirm."""

    key: bytes = field(repr=False)

    def uid(self, original: str) -> str:
        """A UID below 2.25 (PS3.5 B.2): the same for every mention of the original."""
        digest = bytearray(self._digest("uid", original)[:16])
        digest[6] = (
            digest[6] & 0x0F | 0x80
        )  # a UUID of version 8, RFC 9562: the kind that is not drawn at random
        digest[8] = digest[8] & 0x3F | 0x80
        return f"2.25.{int.from_bytes(digest, 'big')}"

    def patient(self, patient_id: str) -> str:
        """Such as `patient-0123456789abcdef`."""
        return f"patient-{self._digest('patient', patient_id.strip()).hex()[:16]}"

    def shift(self, day: str, patient_id: str) -> str | None:
        """A DICOM date, earlier by a number of days that is the patient's own; None where it is no date."""
        try:
            found = date.fromisoformat(f"{day[:4]}-{day[4:6]}-{day[6:8]}") if len(day) == 8 else None
        except ValueError:
            return None
        if found is None or found.year < 1900:
            return None
        drawn = int.from_bytes(self._digest("days", patient_id.strip())[:8], "big")
        return f"{found - timedelta(days=1 + drawn % _LONGEST_SHIFT_DAYS):%Y%m%d}"

    def name(self, kind: str, original: str) -> str:
        """Another name, 16 hex digits, for what is neither patient nor UID."""
        return self._digest(kind, original).hex()[:16]

    def _digest(self, kind: str, original: str) -> bytes:
        message = f"consilia/deidentification/v1/{kind}\0{original}".encode("utf-8", "surrogatepass")
        return hmac.new(self.key, message, hashlib.sha256).digest()


@dataclass(frozen=True)
class Deidentified:
    """A header without its person, and what was taken out: names of attributes and numbers, no values."""

    header: Dataset
    removed: Counter[str]


def deidentify(header: Dataset, pseudonyms: Pseudonymiser) -> Deidentified:
    """A new header with what may stay of this one; the caller adds the pixels.

    Args:
        header: a CT image with StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID and PatientID.
    """
    from pydicom.dataset import Dataset

    clean, patient_id = Dataset(), str(header.PatientID)
    for keyword, rule in KEPT.items():
        value = rule(header.get(keyword))
        if value is not None:
            setattr(clean, keyword, value)
    for keyword in SHIFTED_DATES:
        day = pseudonyms.shift(str(header.get(keyword) or ""), patient_id)
        if day is not None:
            setattr(clean, keyword, day)
    for keyword in NEW_UIDS:
        if header.get(keyword):
            setattr(clean, keyword, pseudonyms.uid(str(header.get(keyword))))
    removed = _removed(header, frozenset(clean.dir()) | _WRITTEN)
    for keyword in _EMPTY:
        setattr(clean, keyword, "")
    _mark(clean, pseudonyms.patient(patient_id))
    return Deidentified(clean, removed)


def _mark(clean: Dataset, patient: str) -> None:
    from pydicom.dataset import Dataset

    clean.PatientID = clean.PatientName = patient
    clean.SpecificCharacterSet = "ISO_IR 192"
    clean.PatientIdentityRemoved = "YES"
    clean.DeidentificationMethod = f"Consilia: {EDITION} Annex E, and no free text"
    codes = []
    for value, meaning in METHODS:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
        codes.append(code)
    clean.DeidentificationMethodCodeSequence = codes
    clean.LongitudinalTemporalInformationModified = "MODIFIED"
    clean.BurnedInAnnotation = "NO"
    clean.setdefault("StudyDate", "")


def _removed(header: Dataset, kept: frozenset[str]) -> Counter[str]:
    """Count what goes, sequences with everything inside them; a private attribute's name is itself private."""
    counts: Counter[str] = Counter()
    for tag in header.keys():  # noqa: SIM118 - iterating gives elements, and converting a broken one fails
        keyword = _keyword(tag)
        if tag.is_private:
            counts["private attributes"] += 1
        elif not keyword:
            counts["overlays, curves and attributes outside the dictionary"] += 1
        elif keyword not in kept:
            action = table()[tag].basic if tag in table() else "not needed"
            counts[f"({tag.group:04X},{tag.element:04X}) {keyword}: {action}"] += 1
        for item in _items(header, tag):
            counts += _removed(item, frozenset())
    return counts


def _keyword(tag: BaseTag) -> str:
    from pydicom.datadict import keyword_for_tag

    repeating = tag.group >> 8 in (0x50, 0x60)
    return "" if repeating else str(keyword_for_tag(tag))


def _items(header: Dataset, tag: BaseTag) -> Iterable[Dataset]:
    return (header[tag].value or ()) if value_representation(header.get_item(tag)) == "SQ" else ()
