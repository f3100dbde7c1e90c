"""Readers: what is usable is read right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import JPEG2000Lossless, RLELossless, generate_uid

from consilia.imaging.cases import BRAIN, LUNG, SOFT_TISSUE, WindowHU, patient_key
from consilia.imaging.dicom import read_ct
from consilia.imaging.readers import read_coco, read_dataset, read_dicom, read_voc
from tests.imaging.image_files import (
    coco,
    ct_file,
    ct_small,
    png,
    pydicom_file,
    reasons,
    save,
)

# What is read


def test_real_ct_is_rescaled_to_hounsfield_units() -> None:
    slice_ = read_ct(pydicom_file("CT_small.dcm"))
    raw = ct_small()
    expected = raw.pixel_array * float(raw.RescaleSlope) + float(raw.RescaleIntercept)
    visible = raw.pixel_array != raw.PixelPaddingValue
    assert slice_.hu.dtype == np.float32
    assert np.array_equal(slice_.hu[visible], expected[visible].astype(np.float32))


@pytest.mark.parametrize("name", ["J2K_pixelrep_mismatch.dcm", "693_J2KI.dcm"])
def test_jpeg_2000_ct_of_pydicom_is_decoded(name: str) -> None:
    hu = read_ct(pydicom_file(name)).hu
    assert hu.shape == (512, 512)
    assert hu.min() < -800.0
    assert hu.max() > 100.0


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_lossless_transfer_syntaxes_give_the_same_pixels(tmp_path: Path, syntax: pydicom.uid.UID) -> None:
    plain = read_ct(pydicom_file("CT_small.dcm")).hu
    header = ct_small()
    header.compress(syntax)
    assert np.array_equal(read_ct(save(header, tmp_path / "c.dcm")).hu, plain)


def test_deflated_transfer_syntax_is_read(tmp_path: Path) -> None:
    header = ct_small()
    header.file_meta.TransferSyntaxUID = pydicom.uid.DeflatedExplicitVRLittleEndian
    assert read_ct(save(header, tmp_path / "c.dcm")).hu.shape == (128, 128)


def test_monochrome1_changes_nothing_because_hu_decide(tmp_path: Path) -> None:
    plain, inverse = (
        ct_file(tmp_path / "a.dcm"),
        ct_file(tmp_path / "b.dcm", PhotometricInterpretation="MONOCHROME1"),
    )
    assert np.array_equal(read_ct(plain).hu, read_ct(inverse).hu)


def test_padding_becomes_air(tmp_path: Path) -> None:
    stored = ct_small().pixel_array
    value = int(stored[64, 64])
    header = ct_file(tmp_path / "a.dcm", PixelPaddingValue=value)
    assert (read_ct(header).hu[stored == value] == -1024.0).all()


def test_window_spreads_its_range_over_eight_bits() -> None:
    hu = np.array([[-1000.0, 0.0, 40.0, 80.0, 3000.0]], dtype=np.float32)
    assert BRAIN.to_uint8(hu).tolist() == [[0, 0, 128, 255, 255]]


def test_window_of_the_header_is_ignored_and_the_given_one_used(tmp_path: Path) -> None:
    for i, centre in enumerate((-500, 900)):
        ct_file(tmp_path / f"{i}.dcm", WindowCenter=centre, WindowWidth=10 + i)
    same = [image.pixels() for image in read_dicom(tmp_path).images]
    assert np.array_equal(*same)
    other = read_dicom(tmp_path, window=WindowHU(100.0, 50.0)).images[0]
    assert not np.array_equal(other.pixels(), same[0])


@pytest.mark.parametrize(("part", "window"), [("HEAD", BRAIN), ("CHEST", LUNG), ("ABDOMEN", SOFT_TISSUE)])
def test_the_default_window_follows_the_body_part(tmp_path: Path, part: str, window: WindowHU) -> None:
    ct_file(tmp_path / "a.dcm", BodyPartExamined=part)
    assert read_dicom(tmp_path).images[0].window == window


def test_dicom_with_coco_is_read_by_file_name_and_by_uid(tmp_path: Path) -> None:
    ct_file(tmp_path / "dicom" / "s1" / "a.dcm")
    by_uid = str(pydicom.dcmread(ct_file(tmp_path / "dicom" / "b")).SOPInstanceUID)
    coco(tmp_path, [{"file_name": "s1/a.dcm"}, {"file_name": by_uid}], [{"image_id": 0}, {"image_id": 1}])
    data = read_dataset(tmp_path)
    assert {image.image_id for image in data.images} == {"s1/a.dcm", by_uid}
    assert data.skipped == ()
    image = data.images[0]
    assert image.boxes_xyxy.tolist() == [[4.0, 5.0, 14.0, 13.0]]
    assert image.spacing_mm == pytest.approx((0.661468, 0.661468))
    assert image.pixels().shape == (128, 128)
    assert (data.studies_used, data.studies_skipped) == (1, 0)


def test_slices_are_ordered_by_level_and_grouped_by_series(tmp_path: Path) -> None:
    first, second = generate_uid(), generate_uid()
    for name, series, level in (("a", first, 30), ("b", second, 5), ("c", first, 10), ("d", second, -5)):
        ct_file(tmp_path / name, SeriesInstanceUID=series, ImagePositionPatient=[0, 0, level])
    names = [image.path.name for image in read_dicom(tmp_path).images]
    assert sorted([names[:2], names[2:]]) == [["c", "a"], ["d", "b"]]


def test_coco_categories_become_labels_sorted_by_id(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png")
    coco(tmp_path, [{"file_name": "a.png"}], [{"image_id": 0}, {"image_id": 0, "category_id": 3}])
    data = read_coco(tmp_path)
    assert data.categories == ("cyst", "nodule")
    assert data.images[0].labels.tolist() == [2, 1]
    assert data.images[0].labels.dtype == np.int64


def test_colour_and_grey_images_are_read_as_they_are(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png")
    png(tmp_path / "images" / "b.jpg", mode="RGB")
    coco(tmp_path, [{"file_name": "a.png"}, {"file_name": "b.jpg", "width": 40, "height": 30}])
    assert [image.pixels().shape for image in read_dataset(tmp_path).images] == [(30, 40), (30, 40, 3)]


def test_images_without_patient_are_patients_of_their_own(tmp_path: Path) -> None:
    for name in "abc":
        png(tmp_path / "images" / f"{name}.png")
    coco(
        tmp_path,
        [
            {"file_name": "a.png", "patient": 17},
            {"file_name": "b.png", "patient": "17"},
            {"file_name": "c.png"},
        ],
    )
    data = read_dataset(tmp_path)
    assert data.images[0].patient == data.images[1].patient == patient_key("17")
    assert len(data.patients()) == 2


def test_box_that_touches_the_edge_is_cut(tmp_path: Path) -> None:
    png(tmp_path / "images" / "a.png")
    coco(tmp_path, [{"file_name": "a.png"}], [{"image_id": 0, "bbox": [-1, 2, 42.5, 10]}])
    assert read_dataset(tmp_path).images[0].boxes_xyxy.tolist() == [[0.0, 2.0, 40.0, 12.0]]


def voc(folder: Path, name: str, body: str = "", filename: str | None = None) -> None:
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    xml = f"<annotation><filename>{filename or name + '.jpg'}</filename>{body}</annotation>"
    (folder / "Annotations" / f"{name}.xml").write_text(xml)


OBJECT = (
    "<object><name>{}</name><bndbox>"
    "<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
    "</bndbox></object>"
)


def test_pascal_voc_is_read_with_its_official_split(tmp_path: Path) -> None:
    for name in ("a", "b"):
        png(tmp_path / "JPEGImages" / f"{name}.jpg", mode="RGB")
    size = "<size><width>40</width><height>30</height></size>"
    voc(tmp_path, "a", size + OBJECT.format("dog", 1, 1, 40, 30) + OBJECT.format("cat", 3, 4, 9, 9))
    voc(tmp_path, "b", OBJECT.format("cat", 2, 2, 5, 5))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_text("b\n")
    data = read_dataset(tmp_path)
    assert data.categories == ("cat", "dog")
    assert data.images[0].boxes_xyxy.tolist() == [[0.0, 0.0, 40.0, 30.0], [2.0, 3.0, 9.0, 9.0]]
    assert data.images[0].labels.tolist() == [2, 1]
    assert [image.official_split for image in data.images] == ["", "test"]


def test_pascal_voc_that_is_bad_is_named(tmp_path: Path) -> None:
    png(tmp_path / "JPEGImages" / "good.jpg", mode="RGB")
    voc(tmp_path, "good", OBJECT.format("cat", 2, 2, 5, 5))
    voc(tmp_path, "gone", OBJECT.format("cat", 2, 2, 5, 5))
    voc(tmp_path, "nobox", "<object><name>cat</name></object>")
    (tmp_path / "Annotations" / "broken.xml").write_text("<annotation><object>")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa">]><annotation><filename>&a;</filename></annotation>'
    (tmp_path / "Annotations" / "bomb.xml").write_text(bomb)
    found = reasons(tmp_path, read_voc)
    assert found.keys() == {"gone.jpg", "nobox.xml", "broken.xml", "bomb.xml"}
    assert "missing" in found["gone.jpg"]
    assert "bndbox/xmin" in found["nobox.xml"]
    assert "entities" in found["bomb.xml"]
