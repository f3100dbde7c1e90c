"""Pictures to find something on: what of a folder is looked at, and what is left out by name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from consilia.errors import DatasetError
from consilia.imaging.cases import Dataset
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.models.pictures import WAITING, read_pictures
from tests.consortium import spec_toml
from tests.imaging.ct_files import ct
from tests.imaging.image_files import coco, png


def spec(kind: str) -> TaskSpec:
    return parse_toml(spec_toml(2).replace("[data]", f'[data]\nformat = "{kind}"'))


def left_out(pictures: Dataset) -> dict[str, str]:
    return {item.name: item.reason for item in pictures.skipped}


@pytest.mark.parametrize("kind", ["image", "dicom"])
def test_a_broken_picture_is_told_though_another_has_its_name(tmp_path: Path, kind: str) -> None:
    name = "1.png" if kind == "image" else "1.dcm"
    for folder in ("s1", "s2"):
        (png if kind == "image" else ct)(tmp_path / "images" / folder / name)
    whole = (tmp_path / "images" / "s2" / name).read_bytes()
    (tmp_path / "images" / "s2" / name).write_bytes(whole[: len(whole) // 2])
    coco(tmp_path, [{"file_name": f"s1/{name}"}])
    pictures = read_pictures(spec(kind), tmp_path)
    assert [image.image_id for image in pictures.images] == [f"s1/{name}"]
    assert left_out(pictures).keys() == {name}


def test_a_picture_that_only_its_annotations_know_the_patient_of_is_not_left_out(tmp_path: Path) -> None:
    """And what is broken beside it is told, though no other slice can be used."""
    ct(tmp_path / "dicom" / "a.dcm", PatientID=None)
    ct(tmp_path / "dicom" / "b.dcm", PatientID=None)
    coco(tmp_path, [{"file_name": "a.dcm", "patient": "p"}])
    pictures = read_pictures(spec("dicom"), tmp_path)
    assert len(pictures) == 1 and left_out(pictures).keys() == {"b.dcm"}


def test_nothing_is_found_on_what_waits_in_quarantine_and_an_imports_own_files_are_no_pictures(
    tmp_path: Path,
) -> None:
    ct(tmp_path / "dicom" / "p" / "s" / "1.2.dcm")
    ct(tmp_path / "quarantine" / "1.3.dcm")
    for name in ("import-report.json", "quarantine/1.3.json", "annotations.csv"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "cut.dcm").write_bytes(b"no DICOM")
    pictures = read_pictures(spec("dicom"), tmp_path)
    assert [image.path.name for image in pictures.images] == ["1.2.dcm"]
    assert left_out(pictures).keys() == {"1.3.dcm", "cut.dcm"} and left_out(pictures)["1.3.dcm"] == WAITING
    asked = read_pictures(spec("dicom"), tmp_path / "quarantine")
    assert len(asked) == 1, "a person may look at it by name"


@pytest.mark.parametrize("listed", [False, True])
def test_pictures_of_another_kind_than_the_tasks_are_left_out(tmp_path: Path, listed: bool) -> None:
    png(tmp_path / "images" / "a.png")
    ct(tmp_path / "dicom" / "b.dcm")
    if listed:
        coco(tmp_path, [{"file_name": "a.png"}, {"file_name": "b.dcm"}])
    for kind, taken, other in (("image", "a.png", "b.dcm"), ("dicom", "b.dcm", "a.png")):
        pictures = read_pictures(spec(kind), tmp_path)
        assert [image.path.name for image in pictures.images] == [taken]
        assert left_out(pictures).keys() == {other}
        assert repr(kind) in left_out(pictures)[other]
    shutil.rmtree(tmp_path / "dicom")
    with pytest.raises(DatasetError, match=r"expected CT in DICOM .*'dicom'.*found none.*first of 1 "):
        read_pictures(spec("dicom"), tmp_path)
