"""Annotations that come after their images, as a PACS sends them: they find what an earlier import took in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from consilia.imaging.deidentification import Pseudonymiser
from consilia.imaging.holdings import Holdings
from tests.imaging.ct_files import ct, enhanced_ct
from tests.imaging.dicom_objects import finding, on_frame, report, segmentation
from tests.imaging.test_annotations_in import OUTLINE, imported, mask, text

BOX = [20, 30, 45, 50]


@pytest.fixture
def images(tmp_path: Path) -> list[Any]:
    """Three slices of a series, imported before; of another patient, one more."""
    folder = tmp_path / "images"
    paths = [
        ct(folder / f"{number}.dcm", ImagePositionPatient=[0, 0, number], InstanceNumber=number + 1)
        for number in range(3)
    ]
    found = [pydicom.dcmread(path) for path in paths]
    ct(folder / "other.dcm", PatientID="another", SeriesInstanceUID="1.2.3")
    assert imported(folder)[0].files == {"imported": 4}
    return found


def late(images: list[Any], name: str = "late") -> Path:
    """The folder of a later import, in which are none of the images."""
    folder = Path(images[0].filename).parent.parent / name
    folder.mkdir()
    return folder


def coco(path: Path, *names: str) -> Path:
    content = {
        "categories": [{"id": 1, "name": "nodule"}],
        "images": [{"id": number, "file_name": name} for number, name in enumerate(names)],
        "annotations": [
            {"image_id": number, "category_id": 1, "bbox": [20, 30, 25, 20]} for number in range(len(names))
        ],
    }
    return text(path, json.dumps(content))


def test_a_report_after_its_images(images: list[Any]) -> None:
    folder = late(images)
    report(images, [finding(images[1], "POLYLINE", OUTLINE)]).save_as(folder / "report.dcm")
    summary, boxes, data = imported(folder)
    assert (boxes, len(data)) == ({"nodule": [BOX]}, 1)
    assert (summary.annotated_images, summary.annotations_left_out) == (1, {})


def test_a_segmentation_after_its_images(images: list[Any]) -> None:
    folder = late(images)
    drawn = np.zeros((3, 128, 128), np.uint8)
    drawn[0, 10:20, 30:50] = 1
    segmentation(images, drawn).save_as(folder / "seg.dcm")
    _, boxes, data = imported(folder)
    assert (boxes, len(data)) == ({"nodule": [[30, 10, 50, 20]]}, 3)


def test_a_report_on_a_frame_after_its_enhanced_ct(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    image = pydicom.dcmread(enhanced_ct(tmp_path / "images" / "e.dcm", frames=3))
    imported(tmp_path / "images")
    folder = late([image])
    made = on_frame(report([image], [finding(image, "POLYLINE", OUTLINE)]), 2)
    made.save_as(folder / "report.dcm")
    _, boxes, data = imported(folder)
    assert boxes == {"nodule": [BOX]}
    assert [round(item.level_mm) for item in data.images] == [1]


def test_files_name_held_slices_by_their_original_uid(images: list[Any]) -> None:
    folder = late(images)
    uids = [str(image.SOPInstanceUID) for image in images]
    names = (uids[0], f"dicom/{uids[1]}.dcm", "1.2.3.4.5", "0.dcm")
    summary, boxes, _ = imported(folder, coco(folder / "annotations.json", *names))
    assert boxes == {"nodule": [BOX, BOX]}
    assert summary.annotations_left_out.total() == 2

    masks = late(images, "masks")
    drawn = np.zeros((128, 128), np.uint8)
    drawn[1:3, 4:9] = 1
    mask(masks / "masks" / f"{uids[2]}.png", drawn)
    text(masks / "classes.txt", "nodule\n")
    assert [4, 1, 9, 3] in imported(masks)[1]["nodule"]


def test_a_series_that_is_complete_keeps_boxes_that_came_before(images: list[Any]) -> None:
    for number in (0, 1):  # one report after another, each on a slice of its own
        folder = late(images, f"late-{number}")
        made = report(images, [finding(images[number], "POLYLINE", OUTLINE)])
        made.save_as(folder / "report.dcm")
        _, boxes, data = imported(folder, complete=True)
        assert len(boxes["nodule"]) == number + 1
        assert len(data) == 3  # the whole series, and not the other patient's


def test_who_was_discarded_gets_no_boxes_and_who_waits_does(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    images = [
        pydicom.dcmread(ct(folder / f"{number}.dcm", BurnedInAnnotation=burned))
        for number, burned in enumerate(("NO", "YES", "YES"))
    ]
    imported(folder)
    holdings = Holdings(tmp_path / "held")
    held, gone, waits = (Pseudonymiser(b"k" * 32).uid(image.SOPInstanceUID) for image in images)
    [discarded] = [item for item in holdings.quarantined() if item.sop_instance_uid == gone]
    holdings.discard(discarded)
    given = coco(tmp_path / "annotations.json", *(str(image.SOPInstanceUID) for image in images))
    for source in (late(images), folder):
        summary, boxes, _ = imported(source, given, complete=True)
        assert boxes == {"nodule": [BOX]}
        assert [reason for reason in summary.annotations_left_out if "discarded" in reason]
        assert {Path(name).stem for name in holdings.annotated()} == {held, waits}
