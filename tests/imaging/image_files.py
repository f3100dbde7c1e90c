"""Folders of images as tests need them: CT, PNG, COCO; and what a reader says of the files it leaves out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset as DicomDataset
from pydicom.uid import generate_uid

from consilia.imaging.readers import read_dataset

SECRET = "Winnetou^Old Shatterhand"
SECRET_ID = "MRN-4711-0815"


def pydicom_file(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def ct_small() -> DicomDataset:
    return pydicom.dcmread(pydicom_file("CT_small.dcm"))


def save(header: DicomDataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    header.save_as(path)
    return path


def ct_file(path: Path, patient: str = SECRET_ID, **changes: object) -> Path:
    """A CT of 128 x 128 pixels with a person's name in it, and some attributes changed (None deletes)."""
    header = ct_small()
    header.PatientName, header.PatientID, header.PatientBirthDate = SECRET, patient, "19000101"
    header.SOPInstanceUID = header.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    for keyword, value in changes.items():
        if value is None:
            delattr(header, keyword)
        else:
            setattr(header, keyword, value)
    return save(header, path)


def coco(folder: Path, images: list[dict[str, object]], boxes: list[dict[str, object]] = ()) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    categories = [{"id": 7, "name": "nodule"}, {"id": 3, "name": "cyst"}]
    content = {
        "categories": categories,
        "images": [{"id": i, **image} for i, image in enumerate(images)],
        "annotations": [{"category_id": 7, "bbox": [4, 5, 10, 8], **box} for box in boxes],
    }
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def png(path: Path, size: tuple[int, int] = (40, 30), mode: str = "L", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(path, **options)
    return path


def reasons(folder: Path, read: Callable[[Path], object] = read_dataset) -> dict[str, str]:
    """The skipped files with their reasons, after one good image was added so that the data set stands."""
    data = read(folder)
    return {skipped.name: skipped.reason for skipped in data.skipped}
