"""Three channels of one CT slice: three HU windows, or the slice between its neighbours (2.5D)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median

from consilia.errors import DatasetError
from consilia.imaging.cases import Dataset, LabelledImage, WindowHU

FARTHEST = 1.5
"""A neighbour farther away than this many usual gaps of its series is of another place: the slice stands in for it."""


def with_windows(dataset: Dataset, windows: Sequence[WindowHU]) -> Dataset:
    """Every image seen through three windows at once, one a channel.

    Raises:
        DatasetError: an image is no CT in DICOM, so it has no Hounsfield units.
    """
    _require_ct(dataset, "three HU windows")
    images = [replace(image, window=windows[0], more_windows=tuple(windows[1:])) for image in dataset.images]
    return replace(dataset, images=tuple(images))


def with_neighbours(dataset: Dataset) -> Dataset:
    """Every image between the slices below and above it in its series, of those that the data set has.

    Raises:
        DatasetError: an image is no CT in DICOM, so nobody knows which slices lie beside it.
    """
    _require_ct(dataset, "neighbouring slices")
    series: dict[str, list[LabelledImage]] = defaultdict(list)
    for image in dataset.images:
        series[image.series].append(image)
    between: dict[str, LabelledImage] = {}
    for images in series.values():
        ordered = sorted(images, key=lambda image: image.level_mm)
        gaps = [b.level_mm - a.level_mm for a, b in pairwise(ordered)]
        limit_mm = FARTHEST * median(gaps) if gaps else 0.0
        for place, image in enumerate(ordered):
            beside = [ordered[max(0, place - 1)], ordered[min(len(ordered) - 1, place + 1)]]
            near = [other if abs(other.level_mm - image.level_mm) <= limit_mm else image for other in beside]
            between[image.image_id] = replace(image, neighbours=(near[0].path, near[1].path))
    return replace(dataset, images=tuple(between[image.image_id] for image in dataset.images))


def _require_ct(dataset: Dataset, what: str) -> None:
    plain = sum(image.window is None for image in dataset.images)
    if plain:
        raise DatasetError(
            f"the task asks for {what}, which only CT in DICOM has: {plain} of {len(dataset.images)} images of "
            f"{dataset.name} are plain pictures"
        )
