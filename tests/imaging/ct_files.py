"""CT files for tests: small and real (pydicom's), with whatever is to be tried in their headers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.uid import generate_uid


def real_ct(name: str = "CT_small.dcm") -> Any:
    """A CT that comes with pydicom."""
    return pydicom.dcmread(str(get_testdata_file(name, download=False)))


def ct(path: Path, pixels: NDArray[np.uint16] | None = None, **changes: object) -> Path:
    """A CT that can be imported, some attributes changed (None deletes); its UID is new."""
    header = real_ct()
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    if pixels is not None:
        header.Rows, header.Columns = pixels.shape
        header.PixelData, header.PixelRepresentation = pixels.astype("<u2").tobytes(), 0
        header.pop("PixelPaddingValue", None)
        header.pop("SmallestImagePixelValue", None)
        header.pop("LargestImagePixelValue", None)
    for keyword, value in changes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)
    return path


def item(**values: object) -> Dataset:
    """An item of a sequence."""
    found = Dataset()
    for keyword, value in values.items():
        setattr(found, keyword, value)
    return found


def enhanced_ct(path: Path, frames: int = 3) -> Path:
    """An enhanced CT: the real slice several times, one millimetre apart, a mark of its own in each frame."""
    header = real_ct()
    pixels = np.stack([header.pixel_array.copy() for _ in range(frames)])
    for index in range(frames):
        pixels[index, 0, 0] = index
    header.SOPClassUID = header.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    header.ImageType, header.NumberOfFrames = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], frames
    header.PixelData = pixels.tobytes()
    measures = item(PixelSpacing=list(header.PixelSpacing), SliceThickness=1)
    values = item(
        RescaleIntercept=header.RescaleIntercept, RescaleSlope=header.RescaleSlope, RescaleType="HU"
    )
    orientation = item(ImageOrientationPatient=list(header.ImageOrientationPatient))
    shared = item(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[orientation],
        PixelValueTransformationSequence=[values],
    )
    header.SharedFunctionalGroupsSequence = [shared]
    header.PerFrameFunctionalGroupsSequence = [
        item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, index])]) for index in range(frames)
    ]
    for keyword in (
        "PixelSpacing",
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "RescaleIntercept",
        "RescaleSlope",
        "PixelPaddingValue",
    ):
        delattr(header, keyword)
    header.save_as(path)
    return path
