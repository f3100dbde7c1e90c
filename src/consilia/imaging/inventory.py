"""What a hospital's folder holds, case by case, in numbers and new names."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from consilia.imaging.annotations import AnnotationSet, parse_coco
from consilia.imaging.holdings import Holdings
from consilia.imaging.readers import ANNOTATIONS, read_dataset


@dataclass(frozen=True)
class Case:
    """One study of a patient."""

    patient: str
    study: str
    series: int
    images: int
    annotated: int
    boxes: int
    quarantined: int


@dataclass(frozen=True)
class Inventory:
    """All cases, patient by patient."""

    cases: tuple[Case, ...]
    boxes_by_category: tuple[tuple[str, int], ...]

    @property
    def patients(self) -> int:
        """How many there are."""
        return len({case.patient for case in self.cases})

    @property
    def series(self) -> int:
        """How many there are."""
        return sum(case.series for case in self.cases)


def take_inventory(path: Path, holdings: Holdings) -> Inventory:
    """Count an imported folder by its files, any other by what a reader finds in it.

    Raises:
        DatasetError: it is neither.
    """
    if not (path / "dicom").is_dir() and not (path / "quarantine").is_dir():
        return _of_reader(path)
    said = parse_coco(path / ANNOTATIONS) if (path / ANNOTATIONS).is_file() else AnnotationSet((), ())
    boxes = {image.name: image.labels.tolist() for image in said.images}
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    series: dict[tuple[str, str], set[str]] = defaultdict(set)
    for item in holdings.slices():
        case, name = (item.place.patient, item.place.study_uid), holdings.name_of(item.place)
        series[case].add(item.place.series_uid)
        counts[case].update(images=1, annotated=int(name in boxes), boxes=len(boxes.get(name, ())))
    for waiting in holdings.quarantined():
        case = (waiting.patient, waiting.study_uid)
        series[case].add(waiting.series_uid)
        counts[case].update(quarantined=1)
    for image in said.images:
        if image.name.startswith("images/"):
            counts[image.patient, image.study].update(images=1, annotated=1, boxes=len(image.labels))
    labels = Counter(label for found in boxes.values() for label in found)
    return Inventory(
        tuple(
            Case(
                *key,
                len(series[key]),
                *(found[name] for name in ("images", "annotated", "boxes", "quarantined")),
            )
            for key, found in sorted(counts.items())
        ),
        tuple((name, labels[label]) for label, name in enumerate(said.categories, start=1)),
    )


def _of_reader(path: Path) -> Inventory:
    dataset = read_dataset(path)
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for image in dataset.images:
        counts[image.patient, image.study].update(images=1, boxes=len(image.labels))
    cases = (
        Case(*key, 1, found["images"], found["images"], found["boxes"], 0)
        for key, found in sorted(counts.items())
    )
    return Inventory(tuple(cases), dataset.summary().boxes_by_category)
