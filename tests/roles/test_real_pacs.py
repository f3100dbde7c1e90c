"""Real CT through a real PACS: pixels and boxes arrive as they were sent, and nobody's names, dates or UIDs."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless
from typer.testing import CliRunner

from consilia.cli import app
from consilia.imaging.dicom import read_ct
from consilia.imaging.readers import read_dataset, read_dicom
from consilia.roles.data_import import pseudonymiser
from tests.hospital_home import make_home
from tests.imaging.test_real_data import DATA
from tests.orthanc import Pacs

LUNG = DATA / "ct_lungdx_dicom"
OTHERS = 6
"""Slices of each patient without a box."""

pytestmark = [
    pytest.mark.data,
    pytest.mark.pacs,
    pytest.mark.slow,
    pytest.mark.skipif(not LUNG.is_dir(), reason="the real images are not beside the repository"),
]


def chosen() -> tuple[list[Path], list[dict[str, Any]]]:
    """All slices with a box and some without, and the boxes."""
    boxes = json.loads((LUNG / "boxes.json").read_text())
    marked = {box["SOPInstanceUID"] for box in boxes}
    files = sorted((LUNG / "dicom").rglob("*.dcm"))
    found = [file for file in files if file.stem in marked]
    for patient in sorted({box["PatientID"] for box in boxes}):
        found += [file for file in files if patient in file.parts and file.stem not in marked][:OTHERS]
    return found, boxes


def as_sent(files: list[Path]) -> list[bytes]:
    """As a PACS has them: every third compressed, every third otherwise compressed."""
    sent = []
    for number, file in enumerate(files):
        header = pydicom.dcmread(file)
        if number % 3:
            header.compress((RLELossless, JPEG2000Lossless)[number % 3 - 1], generate_instance_uid=False)
        out = io.BytesIO()
        header.save_as(out)
        sent.append(out.getvalue())
    return sent


def coco(path: Path, boxes: list[dict[str, Any]]) -> Path:
    names = sorted({box["SOPInstanceUID"] for box in boxes})
    found = [
        {"image_id": names.index(box["SOPInstanceUID"]), "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for box in boxes
        for x1, y1, x2, y2 in [box["box_xyxy"]]
    ]
    content = {
        "categories": [{"id": 1, "name": "adenocarcinoma"}],
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": found,
    }
    path.write_text(json.dumps(content))
    return path


def test_real_ct_comes_back_with_its_pixels_and_boxes_and_without_its_names(
    pacs: Pacs, tmp_path: Path
) -> None:
    files, boxes = chosen()
    pacs.store(*as_sent(files))
    headers = [pydicom.dcmread(file, stop_before_pixels=True) for file in files]
    studies = [
        word for uid in sorted({str(h.StudyInstanceUID) for h in headers}) for word in ("--study", uid)
    ]
    home = make_home(tmp_path / "home")
    annotations = coco(tmp_path / "boxes.json", boxes)
    commands = [
        ["import", "--from", pacs.dicomweb_url, *studies, "--annotations", str(annotations)],
        ["check"],
        ["ls"],
        ["preview"],
    ]
    printed = [
        CliRunner().invoke(app, ["data", *command, "--home", str(home)]).output for command in commands
    ]

    pseudonyms = pseudonymiser(home)
    held = {image.image_id: image for image in read_dicom(home / "data" / "dicom").images}
    assert set(held) == {pseudonyms.uid(str(h.SOPInstanceUID)) for h in headers}
    for file, header in zip(files, headers, strict=True):
        before, after = read_ct(file), read_ct(held[pseudonyms.uid(str(header.SOPInstanceUID))].path)
        assert np.array_equal(before.hu, after.hu)
        assert (before.spacing_mm, before.orientation) == (after.spacing_mm, after.orientation)

    expected = sorted((pseudonyms.uid(box["SOPInstanceUID"]), *map(float, box["box_xyxy"])) for box in boxes)
    dataset = read_dataset(home / "data")
    found = sorted(
        (image.path.stem, *map(float, box)) for image in dataset.images for box in image.boxes_xyxy.tolist()
    )
    assert found == expected

    assert not list(left(home, printed, headers))
    assert list(left(LUNG, [], headers))  # the search finds them where they are


def left(folder: Path, printed: list[str], headers: list[Any]) -> Any:
    """Where a name, number, date or UID of the originals still is."""
    tokens = {
        str(value) for h in headers for value in (h.PatientID, h.PatientName, h.StudyDate, h.ContentDate)
    }
    tokens |= {
        str(value) for h in headers for value in (h.StudyInstanceUID, h.SeriesInstanceUID, h.SOPInstanceUID)
    }
    tokens |= {str(h.FrameOfReferenceUID) for h in headers}
    for file in folder.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        yield from (token for token in tokens if token.encode() in content or token in file.name)
    yield from (token for token in tokens for text in printed if token in text)
