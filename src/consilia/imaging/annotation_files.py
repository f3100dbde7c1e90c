"""Which of the known layouts a file or folder of annotations has."""

from __future__ import annotations

from pathlib import Path

from consilia.errors import DatasetError
from consilia.imaging.annotations import AnnotationSet, parse_coco, parse_voc
from consilia.imaging.masks import CLASSES, parse_masks
from consilia.imaging.yolo import SizeOf, parse_yolo


def has_annotations(folder: Path) -> bool:
    """Whether a folder of images brings annotations along."""
    return any((folder / name).exists() for name in ("annotations.json", "Annotations", CLASSES))


def parse_annotations(path: Path, size_of: SizeOf) -> AnnotationSet:
    """COCO (a JSON file or `annotations.json`), Pascal VOC (`Annotations/`), YOLO or masks (`classes.txt`).

    Raises:
        DatasetError: none of them, or not in its form.
    """
    if path.is_file():
        return parse_coco(path)
    if (path / "annotations.json").is_file():
        return parse_coco(path / "annotations.json")
    if (path / "Annotations").is_dir():
        return parse_voc(path)
    if (path / CLASSES).is_file():
        masks = path / "masks" if (path / "masks").is_dir() else path
        if masks != path or (not (path / "labels").is_dir() and any(path.glob("*.png"))):
            return parse_masks(masks, path / CLASSES)
        return parse_yolo(path, size_of)
    raise DatasetError(
        f"expected annotations: a COCO file, or a folder with annotations.json, Annotations/ or {CLASSES}"
    )
