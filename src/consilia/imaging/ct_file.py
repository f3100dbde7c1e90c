"""Write one phantom slice as a CT Image Storage file (PS3.3 A.3, CT Image IOD)."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.imaging.dicom import CT_IMAGE_STORAGE

_INTERCEPT_HU = -1024


@dataclass(frozen=True)
class Scanner:
    """A CT scanner and the protocol it runs. Makers are invented; the numbers are of real head protocols."""

    manufacturer: str
    model: str
    matrix: int
    """Rows and columns of the image."""
    spacing_mm: float
    kernel: str
    cutoff_per_mm: float
    """Where the kernel ends: sharp ones show edges and noise, smooth ones neither."""
    photons: float
    """Per ray before the patient: the dose. Half of it is 1.4 times the noise."""
    slice_thickness_mm: float
    hardening: float
    """What the scanner's correction leaves of the beam hardening by bone, 0..1."""


@dataclass(frozen=True)
class SliceIdentity:
    """Which slice of which phantom patient."""

    patient_id: str
    number: int
    """From 1, bottom to top."""
    level_mm: float
    spacing_between_mm: float


def uid(*parts: object) -> str:
    """A UID below 2.25 (PS3.5 B.2) that follows from its parts: the same phantom gives the same files."""
    digest = hashlib.sha256("/".join(("consilia/phantom/v1", *map(str, parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def study_uid(patient_id: str) -> str:
    """The UID of a phantom patient's only study."""
    return uid(patient_id, "study")


def write_ct_file(path: Path, hu: NDArray[np.float32], scanner: Scanner, identity: SliceIdentity) -> None:
    """Write HU of shape (matrix, matrix) with 12 bits a pixel, rescale slope 1 and intercept -1024."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    patient, instance = identity.patient_id, uid(identity.patient_id, identity.number)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT_IMAGE_STORAGE)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(uid("implementation"))
    file = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    for keyword, value in (
        _patient_and_study(patient) | _equipment(scanner) | _plane(scanner, identity) | _pixels(scanner, hu)
    ).items():
        setattr(file, keyword, value)
    file.SOPInstanceUID = instance
    file.save_as(path, enforce_file_format=True)


def _patient_and_study(patient: str) -> dict[str, object]:
    return {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "PatientName": f"Phantom^{patient}",
        "PatientID": patient,
        "PatientBirthDate": "",
        "PatientSex": "O",
        "StudyInstanceUID": study_uid(patient),
        "StudyID": "1",
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "ContentDate": "20260101",
        "ContentTime": "120000",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "SeriesInstanceUID": uid(patient, "series"),
        "SeriesNumber": 1,
        "AcquisitionNumber": 1,
        "SeriesDescription": "Simulated head, no person",
        "FrameOfReferenceUID": uid(patient, "frame"),
        "PositionReferenceIndicator": "",
        "Modality": "CT",
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        "BodyPartExamined": "HEAD",
        "PatientPosition": "HFS",
        "QualityControlImage": "YES",
        "BurnedInAnnotation": "NO",
    }


def _equipment(scanner: Scanner) -> dict[str, object]:
    return {
        "Manufacturer": scanner.manufacturer,
        "ManufacturerModelName": scanner.model,
        "KVP": 120,
        "ConvolutionKernel": scanner.kernel,
        "SliceThickness": scanner.slice_thickness_mm,
        "ReconstructionDiameter": round(scanner.matrix * scanner.spacing_mm, 3),
    }


def _plane(scanner: Scanner, identity: SliceIdentity) -> dict[str, object]:
    corner_mm = -round(scanner.matrix // 2 * scanner.spacing_mm, 4)
    return {
        "InstanceNumber": identity.number,
        "ImagePositionPatient": [corner_mm, corner_mm, round(identity.level_mm, 3)],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "SliceLocation": round(identity.level_mm, 3),
        "SpacingBetweenSlices": round(identity.spacing_between_mm, 3),
        "PixelSpacing": [scanner.spacing_mm, scanner.spacing_mm],
    }


def _pixels(scanner: Scanner, hu: NDArray[np.float32]) -> dict[str, object]:
    stored = np.clip(np.rint(hu) - _INTERCEPT_HU, 0, 4095).astype("<u2")
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": scanner.matrix,
        "Columns": scanner.matrix,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
        "RescaleIntercept": _INTERCEPT_HU,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "WindowCenter": 40,
        "WindowWidth": 80,
        "PixelData": stored.tobytes(),
    }
