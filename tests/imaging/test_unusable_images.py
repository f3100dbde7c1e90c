"""Readers: what is not usable is named with a reason, and no reason names a person."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.uid import JPEG2000Lossless

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.decoding import MAX_PIXELS
from consilia.imaging.dicom import read_ct
from consilia.imaging.raster import read_raster
from consilia.imaging.readers import read_dataset, read_dicom, read_hospital_split
from tests.imaging.image_files import (
    SECRET,
    SECRET_ID,
    coco,
    ct_file,
    ct_small,
    png,
    pydicom_file,
    reasons,
    save,
)

# What is skipped


def noise(path: Path) -> Path:
    path.write_bytes(b"x" * 500)
    return path


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def j2k_bomb(path: Path) -> Path:
    """A codestream that claims 60000 x 60000 pixels below a header that says 128 x 128."""
    header = ct_small()
    header.compress(JPEG2000Lossless)
    data = bytearray(header.PixelData)
    siz = data.find(b"\xff\x4f\xff\x51")
    data[siz + 8 : siz + 16] = struct.pack(">II", 60000, 60000)
    header.PixelData = bytes(data)
    return save(header, path)


def deflate_bomb(path: Path) -> Path:
    """A small deflated file that unfolds to more than the limit."""
    header = ct_small()
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    save(header, path)
    content = path.read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = b"\0" * 2**20
    path.write_bytes(content[:start] + b"".join(packer.compress(zeros) for _ in range(300)) + packer.flush())
    return path


BAD_DICOM: dict[str, tuple[Callable[[Path], Path], str]] = {
    "noise": (lambda p: noise(p), "mark DICM is missing"),
    "half": (lambda p: truncate(ct_file(p)), "match the header|cannot be parsed|no pixel data"),
    "mr": (lambda p: ct_file(p, Modality="MR"), "modality CT"),
    "sc": (lambda p: ct_file(p, SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "CT Image Storage"),
    "localizer": (lambda p: ct_file(p, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), "localizer"),
    "nopixels": (lambda p: ct_file(p, PixelData=None), "pixel data"),
    "noslope": (lambda p: ct_file(p, RescaleSlope=None), "rescale to HU"),
    "zeroslope": (lambda p: ct_file(p, RescaleSlope=0), "rescale to HU"),
    "nouid": (lambda p: ct_file(p, SOPInstanceUID=None), "SOPInstanceUID"),
    "norows": (lambda p: ct_file(p, Rows=None), "Rows"),
    "huge": (lambda p: ct_file(p, Rows=60000, Columns=60000), f"at most {MAX_PIXELS} pixels"),
    "manyframes": (lambda p: ct_file(p, NumberOfFrames=10**9), f"at most {MAX_PIXELS} pixels"),
    "twoframes": (lambda p: ct_file(p, NumberOfFrames=2, PixelData=2 * ct_small().PixelData), "one frame"),
    "rgb": (lambda p: ct_file(p, PhotometricInterpretation="RGB"), "one grey channel"),
    "toosmall": (lambda p: ct_file(p, Rows=200), "match the header"),
    "nopatient": (lambda p: ct_file(p, PatientID=""), "there is none"),
    "j2kbomb": (j2k_bomb, f"at most {MAX_PIXELS} pixels"),
    "deflatebomb": (deflate_bomb, "inflates to more"),
}


@pytest.mark.parametrize("name", BAD_DICOM)
def test_bad_dicom_is_skipped_with_its_reason(tmp_path: Path, name: str) -> None:
    make, reason = BAD_DICOM[name]
    ct_file(tmp_path / "good.dcm", patient="other", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")
    make(tmp_path / f"{name}.dcm")
    data = read_dicom(tmp_path)
    assert [image.path.name for image in data.images] == ["good.dcm"]
    ((skipped),) = data.skipped
    assert skipped.name == f"{name}.dcm"
    assert re.search(reason, skipped.reason), skipped.reason


def test_broken_rescale_text_is_skipped(tmp_path: Path) -> None:
    path = ct_file(tmp_path / "a.dcm", RescaleSlope=1)
    content = path.read_bytes()
    at = content.index(b"\x28\x00\x53\x10DS")
    path.write_bytes(content[: at + 8] + b"x " + content[at + 10 :])
    with pytest.raises(UnusableImageError, match=r"rescale to HU|cannot be parsed"):
        read_ct(path)


def test_a_repeated_sop_instance_uid_counts_once(tmp_path: Path) -> None:
    shutil.copy(ct_file(tmp_path / "a.dcm"), tmp_path / "b.dcm")
    data = read_dicom(tmp_path)
    assert [image.path.name for image in data.images] == ["a.dcm"]
    assert [(s.name, "another file has it" in s.reason) for s in data.skipped] == [("b.dcm", True)]


def test_slices_that_do_not_fit_their_series_are_skipped(tmp_path: Path) -> None:
    for name in ("a", "b"):
        ct_file(tmp_path / name)
    ct_file(tmp_path / "c", PixelSpacing=[2, 2])
    ct_file(tmp_path / "d", ImageOrientationPatient=[0, 1, 0, 0, 0, -1])
    assert set(reasons(tmp_path, read_dicom)) == {"c", "d"}


def test_a_series_of_two_patients_is_skipped_whole(tmp_path: Path) -> None:
    ct_file(tmp_path / "a", patient="1")
    ct_file(tmp_path / "b", patient="2")
    ct_file(tmp_path / "c", patient="3", SeriesInstanceUID="1.2.3", StudyInstanceUID="1.2.4")
    data = read_dicom(tmp_path)
    assert [image.path.name for image in data.images] == ["c"]
    assert {skipped.name for skipped in data.skipped} == {"a", "b"}
    assert (data.studies_used, data.studies_skipped) == (1, 1)


def test_annotations_that_contradict_the_header_are_not_believed(tmp_path: Path) -> None:
    ct_file(tmp_path / "dicom" / "a.dcm", patient="1")
    png(tmp_path / "images" / "b.png")
    coco(tmp_path, [{"file_name": "a.dcm", "patient": "2"}, {"file_name": "b.png"}])
    assert "name two" in reasons(tmp_path)["a.dcm"]


BAD_COCO: dict[str, tuple[dict[str, object], dict[str, object], str]] = {
    "outside": ({}, {"bbox": [30, 5, 30, 8]}, "one lies outside"),
    "empty": ({}, {"bbox": [3, 5, 0, 8]}, "one is empty"),
    "negative": ({}, {"bbox": [9, 9, -4, 8]}, "one is empty"),
    "category": ({}, {"category_id": 99}, "unknown category_id"),
    "malformed": ({}, {"bbox": [1, 2, 3]}, "malformed"),
    "nan": ({}, {"bbox": [1, 2, float("nan"), 4]}, "malformed"),
    "crowd": ({}, {"iscrowd": 1}, "crowd"),
    "size": ({"width": 41}, {}, "41 x None|41 x 30"),
    "split": ({"official_split": "exam"}, {}, "official_split"),
}


@pytest.mark.parametrize("name", BAD_COCO)
def test_bad_annotations_cost_their_image_only(tmp_path: Path, name: str) -> None:
    image, box, reason = BAD_COCO[name]
    for file in ("good", name):
        png(tmp_path / "images" / f"{file}.png")
    coco(
        tmp_path,
        [{"file_name": "good.png"}, {"file_name": f"{name}.png", **image}],
        [{"image_id": 0}, {"image_id": 1, **box}],
    )
    data = read_dataset(tmp_path)
    assert [image.image_id for image in data.images] == ["good.png"]
    ((skipped),) = data.skipped
    assert skipped.name == f"{name}.png"
    assert any(part in skipped.reason for part in reason.split("|")), skipped.reason


def test_bad_image_files_are_named(tmp_path: Path) -> None:
    good = png(tmp_path / "images" / "good.png")
    truncate(png(tmp_path / "images" / "cut.jpg", mode="RGB"))
    truncate(png(tmp_path / "images" / "cut.png"))
    (tmp_path / "images" / "text.png").write_text("hello")
    png(tmp_path / "images" / "deep.png", mode="I;16")
    Image.new("1", (30000, 30000)).save(tmp_path / "images" / "bomb.png")
    shutil.copy(good, tmp_path / "images" / "unlisted.png")
    names = [
        "good.png",
        "cut.jpg",
        "cut.png",
        "text.png",
        "deep.png",
        "bomb.png",
        "gone.png",
        "twice.png",
        "twice.png",
    ]
    coco(tmp_path, [{"file_name": name} for name in names])
    found = reasons(tmp_path)
    assert found.keys() == {
        "cut.jpg",
        "cut.png",
        "text.png",
        "deep.png",
        "bomb.png",
        "gone.png",
        "twice.png",
        "unlisted.png",
    }
    assert "damaged or cut short" in found["cut.jpg"]
    assert "8 bits" in found["deep.png"]
    assert f"at most {MAX_PIXELS} pixels" in found["bomb.png"]
    assert "do not list" in found["unlisted.png"]
    assert "twice" in found["twice.png"]


@pytest.mark.parametrize(
    "name", ["../secret.png", "/etc/hostname", "images/../../secret.png", "C:\\secret.png"]
)
def test_annotations_cannot_reach_out_of_the_folder(tmp_path: Path, name: str) -> None:
    png(tmp_path / "secret.png")
    png(tmp_path / "data" / "images" / "good.png")
    folder = coco(tmp_path / "data", [{"file_name": "good.png"}, {"file_name": name}])
    ((skipped),) = read_dataset(folder).skipped
    assert "point elsewhere" in skipped.reason
    assert "/" not in skipped.name


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"images": []}', '{"images":[],"annotations":[],"categories":[]}', "[" * 100000],
)
def test_annotations_that_are_not_coco_are_an_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(DatasetError, match="expected COCO"):
        read_dataset(tmp_path)


def test_ambiguous_categories_are_an_error(tmp_path: Path) -> None:
    coco(tmp_path, [])
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["categories"].append({"id": 7, "name": "again"})
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(DatasetError, match="category id"):
        read_dataset(tmp_path)


def test_a_data_set_of_which_nothing_is_usable_is_an_error(tmp_path: Path) -> None:
    coco(tmp_path, [{"file_name": "gone.png"}])
    with pytest.raises(DatasetError, match=r"all of 1 were skipped; the first: expected the file"):
        read_dataset(tmp_path)
    with pytest.raises(DatasetError, match="found neither"):
        read_dataset(tmp_path / "nowhere")


# What is never said


def test_no_name_from_a_header_reaches_report_error_or_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    ct_file(tmp_path / "good.dcm", patient="other", StudyInstanceUID="1.2.3", SeriesInstanceUID="1.2.4")
    for name, (make, _) in BAD_DICOM.items():
        make(tmp_path / f"{name}.dcm")
    ct_file(tmp_path / "date.dcm", StudyDate=SECRET, RescaleSlope=None)
    data = read_dicom(tmp_path)
    said = repr(data.skipped) + data.summary().text() + caplog.text + "".join(capsys.readouterr())
    assert len(data.skipped) == len(BAD_DICOM) + 1
    for secret in (SECRET, SECRET_ID, "Winnetou", "Shatterhand", str(tmp_path)):
        assert secret not in said
    assert SECRET_ID not in repr([image.patient for image in data.images])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), min_size=1, max_size=30),
    cut=st.integers(0, 1 << 20),
)
def test_damaged_files_are_refused_and_never_crash(
    tmp_path: Path, changes: list[tuple[int, int]], cut: int
) -> None:
    content = bytearray(pydicom_file("CT_small.dcm").read_bytes()[:6500])
    for at, value in changes:
        content[at % len(content)] = value
    path = tmp_path / "fuzzed.dcm"
    path.write_bytes(bytes(content[: max(200, cut % (2 * len(content)))]) + b"\0" * 32768)
    try:
        hu = read_ct(path).hu
    except UnusableImageError as error:
        hidden = error.__context__ is None or error.__suppress_context__
        assert hidden, "the parser's own text may quote the header"
    else:
        assert hu.ndim == 2


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    changes=st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=8),
    jpeg=st.booleans(),
)
def test_damaged_pictures_are_refused_and_never_crash(
    tmp_path: Path, changes: list[tuple[int, int]], jpeg: bool
) -> None:
    path = png(tmp_path / ("a.jpg" if jpeg else "a.png"), mode="RGB")
    content = bytearray(path.read_bytes())
    for at, value in changes:
        content[at % len(content)] = value
    path.write_bytes(bytes(content))
    try:
        pixels = read_raster(path)
    except UnusableImageError:
        return
    assert pixels.dtype == np.uint8


def test_a_file_that_changes_after_import_is_an_error_of_ours(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png")
    image = read_dataset(coco(tmp_path, [{"file_name": "a.png"}])).images[0]
    truncate(image.path)
    with pytest.raises(UnusableImageError):
        image.pixels()


def test_summary_counts_what_was_used_and_skipped(tmp_path: Path) -> None:
    for name in "ab":
        png(tmp_path / "images" / f"{name}.png")
    images = [
        {"file_name": "a.png", "study": "1"},
        {"file_name": "b.png", "study": "2"},
        {"file_name": "c.png", "study": "2"},
        {"file_name": "d.png", "study": "3"},
    ]
    report = read_dataset(
        coco(tmp_path, images, [{"image_id": 0}, {"image_id": 0, "category_id": 3}])
    ).summary()
    assert (report.images, report.images_with_boxes, report.files_skipped) == (2, 1, 2)
    assert (report.studies_used, report.studies_skipped) == (2, 1)
    assert report.boxes_by_category == (("cyst", 1), ("nodule", 1))
    assert "1 skipped; files skipped: 2" in report.text()
    assert "file 1: " in report.text() and "c.png" not in report.text()  # a file can have a patient's name


def test_hospital_split_is_read_strictly(tmp_path: Path) -> None:
    assert read_hospital_split(tmp_path) is None
    file = tmp_path / "hospitals.json"
    file.write_text(json.dumps({"note": "x", "hospital_of_image": {"b": "h2", "a": "h1", "c": "h1"}}))
    assert read_hospital_split(tmp_path) == {"h1": ("a", "c"), "h2": ("b",)}
    for wrong in ("{", "[]", '{"hospital_of_image": {"a": 1}}', '{"hospitals": {}}'):
        file.write_text(wrong)
        with pytest.raises(DatasetError, match="hospital_of_image"):
            read_hospital_split(tmp_path)
