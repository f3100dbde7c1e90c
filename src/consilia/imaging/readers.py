"""Folders of images with boxes: DICOM or PNG/JPEG with COCO JSON, and Pascal VOC.

One bad file never costs the rest: it is left out, named and counted with the reason. Only a folder of which
nothing is usable is an error.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.annotations import AnnotatedImage, AnnotationSet, check_name, parse_coco, parse_voc
from consilia.imaging.cases import (
    Acquisition,
    Dataset,
    LabelledImage,
    Skipped,
    WindowHU,
    patient_key,
    study_key,
    window_for,
)
from consilia.imaging.dicom import CtSlice, read_ct
from consilia.imaging.dicom_file import is_dicom
from consilia.imaging.raster import read_raster

ANNOTATIONS = "annotations.json"
HOSPITALS = "hospitals.json"
NOT_ANNOTATED = "expected an entry in the annotations, they do not list this file"
"""Why a file is skipped that may be faultless: nobody knows whether it shows a lesion."""

_FOLDERS = ("", "images", "JPEGImages", "dicom")
RASTER_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})
_EDGE_PIXELS = 2.0
"""A box may pass the edge by this much (rounding, padding) and is cut; beyond, it is of another image."""


def read_dataset(path: Path, *, window: WindowHU | None = None) -> Dataset:
    """Read whatever of the known layouts is there: COCO (`annotations.json`) or Pascal VOC (`Annotations/`).

    `window` applies to CT in DICOM; without one every image gets the fixed window of its body part.

    Raises:
        DatasetError: neither layout is there, or nothing of it is usable.
    """
    if (path / ANNOTATIONS).is_file():
        return read_coco(path, window=window)
    if (path / "Annotations").is_dir():
        return read_voc(path)
    raise DatasetError(
        f"expected {ANNOTATIONS} (COCO) or Annotations/ (Pascal VOC) in the folder, found neither: "
        "export the boxes in one of the two"
    )


def read_coco(path: Path, *, window: WindowHU | None = None) -> Dataset:
    """Read a folder with `annotations.json` and PNG, JPEG or CT in DICOM, by file name or SOPInstanceUID.

    Beyond COCO, an image may carry `patient`, `study` and `official_split` (train, val, test).

    Raises:
        DatasetError: the annotations are not COCO, or no image is usable.
    """
    return _read(path, parse_coco(path / ANNOTATIONS), window)


def read_voc(path: Path) -> Dataset:
    """Read a Pascal VOC folder: `Annotations/*.xml` and `JPEGImages/`.

    Raises:
        DatasetError: nothing is usable.
    """
    return _read(path, parse_voc(path), None)


def read_dicom(path: Path, *, window: WindowHU | None = None) -> Dataset:
    """Read all CT slices below a folder without annotations, ordered by series and by level.

    The images have no boxes and are named by SOPInstanceUID (0008,0018).

    Raises:
        DatasetError: no slice is usable.
    """
    return _require_images(read_slices(path, files_below(path), window=window))


def read_slices(path: Path, files: Iterable[Path], *, window: WindowHU | None = None) -> Dataset:
    """The same of some files below the folder; no slice need be usable."""
    entries = [_unlabelled(file.relative_to(path).as_posix()) for file in files]
    return _look_at(path, AnnotationSet((), tuple(entries)), window, by_uid=True)


def read_hospital_split(path: Path) -> dict[str, tuple[str, ...]] | None:
    """The hospitals that `hospitals.json` proposes, each with its file names; None without such a file.

    Raises:
        DatasetError: the file is malformed.
    """
    file = path / HOSPITALS
    if not file.is_file():
        return None
    try:
        proposal = _HospitalsFile.model_validate_json(file.read_bytes())
    except (ValidationError, OSError):
        raise DatasetError(f"expected `hospital_of_image` in {HOSPITALS}, file name to hospital") from None
    split: dict[str, list[str]] = defaultdict(list)
    for name, hospital in proposal.hospital_of_image.items():
        split[hospital].append(name)
    return {hospital: tuple(sorted(names)) for hospital, names in sorted(split.items())}


class _HospitalsFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    note: str = ""
    hospital_of_image: dict[str, str]


@dataclass
class _Folder:
    """The files below a data set's folder, found by the names that annotations use."""

    root: Path
    used: set[Path] = field(default_factory=set)

    def find(self, name: str) -> Path:
        relative = check_name(name)
        for folder in _FOLDERS:
            candidate = self.root / folder / relative
            if candidate.is_file():
                self.used.add(candidate)
                return candidate
        if name in self._by_uid:
            self.used.add(self._by_uid[name])
            return self._by_uid[name]
        raise UnusableImageError("expected the file that the annotations name, it is missing")

    @cached_property
    def _by_uid(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        # Each folder by itself too: it may be a link to where the images really are, and a search follows none.
        for file in sorted({file for folder in self._folders() for file in files_below(folder)}):
            if is_dicom(file):
                try:
                    found.setdefault(read_ct(file).sop_instance_uid, file)
                except UnusableImageError:
                    continue  # reported as a file that the annotations do not list
        return found

    def _folders(self) -> list[Path]:
        return [self.root / folder for folder in _FOLDERS if (self.root / folder).is_dir()]

    def unlisted(self) -> list[Skipped]:
        """Image files that no annotation names: without one, nobody knows whether they show a lesion."""
        files = (file for folder in self._folders()[1:] for file in files_below(folder))
        return [
            Skipped(file.name, NOT_ANNOTATED, path=file)
            for file in files
            if file not in self.used and _is_image(file)
        ]


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, hidden ones excepted, sorted.

    Raises:
        DatasetError: it is no folder.
    """
    if not folder.is_dir():
        raise DatasetError("expected a folder of images, this is none")
    return sorted(file for file in folder.rglob("*") if not file.name.startswith(".") and file.is_file())


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in RASTER_SUFFIXES or is_dicom(file)


@dataclass(frozen=True, eq=False)
class _Loaded:
    """An image that was read whole, with its CT slice where it is one."""

    image: LabelledImage
    slice: CtSlice | None


def _read(path: Path, annotations: AnnotationSet, window: WindowHU | None) -> Dataset:
    return _require_images(_look_at(path, annotations, window, by_uid=False))


def _require_images(dataset: Dataset) -> Dataset:
    if not dataset.images:
        skipped = dataset.skipped
        first = f"; the first: {skipped[0].reason}" if skipped else ""
        raise DatasetError(f"expected usable images in the folder, all of {len(skipped)} were skipped{first}")
    return dataset


def _look_at(path: Path, annotations: AnnotationSet, window: WindowHU | None, *, by_uid: bool) -> Dataset:
    folder = _Folder(path)
    hospital_of = {
        name: hospital for hospital, names in (read_hospital_split(path) or {}).items() for name in names
    }
    loaded: list[_Loaded] = []
    skipped: list[Skipped] = []
    for entry in annotations.images:
        try:
            loaded.append(_load(folder, entry, window, hospital_of.get(entry.name, ""), by_uid))
        except UnusableImageError as error:
            skipped.append(_skip(entry, str(error), path / entry.name if by_uid else None))
    loaded, inconsistent = _check_series(loaded)
    skipped += inconsistent + ([] if by_uid else folder.unlisted())
    images = tuple(item.image for item in loaded)
    return Dataset(path.name, annotations.categories, images, tuple(skipped))


def _skip(entry: AnnotatedImage, reason: str, file: Path | None) -> Skipped:
    """Name what was left out; of a file that was read without annotations, nobody knows the patient."""
    patient, study = ("", "") if file else _keys(entry.patient, entry.study, entry.name)
    return Skipped(PurePosixPath(entry.name).name, reason, patient, study, file)


def _keys(patient: str, study: str, name: str) -> tuple[str, str]:
    """The pseudonyms; an image whose annotations name no patient is a patient and a study of its own."""
    patient = patient or f"image:{name}"
    return patient_key(patient), study_key(study or f"patient:{patient}")


def _load(
    folder: _Folder, entry: AnnotatedImage, window: WindowHU | None, hospital: str, by_uid: bool
) -> _Loaded:
    if entry.problem:
        with suppress(UnusableImageError):
            folder.find(entry.name)  # so that it does not count once more, as a file that is not listed
        raise UnusableImageError(entry.problem)
    path = folder.find(entry.name)
    slice_ = read_ct(path) if by_uid or path.suffix.lower() not in RASTER_SUFFIXES else None
    # Decoded once here, so that a damaged file is reported at import and not in the middle of a round.
    height, width = slice_.hu.shape if slice_ else read_raster(path).shape[:2]
    if (entry.width or width, entry.height or height) != (width, height):
        raise UnusableImageError(
            f"expected {entry.width} x {entry.height} pixels as annotated, the file has {width} x {height}"
        )
    patient, study = _identify(entry, slice_)
    image = LabelledImage(
        image_id=slice_.sop_instance_uid if slice_ and by_uid else entry.name,
        patient=patient,
        study=study,
        width=width,
        height=height,
        boxes_xyxy=_cut_boxes(entry.boxes_xyxy, width, height),
        labels=entry.labels,
        spacing_mm=slice_.spacing_mm if slice_ else None,
        path=path,
        window=(window or window_for(slice_.body_part)) if slice_ else None,
        hospital=hospital,
        official_split=entry.official_split,
        acquisition=slice_.acquisition if slice_ else Acquisition(),
        series=study_key(f"series:{slice_.series_uid}") if slice_ else "",
        level_mm=slice_.level_mm if slice_ else 0.0,
        patient_known=bool(slice_ or entry.patient),  # a slice without one is refused
    )
    return _Loaded(image, slice_)


def _identify(entry: AnnotatedImage, slice_: CtSlice | None) -> tuple[str, str]:
    """Patient and study key; for DICOM the header decides, and the annotations must not contradict it."""
    if slice_ is None:
        return _keys(entry.patient, entry.study, entry.name)
    if entry.patient and slice_.patient_id and entry.patient != slice_.patient_id:
        raise UnusableImageError("expected one patient, annotations and header (0010,0020) name two")
    patient = slice_.patient_id or entry.patient
    if not patient:
        # Guessing, say by study, could put one person on both sides of a split.
        raise UnusableImageError(
            "expected a patient in header (0010,0020) or annotations, there is none: add a pseudonym"
        )
    return _keys(patient, slice_.study_uid or entry.study, entry.name)


def _cut_boxes(boxes_xyxy: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    size = np.array([width, height, width, height], dtype=np.float32)
    if ((boxes_xyxy < -_EDGE_PIXELS) | (boxes_xyxy > size + _EDGE_PIXELS)).any():
        raise UnusableImageError(f"expected boxes inside {width} x {height} pixels, one lies outside")
    cut: NDArray[np.float32] = np.clip(boxes_xyxy, 0.0, size).astype(np.float32)
    if (cut[:, 2:] - cut[:, :2] < 1.0).any():
        raise UnusableImageError("expected boxes of at least one pixel, one is empty")
    return cut


def _check_series(loaded: list[_Loaded]) -> tuple[list[_Loaded], list[Skipped]]:
    """Take out repeated SOPInstanceUIDs and what does not fit its series; order the rest by level."""
    seen: set[str] = set()
    series: dict[str, list[_Loaded]] = defaultdict(list)
    skipped: list[Skipped] = []
    for item in loaded:
        uid = item.slice.sop_instance_uid if item.slice else item.image.image_id
        if uid in seen:
            skipped.append(
                _leave_out(item, "expected every SOPInstanceUID (0008,0018) once, another file has it too")
            )
            continue
        seen.add(uid)
        series[item.slice.series_uid if item.slice else ""].append(item)
    kept: list[_Loaded] = []
    for uid, items in sorted(series.items()):
        fitting, others = (items, []) if uid == "" else _fit_series(items)
        kept += sorted(fitting, key=lambda item: item.slice.level_mm if item.slice else 0.0)
        skipped += others
    return kept, skipped


def _fit_series(items: list[_Loaded]) -> tuple[list[_Loaded], list[Skipped]]:
    """Split a series (0020,000E) into the slices that agree and the others."""
    if len({(item.image.patient, item.image.study) for item in items}) > 1:
        reason = "expected one patient and study a series (0020,000E), it has several"
        return [], [_leave_out(item, reason) for item in items]
    geometry = Counter(_geometry(item) for item in items).most_common(1)[0][0]
    reason = "expected matrix, spacing and orientation of its series (0020,000E), the slice has others"
    fitting = [item for item in items if _geometry(item) == geometry]
    return fitting, [_leave_out(item, reason) for item in items if _geometry(item) != geometry]


def _geometry(item: _Loaded) -> tuple[object, ...]:
    orientation = tuple(round(cosine, 3) for cosine in item.slice.orientation) if item.slice else ()
    spacing = tuple(round(mm, 4) for mm in item.image.spacing_mm or ())
    return item.image.width, item.image.height, spacing, orientation


def _leave_out(item: _Loaded, reason: str) -> Skipped:
    return Skipped(item.image.path.name, reason, item.image.patient, item.image.study, item.image.path)


def _unlabelled(name: str) -> AnnotatedImage:
    return AnnotatedImage(name, np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
