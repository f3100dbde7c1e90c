"""An image with nothing of its origin but the pixels and their geometry: what leaves a hospital inside a data set.

Nothing is taken out: a new file is written, and only what is named here gets in. Text that was burned into
the pixels stays: look at the images before you register them.
"""

from __future__ import annotations

import hashlib
import hmac
import io
from dataclasses import dataclass

import numpy as np

from consilia.imaging.cases import LabelledImage

_BODY_PARTS = frozenset({"HEAD", "BRAIN", "CHEST", "LUNG", "NECK", "ABDOMEN", "PELVIS", "SPINE"})


@dataclass(frozen=True)
class Pseudonyms:
    """New names for patients, studies and images. Without `salt` nobody can try out whether a guess fits."""

    salt: bytes

    def name(self, kind: str, original: str) -> str:
        """Such as `patient-0123456789abcdef`: the same in one data set, unlinkable between two."""
        return f"{kind}-{self._digest(kind, original).hex()[:16]}"

    def uid(self, kind: str, original: str) -> str:
        """A UID below 2.25 (PS3.5 B.2)."""
        return f"2.25.{int.from_bytes(self._digest(kind, original)[:16], 'big')}"

    def member_salt(self, name: str) -> bytes:
        """The salt of one member's digest; giving it away tells nothing about the others."""
        return self._digest("member", name)

    def _digest(self, kind: str, original: str) -> bytes:
        return hmac.new(
            self.salt, f"consilia/dataset/v1/{kind}\0{original}".encode(), hashlib.sha256
        ).digest()


def plain_image(image: LabelledImage, pseudonyms: Pseudonyms) -> tuple[str, bytes]:
    """The suffix and the bytes of a new file with the image's pixels: CT as DICOM in whole HU, all else as PNG.

    Raises:
        UnusableImageError: the image changed since it was read.
    """
    if image.window is not None:
        return "dcm", _plain_ct(image, pseudonyms)
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(image.pixels()).save(out, "PNG")
    return "png", out.getvalue()


def _plain_ct(image: LabelledImage, pseudonyms: Pseudonyms) -> bytes:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    from consilia.imaging.dicom import CT_IMAGE_STORAGE, read_ct

    ct = read_ct(image.path)
    instance = pseudonyms.uid("instance", image.image_id)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(CT_IMAGE_STORAGE)
    meta.MediaStorageSOPInstanceUID = UID(instance)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(Pseudonyms(b"consilia").uid("implementation", ""))
    out = io.BytesIO()
    file = FileDataset(out, {}, file_meta=meta, preamble=bytes(128))
    rows, columns = ct.hu.shape
    values: dict[str, object] = {
        "SOPClassUID": CT_IMAGE_STORAGE,
        "SOPInstanceUID": instance,
        "StudyInstanceUID": pseudonyms.uid("study", image.study),
        "SeriesInstanceUID": pseudonyms.uid("series", ct.series_uid or image.study),
        "PatientID": pseudonyms.name("patient", image.patient),
        "PatientName": "",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Consilia: rewritten from pixels and geometry",
        "Modality": "CT",
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL"],
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 1,
        "RescaleIntercept": 0,
        "RescaleSlope": 1,
        "RescaleType": "HU",
        "PixelData": np.clip(np.rint(ct.hu), -32768, 32767).astype("<i2").tobytes(),
    }
    if ct.body_part.upper() in _BODY_PARTS:
        values["BodyPartExamined"] = ct.body_part.upper()
    if ct.spacing_mm:
        values["PixelSpacing"] = [round(mm, 6) for mm in ct.spacing_mm]
    if ct.orientation and ct.position_mm:
        values["ImageOrientationPatient"] = [round(cosine, 6) for cosine in ct.orientation]
        values["ImagePositionPatient"] = [round(mm, 4) for mm in ct.position_mm]
    for keyword, value in values.items():
        setattr(file, keyword, value)
    file.save_as(out, enforce_file_format=True)
    return out.getvalue()
