"""Masks to boxes: one box around each connected patch of a lesion's pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.annotations import AnnotatedImage, AnnotationSet, Box, annotated
from consilia.imaging.raster import read_raster

CLASSES = "classes.txt"
_MOST_PATCHES = 1000


def mask_boxes(mask: NDArray[np.bool_], label: int) -> list[Box]:
    """The boxes of all patches of a mask (rows, columns); pixels that touch at a corner are one patch.

    Raises:
        UnusableImageError: there are so many patches that the mask is noise.
    """
    from scipy import ndimage

    patches, count = ndimage.label(mask, structure=np.ones((3, 3), dtype=int))
    if count > _MOST_PATCHES:
        raise UnusableImageError(f"expected at most {_MOST_PATCHES} lesions in a mask, it has {count}")
    return [
        (label, float(x.start), float(y.start), float(x.stop), float(y.stop))
        for y, x in ndimage.find_objects(patches)
    ]


def parse_masks(folder: Path, classes: Path) -> AnnotationSet:
    """A folder of PNG masks, each named like its image; pixels hold the class's number from 1, 0 is background.

    Args:
        classes: a text file with the names of the classes, one a line.

    Raises:
        DatasetError: there are no masks, or no classes.
    """
    categories = read_classes(classes)
    files = sorted(folder.glob("*.png"))
    if not files:
        raise DatasetError("expected masks, PNG files named like their images; there are none")
    return AnnotationSet(categories, tuple(_mask_image(file, len(categories)) for file in files))


def read_classes(path: Path) -> tuple[str, ...]:
    """The names of classes, one a line.

    Raises:
        DatasetError: there is no such file, it is empty, or a name is there twice.
    """
    try:
        names = tuple(line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError):
        raise DatasetError(f"expected {CLASSES} with the names of the classes, one a line") from None
    if not names or len(set(names)) < len(names) or max(map(len, names)) > 200:
        raise DatasetError(f"expected different names in {CLASSES}, one a line; it is empty or repeats one")
    return names


def _mask_image(file: Path, classes: int) -> AnnotatedImage:
    try:
        pixels: NDArray[Any] = read_raster(file, palette=False)
        if pixels.ndim != 2:
            raise UnusableImageError("expected a grey mask, the file has colours")
        values = [int(value) for value in np.unique(pixels) if value]
        if values == [255] and classes == 1:
            pixels, values = (pixels > 0).astype(np.uint8), [1]
        if values and values[-1] > classes:
            raise UnusableImageError(f"expected classes 1 to {classes} in a mask, it holds {values[-1]}")
        boxes = [box for value in values for box in mask_boxes(pixels == value, value)]
    except UnusableImageError as error:
        return annotated(file.stem, [], problem=str(error))
    height, width = pixels.shape
    return annotated(file.stem, boxes, width=width, height=height)
