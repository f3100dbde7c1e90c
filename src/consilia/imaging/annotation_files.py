"""Which of the known layouts a file or folder of annotations has."""

from __future__ import annotations

from pathlib import Path

from consilia.errors import DatasetError
from consilia.imaging.annotations import AnnotationSet, parse_coco, parse_voc
from consilia.imaging.masks import CLASSES, parse_masks
from consilia.imaging.readers import ANNOTATIONS
from consilia.imaging.yolo import SizeOf, parse_yolo


def has_annotations(folder: Path) -> bool:
    """Whether a folder of images brings annotations along."""
    return any((folder / name).exists() for name in (ANNOTATIONS, "Annotations", CLASSES))


def masks_folder(path: Path) -> Path | None:
    """Where masks lie: in `masks/`, or beside the classes where nothing there could be YOLO's boxes; None: no masks."""
    if any((path / name).exists() for name in (ANNOTATIONS, "Annotations")) or not (path / CLASSES).is_file():
        return None
    if (path / "masks").is_dir():
        return path / "masks"
    boxes = (path / "labels").is_dir() or any(file.name != CLASSES for file in path.glob("*.txt"))
    return path if not boxes and any(path.glob("*.png")) else None


def parse_annotations(path: Path, size_of: SizeOf) -> AnnotationSet:
    """COCO (a JSON file or `annotations.json`), Pascal VOC (`Annotations/`), YOLO or masks (`classes.txt`).

    Raises:
        DatasetError: none of them, or not in its form.
    """
    if path.is_file():
        return parse_coco(path)
    if (path / ANNOTATIONS).is_file():
        return parse_coco(path / ANNOTATIONS)
    if (path / "Annotations").is_dir():
        return parse_voc(path)
    if (path / CLASSES).is_file():
        masks = masks_folder(path)
        return parse_yolo(path, size_of) if masks is None else parse_masks(masks, path / CLASSES)
    raise DatasetError(
        f"expected annotations: a COCO file, or a folder with annotations.json, Annotations/ or {CLASSES}"
    )
