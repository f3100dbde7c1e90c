"""YOLO's text annotations: `labels/<image>.txt`, a line a box, `class x y width height` in parts of the image."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.annotations import AnnotatedImage, AnnotationSet, Box, annotated
from consilia.imaging.masks import CLASSES, read_classes

SizeOf = Callable[[str], tuple[int, int] | None]
"""Width and height of the image with this name, without its ending; None where there is none."""

_MAX_BYTES = 4 * 2**20


def parse_yolo(folder: Path, size_of: SizeOf) -> AnnotationSet:
    """Parse a folder with `classes.txt` and one text file an image, in it or in `labels/`; an empty one: no lesion.

    Classes count from 0 there and become labels 1..K. Names of images are those of the files, without ending and
    with the folders below `labels/`.

    Raises:
        DatasetError: there are no classes or no files.
    """
    categories = read_classes(folder / CLASSES)
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    files = sorted(file for file in labels.rglob("*.txt") if file.name != CLASSES)
    if not files:
        raise DatasetError("expected YOLO's text files named like their images; there are none")
    names = [file.relative_to(labels).with_suffix("").as_posix() for file in files]
    return AnnotationSet(
        categories,
        tuple(_image(file, name, len(categories), size_of) for file, name in zip(files, names, strict=True)),
    )


def _image(file: Path, name: str, classes: int, size_of: SizeOf) -> AnnotatedImage:
    size = size_of(name)
    if size is None:
        return annotated(name, [], problem="expected the image of these boxes, it is missing")
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise UnusableImageError(f"expected at most {_MAX_BYTES >> 20} MiB of boxes, the file is larger")
        lines = file.read_text("ascii").splitlines()
        boxes = [_box(line, classes, size) for line in lines if line.strip()]
    except (OSError, UnicodeDecodeError):
        return annotated(name, [], problem="expected YOLO's boxes as text, the file cannot be read")
    except UnusableImageError as error:
        return annotated(name, [], problem=str(error))
    return annotated(name, boxes, width=size[0], height=size[1])


def _box(line: str, classes: int, size: tuple[int, int]) -> Box:
    try:
        number, *parts = line.split()
        label, (x, y, width, height) = int(number), (float(part) for part in parts)
    except ValueError:
        raise UnusableImageError(
            "expected `class x y width height` a line, one line is something else"
        ) from None
    if not 0 <= label < classes:
        raise UnusableImageError(f"expected classes 0 to {classes - 1}, a line has {label}")
    if not all(math.isfinite(part) and 0 <= part <= 1 for part in (x, y, width, height)):
        raise UnusableImageError("expected parts of the image, 0 to 1, a line has a number beyond")
    columns, rows = size
    return (
        label + 1,
        (x - width / 2) * columns,
        (y - height / 2) * rows,
        (x + width / 2) * columns,
        (y + height / 2) * rows,
    )
