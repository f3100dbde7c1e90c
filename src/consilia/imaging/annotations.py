"""Boxes from COCO JSON and Pascal VOC, parsed entry by entry: a bad entry costs its image, not the file."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError

from consilia.errors import DatasetError, UnusableImageError

_MAX_XML_BYTES = 4 * 2**20

Box = tuple[int, FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
"""Label (1-based), x1, y1, x2, y2."""


@dataclass(frozen=True, eq=False)
class AnnotatedImage:
    """What the annotations say about one image, before the image itself is looked at."""

    name: str
    """A path below the data set's folder, or a SOPInstanceUID."""
    boxes_xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]
    width: int | None = None
    height: int | None = None
    patient: str = ""
    """As written; empty where the annotations do not tell."""
    study: str = ""
    official_split: str = ""
    problem: str = ""
    """Why the image cannot be used, or empty."""


@dataclass(frozen=True)
class AnnotationSet:
    """All of it: the categories, labels 1..K in this order, and the images."""

    categories: tuple[str, ...]
    images: tuple[AnnotatedImage, ...]


class _CocoImage(BaseModel):
    model_config = ConfigDict(extra="ignore", coerce_numbers_to_str=True)
    id: int | str
    file_name: str = Field(min_length=1, max_length=1024)
    width: PositiveInt | None = None
    height: PositiveInt | None = None
    patient: str = ""
    study: str = ""
    official_split: str = Field(default="", pattern="^(train|val|test)?$")


class _CocoAnnotation(BaseModel):
    model_config = ConfigDict(extra="ignore")
    image_id: int | str
    category_id: int
    bbox: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat]
    iscrowd: int = 0


class _CocoCategory(BaseModel):
    model_config = ConfigDict(extra="ignore")
    id: int
    name: str = Field(min_length=1, max_length=200)


class _CocoFile(BaseModel):
    model_config = ConfigDict(extra="ignore")
    categories: list[_CocoCategory] = Field(min_length=1)
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


def parse_coco(path: Path) -> AnnotationSet:
    """Parse a COCO detection file; boxes are `[x, y, width, height]` there. Category ids sort to labels 1..K.

    Raises:
        DatasetError: not COCO at all: no JSON, a list is missing, categories are ambiguous.
    """
    coco = _load_coco(path)
    categories = sorted(coco.categories, key=lambda category: category.id)
    for what, values in (("id", [c.id for c in categories]), ("name", [c.name for c in categories])):
        if len(set(values)) < len(values):
            raise DatasetError(
                f"expected every category {what} of the annotations once, one is there twice: rename it"
            )
    label_of = {category.id: label for label, category in enumerate(categories, start=1)}
    boxes, problems = _coco_boxes(coco, label_of)
    counts = Counter(str(raw.get("file_name")) for raw in coco.images)
    images = []
    for raw in coco.images:
        problem = (
            "expected one entry an image, the annotations list it twice"
            if counts[str(raw.get("file_name"))] > 1
            else ""
        )
        images.append(_coco_image(raw, boxes, problems, problem))
    return AnnotationSet(tuple(category.name for category in categories), tuple(images))


def _load_coco(path: Path) -> _CocoFile:
    try:
        # Not json.loads: py-ecc lifts the interpreter's recursion limit, and deep nesting then crashes it.
        return _CocoFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DatasetError(
            f"expected to read the annotations, the system refused: {error.strerror}"
        ) from error
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        problem = f"`{where}` is missing or malformed" if where else "it is not JSON with these lists"
        raise DatasetError(f"expected COCO in the annotations, {problem}") from None


def _coco_boxes(coco: _CocoFile, label_of: dict[int, int]) -> tuple[dict[str, list[Box]], dict[str, str]]:
    """The boxes of every image id, and for some the reason why their annotations cannot be trusted."""
    boxes: dict[str, list[Box]] = defaultdict(list)
    problems: dict[str, str] = {}
    for raw in coco.annotations:
        image = str(raw.get("image_id"))
        try:
            annotation = _CocoAnnotation.model_validate(raw)
        except ValidationError:
            problems[image] = (
                "expected bbox [x, y, width, height] and a category_id, an annotation is malformed"
            )
            continue
        if annotation.category_id not in label_of:
            problems[image] = "expected a category of the list, an annotation has an unknown category_id"
        elif annotation.iscrowd:
            problems[image] = "expected one box a lesion, an annotation is a crowd"
        else:
            x, y, width, height = annotation.bbox
            boxes[image].append((label_of[annotation.category_id], x, y, x + width, y + height))
    return boxes, problems


def _coco_image(
    raw: dict[str, Any], boxes: dict[str, list[Box]], problems: dict[str, str], problem: str
) -> AnnotatedImage:
    try:
        entry = _CocoImage.model_validate(raw)
    except ValidationError as error:
        field = str(error.errors()[0]["loc"][0])
        name = str(raw.get("file_name", ""))[:1024] or "(an entry without a file name)"
        return annotated(name, [], problem=f"expected a usable `{field}` in the annotations, it is not")
    return annotated(
        entry.file_name,
        boxes.get(str(entry.id), []),
        width=entry.width,
        height=entry.height,
        patient=entry.patient,
        study=entry.study,
        official_split=entry.official_split,
        problem=problem or problems.get(str(entry.id), ""),
    )


def annotated(name: str, boxes: list[Box], **fields: Any) -> AnnotatedImage:
    """One image with its boxes as arrays; `fields` are those of `AnnotatedImage`."""
    table = np.asarray(boxes, dtype=np.float64).reshape(-1, 5)
    return AnnotatedImage(name, table[:, 1:].astype(np.float32), table[:, 0].astype(np.int64), **fields)


def parse_voc(folder: Path) -> AnnotationSet:
    """Parse Pascal VOC: `Annotations/*.xml`, pixel indices from 1 and inclusive, names sorted to labels 1..K.

    `ImageSets/Main/{train,val,test}.txt`, where present, become the official split.

    Raises:
        DatasetError: there is no annotation file, or none can be read.
    """
    files = sorted((folder / "Annotations").glob("*.xml"))
    parsed = {file: _read_voc_file(file) for file in files}
    categories = tuple(sorted({name for entry in parsed.values() for name, _ in entry.objects}))
    if not categories:
        raise DatasetError(f"expected Pascal VOC in Annotations/, no object of {len(files)} files is usable")
    label_of = {name: label for label, name in enumerate(categories, start=1)}
    split_of = _voc_splits(folder)
    return AnnotationSet(
        categories,
        tuple(
            annotated(
                entry.name,
                [(label_of[name], *corners) for name, corners in entry.objects],
                width=entry.width,
                height=entry.height,
                official_split=split_of.get(file.stem, ""),
                problem=entry.problem,
            )
            for file, entry in parsed.items()
        ),
    )


@dataclass(frozen=True)
class _VocFile:
    name: str
    width: int | None = None
    height: int | None = None
    objects: tuple[tuple[str, tuple[float, float, float, float]], ...] = ()
    problem: str = ""


def _read_voc_file(file: Path) -> _VocFile:
    try:
        return _parse_voc_xml(file)
    except UnusableImageError as error:
        return _VocFile(file.name, problem=str(error))
    except (ElementTree.ParseError, OSError, ValueError, AttributeError, TypeError):
        return _VocFile(
            file.name, problem="expected a Pascal VOC annotation, the XML is damaged or incomplete"
        )


def _parse_voc_xml(file: Path) -> _VocFile:
    if file.stat().st_size > _MAX_XML_BYTES:
        raise UnusableImageError(f"expected at most {_MAX_XML_BYTES >> 20} MiB of XML, the file is larger")
    text = file.read_text("utf-8-sig")
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise UnusableImageError("expected XML without a document type: entities can unfold to gigabytes")
    root = ElementTree.fromstring(text)
    size = root.find("size")
    objects = tuple((_text(node, "name"), _voc_corners(node)) for node in root.iter("object"))
    return _VocFile(
        name=(root.findtext("filename") or f"{file.stem}.jpg").strip(),
        width=int(_text(size, "width")) if size is not None else None,
        height=int(_text(size, "height")) if size is not None else None,
        objects=objects,
    )


def _voc_corners(node: ElementTree.Element) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(_text(node, f"bndbox/{corner}")) for corner in ("xmin", "ymin", "xmax", "ymax"))
    return x1 - 1.0, y1 - 1.0, x2, y2


def _text(node: ElementTree.Element, path: str) -> str:
    text = (node.findtext(path) or "").strip()
    if not text:
        raise UnusableImageError(f"expected `{path}` in the Pascal VOC annotation, it is missing")
    return text


def _voc_splits(folder: Path) -> dict[str, str]:
    split_of: dict[str, str] = {}
    for split in ("train", "val", "test"):
        listing = folder / "ImageSets" / "Main" / f"{split}.txt"
        if listing.is_file():
            split_of.update(
                {line.split()[0]: split for line in listing.read_text("utf-8").splitlines() if line.strip()}
            )
    return split_of


def check_name(name: str) -> PurePosixPath:
    """The name as a path below the data set's folder.

    Raises:
        UnusableImageError: it is absolute or climbs out: annotations must not read other files.
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in path.parts[0]:
        raise UnusableImageError(
            "expected a path below the data set's folder, the annotations point elsewhere"
        )
    return path
