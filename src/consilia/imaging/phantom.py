"""Phantom CT: heads with haemorrhages and masses, scanned by simulation, written as DICOM with COCO boxes.

Everything follows from the seed. A hospital has its own scanner and its own mix of lesions, so that hospitals
differ the way real ones do: in noise, sharpness, pixel size, and in what their patients suffer from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DatasetError
from consilia.imaging.anatomy import CATEGORIES, TOP_MM, Head, Lesion, Plane, draw_head, render
from consilia.imaging.ct_file import Scanner, SliceIdentity, study_uid, write_ct_file
from consilia.imaging.shapes import Ellipsoid, Field
from consilia.imaging.tomography import BONE_DENSITY, Geometry, Grid, back_project, measure, project
from consilia.values import Json, canonical_json

ANATOMY_GRID = Grid(336, 0.72)
"""As wide as any scanner's image, and finer than its kernel resolves."""


@dataclass(frozen=True)
class LesionMix:
    """What the patients of a hospital suffer from."""

    patients_with_lesion: float
    """Share of the patients."""
    haemorrhages: float
    """Share of the lesions; the others are masses."""
    diameter_mm: tuple[float, float]
    contrast_hu: tuple[float, float]
    """Of fresh blood above grey matter; the rim of a mass gets half of it."""


@dataclass(frozen=True)
class Site:
    """A hospital as the phantom sees it."""

    scanner: Scanner
    lesions: LesionMix


SITES = (
    # A stroke centre: modern scanner, full dose, large fresh bleeds.
    Site(
        Scanner("Aurora", "Axial 64", 256, 0.88, "B30", 0.52, 1.4e6, 5.0, 0.25),
        LesionMix(0.9, 0.8, (18, 40), (22, 34)),
    ),
    # A tumour centre: sharp kernel, small pixels, mostly masses.
    Site(
        Scanner("Meridian", "Helix 16", 288, 0.78, "U45", 0.64, 1.1e6, 4.0, 0.35),
        LesionMix(0.9, 0.3, (16, 36), (18, 30)),
    ),
    # A district hospital: an old scanner, thick slices, large pixels, strong hardening.
    Site(
        Scanner("Kitano", "QX-4", 240, 0.94, "SOFT", 0.46, 5e5, 8.0, 0.6),
        LesionMix(0.8, 0.6, (16, 34), (16, 28)),
    ),
    # A university hospital: high dose, small lesions found early.
    Site(
        Scanner("Borealis", "Vela 128", 320, 0.70, "H40", 0.58, 2.2e6, 3.0, 0.15),
        LesionMix(0.8, 0.5, (12, 28), (18, 32)),
    ),
    # A mobile stroke unit: low dose, noise, mostly bleeds.
    Site(
        Scanner("Dunlin", "Mobile 8", 256, 0.90, "STD", 0.55, 3.5e5, 6.0, 0.5),
        LesionMix(0.85, 0.85, (16, 38), (20, 32)),
    ),
    # A follow-up clinic: smooth kernel, older, paler blood.
    Site(
        Scanner("Tramontane", "Duo 256", 272, 0.82, "IR-S", 0.42, 1.8e6, 5.0, 0.2),
        LesionMix(0.8, 0.5, (14, 34), (14, 24)),
    ),
)
"""Six hospitals that differ as real ones do."""


def write_phantom_hospital(
    path: Path, *, scanner: Scanner, lesions: LesionMix, patients: int, slices_per_patient: int, seed: int
) -> None:
    """Write one hospital's folder: `annotations.json` (COCO) and `images/*.dcm` (CT).

    Patients of different seeds are different people. The same arguments give the same files, byte for byte on
    the same machine.

    Raises:
        DatasetError: the folder holds a data set already.
    """
    _write(path, islice(cycle([Site(scanner, lesions)]), patients), slices_per_patient, seed)


def write_phantom_held_out(
    path: Path, *, sites: Sequence[Site], patients: int, slices_per_patient: int, seed: int
) -> None:
    """Write a folder of patients scanned at each of `sites` in turn, to test on what all hospitals see.

    Raises:
        DatasetError: the folder holds a data set already.
    """
    _write(path, islice(cycle(sites), patients), slices_per_patient, seed)


def _write(path: Path, sites: islice[Site], slices_per_patient: int, seed: int) -> None:
    if (path / "annotations.json").exists():
        raise DatasetError(f"expected an empty folder, {path.name} holds a data set already: choose another")
    (path / "images").mkdir(parents=True, exist_ok=True)
    images: list[Json] = []
    boxes: list[Json] = []
    for number, site in enumerate(sites, start=1):
        patient_id = f"PH-{seed}-{number:04d}"
        for file_name, found in _write_patient(
            path / "images", patient_id, site, slices_per_patient, [seed, number]
        ):
            image_id = len(images) + 1
            images.append(
                {
                    "id": image_id,
                    "file_name": file_name,
                    "width": site.scanner.matrix,
                    "height": site.scanner.matrix,
                    "patient": patient_id,
                    "study": study_uid(patient_id),
                }
            )
            boxes += [_coco_box(len(boxes) + i, image_id, *one) for i, one in enumerate(found, start=1)]
    categories: list[Json] = [{"id": i, "name": name} for i, name in enumerate(CATEGORIES, start=1)]
    info: Json = {"description": "Consilia phantom CT: simulated, no persons"}
    coco: Json = {"info": info, "categories": categories, "images": images, "annotations": boxes}
    # Written last: a folder without it is an unfinished one, and no reader takes it for a data set.
    (path / "annotations.json").write_bytes(canonical_json(coco))


def _coco_box(number: int, image_id: int, category: int, box_xyxy: tuple[float, ...]) -> Json:
    x1, y1, x2, y2 = (round(edge, 2) for edge in box_xyxy)
    width, height = round(x2 - x1, 2), round(y2 - y1, 2)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category,
        "bbox": [x1, y1, width, height],
        "area": round(width * height, 2),
        "iscrowd": 0,
    }


def _write_patient(
    folder: Path, patient_id: str, site: Site, slices: int, seed: list[int]
) -> list[tuple[str, list[tuple[int, tuple[float, ...]]]]]:
    """Write a patient's slices; return file names with their (category, box)."""
    random = np.random.default_rng(seed)
    step_mm = TOP_MM / slices
    first_mm = float(random.uniform(0.2, 0.8)) * step_mm
    levels_mm = [first_mm + i * step_mm for i in range(slices)]
    head = draw_head(random, int(random.integers(2**31)))
    head = replace(head, lesions=_draw_lesions(head, site.lesions, levels_mm, random))
    written = []
    for number, level_mm in enumerate(levels_mm, start=1):
        plane = render(head, ANATOMY_GRID.axis_mm(), level_mm)
        file_name = f"{patient_id}-{number:02d}.dcm"
        identity = SliceIdentity(patient_id, number, level_mm, step_mm)
        write_ct_file(folder / file_name, scan(plane, site.scanner, random), site.scanner, identity)
        grid = Grid(site.scanner.matrix, site.scanner.spacing_mm)
        written.append(
            (file_name, [(category, _box_xyxy(extent, grid)) for category, extent in plane.lesions])
        )
    return written


def scan(plane: Plane, scanner: Scanner, random: np.random.Generator) -> Field:
    """The plane as the scanner shows it, HU of shape (matrix, matrix)."""
    geometry = Geometry()
    rays = project((plane.water + 1j * plane.bone).astype(np.complex64), ANATOMY_GRID, geometry)
    measured_mm = measure(rays.real, rays.imag, scanner.photons, scanner.hardening, random)
    grid = Grid(scanner.matrix, scanner.spacing_mm)
    return (back_project(measured_mm, grid, geometry, scanner.cutoff_per_mm) - 1.0) * np.float32(1000.0)


def true_hu(plane: Plane) -> Field:
    """What a perfect scanner would show, on the anatomy's own grid."""
    return (plane.water + np.float32(BONE_DENSITY) * plane.bone - 1.0) * np.float32(1000.0)


def _box_xyxy(extent: NDArray[np.bool_], grid: Grid) -> tuple[float, ...]:
    """The lesion's outer edges in pixels of the scanner's image."""
    axis_mm, half_mm = ANATOMY_GRID.axis_mm(), ANATOMY_GRID.cell_mm / 2
    rows, columns = np.flatnonzero(extent.any(axis=1)), np.flatnonzero(extent.any(axis=0))
    low = [float(axis_mm[cells[0]]) - half_mm for cells in (columns, rows)]
    high = [float(axis_mm[cells[-1]]) + half_mm for cells in (columns, rows)]
    return tuple(grid.to_pixels(edge_mm) for edge_mm in (*low, *high))


def _draw_lesions(
    head: Head, mix: LesionMix, levels_mm: list[float], random: np.random.Generator
) -> tuple[Lesion, ...]:
    """None, one, or sometimes one on each side."""
    if random.random() >= mix.patients_with_lesion:
        return ()
    side = 1.0 if random.random() < 0.5 else -1.0
    count = 2 if random.random() < 0.3 else 1
    return tuple(_draw_lesion(head, mix, side * (-1.0) ** i, levels_mm, random) for i in range(count))


def _draw_lesion(
    head: Head, mix: LesionMix, side: float, levels_mm: list[float], random: np.random.Generator
) -> Lesion:
    haemorrhage = bool(random.random() < mix.haemorrhages)
    level_mm = (
        float(random.uniform(levels_mm[0] + 2.0, levels_mm[-1] - 2.0)) if len(levels_mm) > 1 else levels_mm[0]
    )
    radius_mm = 0.5 * float(random.uniform(*mix.diameter_mm))
    semi_axes_mm = tuple(radius_mm * random.uniform(0.8, 1.15, 3) * (1.0, 1.0, 1.15))
    contrast_hu = float(random.uniform(*mix.contrast_hu))
    return Lesion(
        category=1 if haemorrhage else 2,
        body=Ellipsoid(
            (
                *_place(head, side, level_mm, deep=haemorrhage and random.random() < 0.55, random=random),
                level_mm,
            ),
            (float(semi_axes_mm[0]), float(semi_axes_mm[1]), float(semi_axes_mm[2])),
            float(random.uniform(-40.0, 40.0)),
        ),
        contrast_hu=contrast_hu if haemorrhage else 0.5 * contrast_hu,
        oedema_mm=float(random.uniform(2.0, 6.0) if haemorrhage else random.uniform(5.0, 12.0)),
        seed=int(random.integers(2**31)),
    )


def _place(
    head: Head, side: float, level_mm: float, *, deep: bool, random: np.random.Generator
) -> tuple[float, float]:
    """Deep: putamen or thalamus, where hypertensive bleeds lie. Otherwise in a lobe, under the cortex."""
    if deep and level_mm < 28.0:
        x_mm, y_mm = ((26.0, -2.0), (13.0, 13.0))[int(random.random() < 0.3)]
        return side * (x_mm + float(random.normal(0.0, 2.0))), y_mm + float(random.normal(0.0, 3.0))
    around = float(random.uniform(0.35, 2.7))
    height = float(np.sqrt(1.0 - ((level_mm - 8.0) / 100.0) ** 2))
    reach = height * float(random.uniform(0.42, 0.64))
    return side * np.sin(around) * reach * head.half_width_mm, -np.cos(around) * reach * head.half_length_mm
