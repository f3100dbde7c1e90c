"""The phantom: right Hounsfield units, hospitals that differ, files that are the same again."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from consilia.errors import DatasetError
from consilia.imaging import anatomy
from consilia.imaging.anatomy import CATEGORIES, Lesion, draw_head, render
from consilia.imaging.phantom import (
    ANATOMY_GRID,
    SITES,
    Site,
    scan,
    true_hu,
    write_phantom_held_out,
    write_phantom_hospital,
)
from consilia.imaging.readers import read_dataset
from consilia.imaging.shapes import Ellipsoid
from consilia.imaging.tomography import BONE_DENSITY, Geometry, Grid, back_project, measure, project

GRID = Grid(336, 0.72)


def disc(x_mm: float, y_mm: float, radius_mm: float, grid: Grid = GRID) -> np.ndarray:
    axis = grid.axis_mm()
    return np.hypot(axis[None, :] - x_mm, axis[:, None] - y_mm) < radius_mm


def reconstruct(
    water: np.ndarray, bone: np.ndarray, photons: float = 5e6, hardening: float = 0.0
) -> np.ndarray:
    rays = project((water + 1j * bone).astype(np.complex64), GRID, Geometry())
    measured = measure(rays.real, rays.imag, photons, hardening, np.random.default_rng(0))
    return (back_project(measured, GRID, Geometry(), 0.5) - 1.0) * 1000.0


def write(path: Path, site: Site, seed: int = 7, patients: int = 1, slices: int = 2) -> Path:
    write_phantom_hospital(
        path,
        scanner=site.scanner,
        lesions=site.lesions,
        patients=patients,
        slices_per_patient=slices,
        seed=seed,
    )
    return path


def tree_digest(path: Path) -> dict[str, str]:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {
        file.relative_to(path).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }


def noise_hu(path: Path) -> float:
    """The deviation inside a small patch of white matter, with its slow changes taken out."""
    values = []
    for image in read_dataset(path).images:
        file = pydicom.dcmread(image.path)
        hu = file.pixel_array.astype(float) - 1024.0
        centre = image.width // 2
        patch = hu[centre - 60 : centre + 60, centre - 40 : centre + 40]
        values.append(np.median(np.abs(np.diff(patch, axis=1))))
    return float(np.median(values))


def test_projection_is_the_line_integral() -> None:
    rays = project(disc(0, 0, 80).astype(np.complex64), GRID, Geometry())
    assert rays.real[:, Geometry().rays // 2] == pytest.approx(160.0, abs=1.0)


def test_reconstruction_restores_hounsfield_units() -> None:
    body = disc(0, 0, 85)
    bone = disc(-30, 20, 8)
    hu = reconstruct((body & ~bone).astype(float) + 0.06 * disc(30, -10, 12), bone.astype(float))
    assert hu[disc(0, -50, 15)].mean() == pytest.approx(0.0, abs=3.0), "water"
    assert hu[~disc(0, 0, 95) & disc(0, 0, 110)].mean() == pytest.approx(-1000.0, abs=3.0), "air"
    assert hu[disc(30, -10, 8)].mean() == pytest.approx(60.0, abs=3.0), "blood"
    assert hu[disc(-30, 20, 5)].mean() == pytest.approx(1000.0 * (BONE_DENSITY - 1.0), rel=0.02), "bone"


def test_reconstruction_is_not_mirrored_or_turned() -> None:
    hu = reconstruct(disc(0, 0, 85) + 0.2 * disc(40, -20, 6), np.zeros((336, 336)))
    rows, columns = np.nonzero(hu > 100.0)
    axis = GRID.axis_mm()
    assert (axis[columns].mean(), axis[rows].mean()) == pytest.approx((40.0, -20.0), abs=0.5)


def test_half_the_dose_is_more_noise_by_the_root_of_two() -> None:
    body, bone = disc(0, 0, 85).astype(float), np.zeros((336, 336))
    patch = disc(0, 0, 40)
    high, low = (reconstruct(body, bone, photons)[patch].std() for photons in (2e6, 1e6))
    assert low / high == pytest.approx(2**0.5, rel=0.1)


def test_uncorrected_hardening_darkens_between_bones() -> None:
    bone = disc(-60, 0, 12) | disc(60, 0, 12)
    water = (disc(0, 0, 85) & ~bone).astype(float)
    between = disc(0, 0, 8)
    dark = reconstruct(water, bone.astype(float), hardening=1.0)[between].mean()
    corrected = reconstruct(water, bone.astype(float), hardening=0.0)[between].mean()
    assert dark < corrected - 10.0
    assert corrected == pytest.approx(0.0, abs=3.0)


@pytest.mark.parametrize("site", SITES, ids=lambda site: site.scanner.model)
def test_scanned_head_has_the_tissues_of_a_head(site: Site) -> None:
    head = draw_head(np.random.default_rng(3), 5)
    plane = render(head, ANATOMY_GRID.axis_mm(), 20.0)
    hu = scan(plane, site.scanner, np.random.default_rng(4))
    axis = Grid(site.scanner.matrix, site.scanner.spacing_mm).axis_mm()
    brain = np.hypot(axis[None, :], axis[:, None]) < 45.0
    corner = hu[:20, :20]
    assert hu.shape == (site.scanner.matrix,) * 2
    assert 15.0 < hu[brain].mean() < 45.0
    assert corner.mean() == pytest.approx(-1000.0, abs=15.0)
    assert hu.max() > 700.0


def test_slices_of_one_patient_change_smoothly_and_patients_differ() -> None:
    axis = ANATOMY_GRID.axis_mm()
    head, other = draw_head(np.random.default_rng(1), 1), draw_head(np.random.default_rng(2), 2)

    def distance(a: anatomy.Head, level_a: float, b: anatomy.Head, level_b: float) -> float:
        return float(np.abs(true_hu(render(a, axis, level_a)) - true_hu(render(b, axis, level_b))).mean())

    near, far = distance(head, 20.0, head, 21.0), distance(head, 20.0, head, 40.0)
    assert near < 0.5 * far
    assert distance(head, 20.0, other, 20.0) > near


@pytest.mark.parametrize("category", [1, 2])
def test_lesion_extent_is_what_is_drawn(category: int) -> None:
    axis = ANATOMY_GRID.axis_mm()
    head = draw_head(np.random.default_rng(1), 1)
    lesion = Lesion(category, Ellipsoid((30.0, 5.0, 20.0), (12.0, 14.0, 12.0)), 30.0, 0.0, 9)
    healthy, sick = render(head, axis, 20.0), render(replace(head, lesions=(lesion,)), axis, 20.0)
    ((found, extent),) = sick.lesions
    changed = np.abs(true_hu(sick) - true_hu(healthy)) > 8.0
    rows, columns = np.nonzero(changed)
    box = np.flatnonzero(extent.any(axis=0))[[0, -1]], np.flatnonzero(extent.any(axis=1))[[0, -1]]
    assert found == category
    assert np.abs(np.array(box) - [[columns.min(), columns.max()], [rows.min(), rows.max()]]).max() <= 3


def test_a_lesion_is_neither_drawn_nor_labelled_far_from_its_level() -> None:
    axis = ANATOMY_GRID.axis_mm()
    head = draw_head(np.random.default_rng(1), 1)
    lesion = Lesion(1, Ellipsoid((30.0, 5.0, 10.0), (10.0, 10.0, 8.0)), 30.0, 4.0, 9)
    healthy, sick = render(head, axis, 40.0), render(replace(head, lesions=(lesion,)), axis, 40.0)
    assert sick.lesions == ()
    assert np.array_equal(healthy.water, sick.water)


def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    first, second = (tree_digest(write(tmp_path / name, SITES[0])) for name in "ab")
    third = tree_digest(write(tmp_path / "c", SITES[0], seed=8))
    assert len(first) == 3
    assert first == second
    assert not set(first.values()) & set(third.values())


def test_hospitals_differ_in_spacing_noise_and_maker(tmp_path: Path) -> None:
    paths = {site.scanner.model: write(tmp_path / site.scanner.model, site) for site in (SITES[3], SITES[4])}
    vela, mobile = (read_dataset(paths[model]) for model in ("Vela 128", "Mobile 8"))
    assert vela.images[0].spacing_mm == (0.7, 0.7)
    assert mobile.images[0].spacing_mm == (0.9, 0.9)
    assert noise_hu(paths["Mobile 8"]) > 1.3 * noise_hu(paths["Vela 128"])
    makers = {pydicom.dcmread(data.images[0].path).Manufacturer for data in (vela, mobile)}
    assert makers == {"Borealis", "Dunlin"}


def test_written_boxes_lie_on_bright_blood(tmp_path: Path) -> None:
    mix = replace(SITES[0].lesions, patients_with_lesion=1.0, haemorrhages=1.0)
    data = read_dataset(write(tmp_path / "h", replace(SITES[0], lesions=mix), slices=5))
    boxes = [(image, box) for image in data.images for box in image.boxes_xyxy]
    assert data.categories == CATEGORIES
    assert len(boxes) >= 2
    for image, box in boxes:
        x1, y1, x2, y2 = np.rint(box).astype(int)
        pixels = image.pixels().astype(float)
        middle = np.median(pixels[y1:y2, x1:x2])
        assert middle > np.median(pixels[60:-60, 80:-80]) + 20.0


def test_files_are_ct_images_that_say_that_they_are_simulated(tmp_path: Path) -> None:
    path = write(tmp_path / "h", SITES[1], slices=3)
    files = [pydicom.dcmread(file) for file in sorted((path / "images").iterdir())]
    first = files[0]
    assert first.SOPClassUID == pydicom.uid.CTImageStorage
    assert first.QualityControlImage == "YES"
    assert list(first.ImageType) == ["ORIGINAL", "PRIMARY", "AXIAL"]
    assert (first.BitsStored, first.RescaleSlope, first.RescaleIntercept) == (12, 1, -1024)
    assert len({file.SOPInstanceUID for file in files}) == 3
    assert all(file.SOPInstanceUID.startswith("2.25.") and file.SOPInstanceUID.is_valid for file in files)
    assert len({file.SeriesInstanceUID for file in files}) == 1
    levels = [float(file.ImagePositionPatient[2]) for file in files]
    assert levels == sorted(levels)


def test_held_out_patients_come_from_every_scanner(tmp_path: Path) -> None:
    write_phantom_held_out(tmp_path / "t", sites=SITES[:3], patients=3, slices_per_patient=1, seed=1)
    data = read_dataset(tmp_path / "t")
    makers = {pydicom.dcmread(image.path).Manufacturer for image in data.images}
    assert makers == {site.scanner.manufacturer for site in SITES[:3]}
    assert len(data.patients()) == 3


def test_annotations_are_plain_coco(tmp_path: Path) -> None:
    path = write(tmp_path / "h", SITES[0])
    coco = json.loads((path / "annotations.json").read_bytes())
    assert [category["name"] for category in coco["categories"]] == list(CATEGORIES)
    assert {image["file_name"] for image in coco["images"]} == {
        file.name for file in (path / "images").iterdir()
    }
    from pycocotools.coco import COCO

    assert len(COCO(str(path / "annotations.json")).getImgIds()) == 2


def test_a_data_set_is_never_overwritten(tmp_path: Path) -> None:
    before = tree_digest(write(tmp_path / "h", SITES[0], patients=1, slices=1))
    with pytest.raises(DatasetError, match="holds a data set already"):
        write(tmp_path / "h", SITES[1], patients=1, slices=1)
    assert tree_digest(tmp_path / "h") == before
