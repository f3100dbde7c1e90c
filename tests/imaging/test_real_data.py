"""The real images beside the repository, where they are there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consilia.imaging.cases import LUNG
from consilia.imaging.readers import read_coco, read_dataset, read_dicom, read_hospital_split
from consilia.imaging.split import split_by_patient

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not beside the repository"),
]


def test_head_ct_splits_by_patient_over_its_five_scanners() -> None:
    data = read_dataset(DATA / "ct_hemorrhage")
    parts, held_out = split_by_patient(data, 5, 0)
    assert (len(data), len(data.patients()), data.skipped) == (1164, 96, ())
    assert data.summary().boxes_by_category == (("hemorrhage", 582),)
    assert sum(map(len, parts)) + len(held_out) == 1164
    assert all(len({image.hospital for image in part.images}) == 1 for part in parts)
    assert data.images[0].pixels().shape[:2] == (512, 512)


def test_blood_cells_keep_their_official_test_set() -> None:
    data = read_dataset(DATA / "bccd")
    parts, held_out = split_by_patient(data, 4, 0)
    assert (len(data), data.categories) == (364, ("RBC", "WBC", "Platelets"))
    assert sum(len(image.labels) for image in data.images) == 4886
    assert len(held_out) == 72
    assert sum(map(len, parts)) == 292
    assert set(read_hospital_split(DATA / "bccd") or {}) == {image.hospital for image in data.images}


def test_lung_ct_of_two_vendors_is_read_by_uid(tmp_path: Path) -> None:
    unlabelled = read_dicom(DATA / "ct_lungdx_dicom")
    assert len(unlabelled) == 94
    assert len(unlabelled.patients()) == 2
    assert {skipped.name for skipped in unlabelled.skipped} == {"LICENSE", "README.md", "boxes.json"}

    boxes = json.loads((DATA / "ct_lungdx_dicom" / "boxes.json").read_text())
    corners = [box["box_xyxy"] for box in boxes]
    images = [
        {"id": i, "file_name": box["SOPInstanceUID"], "patient": box["PatientID"]}
        for i, box in enumerate(boxes)
    ]
    annotations = [
        {"image_id": i, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, (x1, y1, x2, y2) in enumerate(corners)
    ]
    content = {
        "categories": [{"id": 1, "name": "adenocarcinoma"}],
        "images": images,
        "annotations": annotations,
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    (tmp_path / "dicom").symlink_to(DATA / "ct_lungdx_dicom" / "dicom")
    data = read_coco(tmp_path, window=LUNG)
    assert len(data) == 21
    assert sum(len(image.labels) for image in data.images) == 21
    image = data.images[0]
    x1, y1, x2, y2 = image.boxes_xyxy[0].astype(int)
    assert image.pixels()[y1:y2, x1:x2].mean() > image.pixels().mean()
