"""A CT with somebody in every place that DICOM has, and the search for them in whatever came out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydicom.datadict import DicomDictionary
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from tests.imaging.ct_files import real_ct

NAME, NUMBER, UID_ROOT, DAY, CLOCK = "Winnetou", "47110815", "1.2.276.0.4711.815", "19011213", "231759.471108"
TOKENS = tuple(token.encode() for token in (NAME, NAME.upper(), NUMBER, UID_ROOT, DAY, CLOCK, "1901-12-13"))

_IMAGE = (
    "SOPClassUID Modality Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation PixelData RescaleSlope RescaleIntercept RescaleType NumberOfFrames ImageType "
    "SpecificCharacterSet BurnedInAnnotation ConversionType SecondaryCaptureDeviceManufacturer PixelPaddingValue "
    "PlanarConfiguration PixelPaddingRangeLimit ExtendedOffsetTable ExtendedOffsetTableLengths"
)
_NEEDED = frozenset(_IMAGE.split())
_TEXTS = frozenset("PN LO SH ST LT UT UC UR AE CS".split())  # noqa: SIM905
_VALUES: dict[str, object] = {
    "DA": DAY,
    "DT": f"{DAY}{CLOCK}",
    "TM": CLOCK,
    "AS": "101Y",
    "DS": NUMBER,
    "IS": NUMBER,
    "OB": f"{NAME} {NUMBER} ".encode(),
    "UN": f"{NAME} {NUMBER} ".encode(),
    "UL": int(NUMBER),
    "SL": int(NUMBER),
}


def planted_ct(number: int = 1) -> Any:
    """The real slice with every attribute of the standard filled, sequences included, and private ones and overlays."""
    header = real_ct()
    header.pop("PixelPaddingValue", None)
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", NAME.upper()]
    plant(header, number, depth=0)
    header.PatientID = f"{NAME}-{NUMBER}"
    header.StudyInstanceUID, header.SeriesInstanceUID = f"{UID_ROOT}.1", f"{UID_ROOT}.2"
    header.SOPInstanceUID = f"{UID_ROOT}.3.{number}"
    header.FrameOfReferenceUID = f"{UID_ROOT}.4"
    header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
    header.file_meta.SourceApplicationEntityTitle = NAME.upper()
    header.file_meta.PrivateInformationCreatorUID = f"{UID_ROOT}.5"
    header.file_meta.PrivateInformation = f"{NAME} {NUMBER} ".encode()
    header.preamble = f"{NAME} {NUMBER}".encode().ljust(128, b"\0")
    return header


def plant(header: Dataset, number: int, depth: int) -> None:
    """Fill a data set with the person, in every attribute but those that make it an image."""
    for tag, (vr, _, _, retired, keyword) in DicomDictionary.items():
        if tag >> 16 in (0x0000, 0x0002, 0xFFFE) or not keyword or (depth == 0 and keyword in _NEEDED):
            continue
        element = _element(tag, vr.split(" or ")[0], retired, number, depth)
        if element is not None:
            header.add(element)
    block = header.private_block(0x0009, NAME, create=True)
    block.add_new(0x01, "LO", NAME)
    block.add_new(0x02, "UN", f"{NAME} {NUMBER} ".encode())
    if depth == 0:
        for group in (0x6000, 0x6002, 0x5000):
            header.add(DataElement(Tag(group, 0x0022), "LO", NAME, validation_mode=0))
            header.add(DataElement(Tag(group, 0x3000), "OW", f"{NAME} {NUMBER} ".encode()))


def _element(tag: int, vr: str, retired: str, number: int, depth: int) -> DataElement | None:
    if vr == "SQ":
        if depth > 0:
            return None
        inner = Dataset()
        plant_few(inner)
        return DataElement(tag, "SQ", [inner])
    if vr == "UI":
        return DataElement(tag, "UI", f"{UID_ROOT}.9.{number}", validation_mode=0)
    value = f"{NAME} {NUMBER}" if vr in _TEXTS else _VALUES.get(vr)
    return None if value is None else DataElement(tag, vr, value, validation_mode=0)


def plant_few(inner: Dataset) -> None:
    """What an item of a sequence holds: the person again, and one level deeper."""
    inner.add(DataElement(0x00100010, "PN", NAME))
    inner.add(DataElement(0x00100020, "LO", f"{NAME}-{NUMBER}"))
    inner.add(DataElement(0x00080018, "UI", f"{UID_ROOT}.7", validation_mode=0))
    inner.add(DataElement(0x00080020, "DA", DAY))
    deeper = Dataset()
    deeper.add(DataElement(0x00100010, "PN", NAME))
    inner.add(DataElement(0x00081140, "SQ", [deeper]))


def leaks(folder: Path, *texts: str) -> Iterator[str]:
    """Where the person still is: in names or contents of files below a folder, or in what was printed."""
    for path in sorted(folder.rglob("*")):
        for token in TOKENS:
            if token in path.relative_to(folder).as_posix().encode():
                yield f"{token.decode()} in the name of a file: {path.name}"
            if path.is_file() and token in path.read_bytes():
                yield f"{token.decode()} in {path.relative_to(folder)}"
    for text in texts:
        yield from (
            f"{token.decode()} in the output: {text[:2000]}" for token in TOKENS if token.decode() in text
        )
