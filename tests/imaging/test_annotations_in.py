"""Annotations of every kind that an import takes: the boxes lie where they were drawn, or are left out by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.sr.coding import Code

from consilia.errors import UnusableImageError
from consilia.imaging.annotation_objects import read_object
from consilia.imaging.cases import Dataset
from consilia.imaging.deidentification import Pseudonymiser
from consilia.imaging.holdings import Holdings
from consilia.imaging.importing import Importer, ImportSummary
from consilia.imaging.readers import read_dataset
from consilia.imaging.structured_report import CodedName, ReportedFinding, Reporter, structured_report
from consilia.roles.data_import import Wishes, import_folder
from tests.imaging.ct_files import ct, enhanced_ct
from tests.imaging.dicom_objects import READER, finding, on_frame, report, segmentation

OUTLINE = [[20, 30], [45, 30], [45, 50], [20, 50], [20, 30]]


def imported(
    source: Path, annotations: Path | None = None, category: str = "", complete: bool = False
) -> tuple[ImportSummary, dict[str, list[list[float]]], Dataset]:
    """Import a folder; what was said, and the boxes by category of what a training would read."""
    home = source.parent / "held"
    importer = Importer(Holdings(home), Pseudonymiser(b"k" * 32), category)
    summary = import_folder(source, importer, Wishes(annotations, category, complete), lambda *_, **__: None)
    if not (home / "annotations.json").is_file():
        return summary, {}, Dataset("none", (), (), ())
    data = read_dataset(home)
    boxes: dict[str, list[list[float]]] = {name: [] for name in data.categories}
    for image in data.images:
        for box, label in zip(image.boxes_xyxy.tolist(), image.labels.tolist(), strict=True):
            boxes[data.categories[label - 1]].append(box)
    return summary, {name: sorted(found) for name, found in boxes.items()}, data


def picture(path: Path, size: tuple[int, int] = (40, 20), start: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.arange(start, start + size[0] * size[1])
    Image.fromarray(values.reshape(size[::-1]).astype(np.uint8)).save(path)
    return path


def text(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def mask(path: Path, pixels: np.ndarray, palette: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels.astype(np.uint8), "P" if palette else "L")
    if palette:
        image.putpalette([0, 0, 0, 200, 30, 30, 30, 200, 30])
    image.save(path)
    return path


# Files beside the images


@pytest.mark.parametrize("ending", [".dcm", ".png"])
def test_pascal_voc(tmp_path: Path, ending: str) -> None:
    source = tmp_path / "source"
    (ct if ending == ".dcm" else picture)(source / "JPEGImages" / f"a{ending}")
    corners = "<xmin>3</xmin><ymin>4</ymin><xmax>30</xmax><ymax>15</ymax>"
    text(
        source / "Annotations" / "a.xml",
        f"<annotation><filename>a{ending}</filename><object><name>cyst</name><bndbox>{corners}</bndbox></object>"
        "</annotation>",
    )
    summary, boxes, _ = imported(source)
    assert boxes == {"cyst": [[2, 3, 30, 15]]}
    assert (summary.annotated_images, summary.annotations_left_out) == (1, {})


@pytest.mark.parametrize("layout", ["flat", "folders", "deep"])
def test_yolo_in_its_usual_layouts(tmp_path: Path, layout: str) -> None:
    source = tmp_path / "source"
    images, labels = {
        "flat": (source, source),  # as LabelImg leaves it
        "folders": (source / "images", source / "labels"),
        "deep": (source / "images" / "train", source / "labels" / "train"),
    }[layout]
    picture(images / "a.1.png")
    picture(images / "b.png", start=1)
    text(labels / "a.1.txt", "1 0.5 0.5 0.5 0.5\n0 0.25 0.5 0.1 0.2\n")
    text(labels / "b.txt", "")
    text(source / "classes.txt", "cyst\nnodule\n")
    _, boxes, data = imported(source)
    assert boxes == {"cyst": [pytest.approx([8, 8, 12, 12])], "nodule": [[10, 5, 30, 15]]}
    assert sorted(len(image.labels) for image in data.images) == [0, 2]  # an empty file: free of lesions


def test_yolo_on_slices_and_what_is_wrong_in_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    ct(source / "dicom" / "a.dcm")
    for name in "bcde":
        ct(source / "dicom" / f"{name}.dcm")
    text(source / "classes.txt", "nodule\n")
    for name, line in {
        "a": "0 .5 .5 .25 .5",
        "b": "1 .5 .5 .2 .2",
        "c": "0 64 64 10 10",
        "d": "0 .1 .1 .2 .2 .3 .3",
        "e": "0 nan .5 .5 .5",
        "gone": "0 .5 .5 .5 .5",
    }.items():
        text(source / "labels" / f"{name}.txt", line)
    summary, boxes, data = imported(source)
    assert boxes == {"nodule": [[48, 32, 80, 96]]} and len(data) == 1
    assert len(summary.annotations_left_out) == 4 and summary.annotations_left_out.total() == 5
    assert not any("gone" in reason for reason in summary.annotations_left_out)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("below", ["masks", ""])
def test_masks_become_boxes_around_patches(tmp_path: Path, palette: bool, below: str) -> None:
    source = tmp_path / "source"
    ct(source / "dicom" / "a.dcm")
    ct(source / "dicom" / "b.dcm")
    drawn = np.zeros((128, 128), np.uint8)
    drawn[10:20, 30:50] = drawn[20:22, 50:55] = 1  # they touch at a corner
    drawn[100:, 120:] = 2
    mask(source / below / "a.png", drawn, palette)
    mask(source / below / "b.png", np.zeros((128, 128)), palette)
    mask(source / below / "nobody.png", drawn, palette)  # of no slice that is there: no picture of its own
    text(source / "classes.txt", "cyst\nnodule\n")
    summary, boxes, data = imported(source)
    assert boxes == {"cyst": [[30, 10, 55, 22]], "nodule": [[120, 100, 128, 128]]}
    assert len(data) == 2 and summary.annotations_left_out.total() == 1


def test_a_mask_of_one_class_may_be_white_and_lies_on_a_picture_of_its_size(tmp_path: Path) -> None:
    source = tmp_path / "source"
    picture(source / "images" / "a.png")
    picture(source / "images" / "b.png", (50, 20))
    drawn = np.zeros((20, 40))
    drawn[5:9, 6:8] = 255
    mask(source / "masks" / "a.png", drawn)
    mask(source / "masks" / "b.png", drawn)
    text(source / "classes.txt", "cell\n")
    summary, boxes, _ = imported(source)
    assert boxes == {"cell": [[6, 5, 8, 9]]}
    [reason] = summary.annotations_left_out
    assert "expected 40 x 20 pixels" in reason


def test_of_two_entries_for_the_same_pixels_the_first_counts_and_the_other_is_told_of(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name, line in {"a": "0 .5 .5 .5 .5", "b": ""}.items():
        picture(source / "images" / f"{name}.png")
        text(source / "labels" / f"{name}.txt", line)
    text(source / "classes.txt", "cyst\n")
    summary, boxes, data = imported(source)
    assert boxes == {"cyst": [[10, 5, 30, 15]]} and len(data) == 1
    assert any("same image" in reason for reason in summary.annotations_left_out)


# DICOM objects


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Three slices of a series."""
    for number in range(3):
        ct(
            tmp_path / "source" / f"{number}.dcm",
            ImagePositionPatient=[0, 0, number],
            InstanceNumber=number + 1,
        )
    return tmp_path / "source"


def slices(source: Path) -> list[Any]:
    return [pydicom.dcmread(path) for path in sorted(source.glob("[0-9].dcm"))]


def test_a_report_s_regions_become_boxes_named_by_their_codes(source: Path) -> None:
    images = slices(source)
    made = report(
        images,
        [
            finding(images[0], "POLYLINE", OUTLINE),
            finding(images[1], "CIRCLE", [[60, 60], [60, 70]]),
            finding(images[1], "ELLIPSE", [[10, 50], [30, 50], [20, 40], [20, 60]]),
            finding(images[2], "POINT", [[5, 5]]),
            finding(images[2], "POLYLINE", OUTLINE, Code("1", "99HERE", READER)),
        ],
    )
    made.save_as(source / "report.dcm")
    summary, boxes, data = imported(source)
    assert boxes == {"nodule": [[10, 40, 30, 60], [20, 30, 45, 50], [50, 50, 70, 70]]}
    assert len(data) == 2  # on the third nothing was understood: it does not count as free of lesions
    assert summary.annotations_left_out.total() == 2
    assert READER not in summary.to_bytes().decode() and READER not in repr(data)


def test_a_report_with_a_code_of_the_house_takes_the_given_name(source: Path) -> None:
    images = slices(source)
    report(images, [finding(images[2], "POLYLINE", OUTLINE, Code("1", "99HERE", READER))]).save_as(
        source / "report.dcm"
    )
    _, boxes, _ = imported(source, category="lesion")
    assert boxes == {"lesion": [[20, 30, 45, 50]]}


def test_a_report_on_an_image_that_did_not_come_is_left_out(source: Path) -> None:
    images = slices(source)
    report(images, [finding(images[0], "POLYLINE", OUTLINE)]).save_as(source / "report.dcm")
    (source / "0.dcm").unlink()
    summary, boxes, _ = imported(source)
    assert boxes == {}
    assert summary.annotations_left_out.total() == 1


def test_our_own_detector_s_findings_are_no_truth(source: Path) -> None:
    bleed = ReportedFinding((20.0, 30.0, 45.0, 50.0), CodedName("1", "99CONSILIA", "bleeding"), 0.9)
    made = structured_report(source / "0.dcm", [bleed], Reporter("faster-rcnn", "ab" * 32, ()))
    made.save_as(source / "report.dcm")
    summary, boxes, _ = imported(source, category="lesion")
    assert boxes == {} and any("detector" in reason for reason in summary.refused)


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL"])
def test_a_segmentation_s_patches_become_boxes(source: Path, kind: str) -> None:
    images = slices(source)
    drawn = np.zeros((3, 128, 128), np.uint8)
    drawn[0, 10:20, 30:50] = drawn[1, 40:41, 90:92] = drawn[1, 100:128, 0:7] = 1
    pixels = drawn if kind == "BINARY" else drawn.astype(np.float32)
    segmentation(images, pixels, kind).save_as(source / "seg.dcm")
    summary, boxes, data = imported(source)
    assert boxes == {"nodule": [[0, 100, 7, 128], [30, 10, 50, 20], [90, 40, 92, 41]]}
    levels = {round(image.level_mm): len(image.labels) for image in data.images}
    assert levels == {0: 1, 1: 2, 2: 0}  # the third was looked at, and is free of lesions
    assert READER not in summary.to_bytes().decode()


def test_a_segmentation_in_other_pixels_than_its_images_is_left_out(source: Path) -> None:
    images = slices(source)
    drawn = np.ones((3, 128, 128), np.uint8)
    made = segmentation(images, drawn)
    made.Rows, made.Columns = 64, 256
    made.save_as(source / "seg.dcm")
    summary, boxes, _ = imported(source)
    assert boxes == {}
    assert any("expected 256 x 64 pixels" in reason for reason in summary.annotations_left_out)


def test_a_segmentation_that_does_not_name_its_images_frees_none_of_lesions(source: Path) -> None:
    images = slices(source)
    made = segmentation(images, np.ones((3, 128, 128), np.uint8))
    for item in made.PerFrameFunctionalGroupsSequence:
        item.pop("DerivationImageSequence", None)
    made.save_as(source / "seg.dcm")
    summary, boxes, data = imported(source)
    assert boxes == {} and len(data) == 0
    assert any("frames name their images" in reason for reason in summary.refused)


def test_a_segmentation_and_a_report_that_claim_too_much_are_refused(source: Path) -> None:
    images = slices(source)
    made = segmentation(images, np.ones((3, 128, 128), np.uint8))
    made.Rows = made.Columns = 60000
    made.save_as(source / "seg.dcm")
    with pytest.raises(UnusableImageError, match="at most"):
        read_object(source / "seg.dcm")
    nested = report(images, [finding(images[0], "POLYLINE", OUTLINE)])
    inner = nested.ContentSequence
    for _ in range(40):  # deeper than any template: not followed
        item = pydicom.Dataset()
        item.ValueType, item.ContentSequence = "CONTAINER", inner
        inner = [item]
    nested.ContentSequence = inner
    nested.save_as(source / "report.dcm")
    with pytest.raises(UnusableImageError, match="regions"):
        read_object(source / "report.dcm")


def test_a_report_finds_the_frame_of_an_enhanced_ct(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    image = pydicom.dcmread(enhanced_ct(source / "e.dcm", frames=3))
    made = on_frame(report([image], [finding(image, "POLYLINE", OUTLINE)]), 2)
    made.save_as(source / "report.dcm")
    _, boxes, data = imported(source)
    assert boxes == {"nodule": [[20, 30, 45, 50]]}
    assert [round(item.level_mm) for item in data.images] == [1]
