"""`annotations.json` of an imported data set, written by us and merged import after import."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DatasetError
from consilia.imaging.annotations import AnnotatedImage, parse_coco


@dataclass(frozen=True, eq=False)
class CocoEntry:
    """One image with its boxes, under its new names."""

    name: str
    width: int
    height: int
    patient: str
    study: str
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    """1-based, in the categories that come with it."""
    official_split: str = ""


def merge_coco(path: Path, categories: tuple[str, ...], entries: Iterable[CocoEntry]) -> None:
    """Write a COCO file with what was there and what is new; categories keep their order, new ones follow.

    Raises:
        DatasetError: the file that is there is not COCO.
    """
    from consilia.imaging.holdings import write_whole

    known: dict[str, CocoEntry] = {}
    names: tuple[str, ...] = ()
    if path.is_file():
        before = parse_coco(path)
        names = before.categories
        known = {image.name: _kept(image) for image in before.images}
    names += tuple(name for name in categories if name not in names)
    number = np.array([0, *(names.index(name) + 1 for name in categories)], dtype=np.int64)
    for entry in entries:
        known[entry.name] = CocoEntry(
            entry.name, entry.width, entry.height, entry.patient, entry.study, entry.boxes_xyxy,
            number[entry.labels], entry.official_split,
        )  # fmt: skip
    if names:
        write_whole(path, json.dumps(_document(names, sorted(known.values(), key=lambda e: e.name))).encode())


def drop_from_coco(path: Path, name: str) -> None:
    """Take one image out of a COCO file, if it is there."""
    from consilia.imaging.holdings import write_whole

    if not path.is_file():
        return
    before = parse_coco(path)
    entries = [_kept(image) for image in before.images if image.name != name]
    if len(entries) < len(before.images):
        write_whole(path, json.dumps(_document(before.categories, entries)).encode())


def _kept(image: AnnotatedImage) -> CocoEntry:
    if image.problem or image.width is None or image.height is None:
        raise DatasetError(
            f"expected annotations that an import wrote, one entry is not: {image.problem or 'no size'}"
        )
    return CocoEntry(
        image.name, image.width, image.height, image.patient, image.study, image.boxes_xyxy, image.labels,
        image.official_split,
    )  # fmt: skip


def _document(names: tuple[str, ...], entries: list[CocoEntry]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number, entry in enumerate(entries, start=1):
        image = {
            "id": number, "file_name": entry.name, "width": entry.width, "height": entry.height,
            "patient": entry.patient, "study": entry.study,
        }  # fmt: skip
        images.append(image | ({"official_split": entry.official_split} if entry.official_split else {}))
        for (x1, y1, x2, y2), label in zip(entry.boxes_xyxy.tolist(), entry.labels.tolist(), strict=True):
            bbox = [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)]
            boxes.append({"id": len(boxes) + 1, "image_id": number, "category_id": label, "bbox": bbox})
    categories = [{"id": label, "name": name} for label, name in enumerate(names, start=1)]
    return {"categories": categories, "images": images, "annotations": boxes}
