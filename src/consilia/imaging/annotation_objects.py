"""Annotations that a PACS holds as DICOM: structured reports (TID 1500) and segmentations, as boxes on images.

Names of classes come from the standard's code books, never from a text of the file: a label can hold a name.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from consilia.errors import UnusableImageError
from consilia.imaging.annotations import Box
from consilia.imaging.decoding import Frames
from consilia.imaging.dicom_file import parse, quiet_parser
from consilia.imaging.masks import mask_boxes
from consilia.imaging.structured_report import MANUFACTURER

if TYPE_CHECKING:
    from pydicom.dataset import Dataset, FileDataset

REPORTS = tuple(f"1.2.840.10008.5.1.4.1.1.88.{number}" for number in (11, 22, 33, 34))
"""Basic text, enhanced, comprehensive and comprehensive 3D SR."""
SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"

_GROUP, _FINDING = ("125007", "DCM"), ("121071", "DCM")
"""Measurement Group, the container of one finding (TID 1410), and Finding."""
_MOST_POINTS = 100_000


@dataclass(frozen=True)
class ObjectBoxes:
    """The boxes of one object, by category, on the images that it names: SOPInstanceUID and frame from 1."""

    boxes: tuple[tuple[str, int, str, tuple[float, float, float, float]], ...]
    """(SOPInstanceUID, frame, category, x1 y1 x2 y2)"""
    images: tuple[tuple[str, int], ...]
    """All images that the object speaks of, those without a lesion too."""
    left_out: tuple[str, ...] = ()
    """Why single findings could not be used."""
    size: tuple[int, int] | None = None
    """Width and height that the images must have; None where the object does not say."""


def object_class(path: Path) -> str:
    """The SOP class of a DICOM file.

    Raises:
        UnusableImageError: it cannot be parsed.
    """
    with quiet_parser():
        return str(parse(path, pixels=False, only=("SOPClassUID",)).SOPClassUID)


def read_object(path: Path, category: str = "") -> ObjectBoxes:
    """Read a report or a segmentation.

    Args:
        category: the name of whatever it marks; empty: what its codes mean.

    Raises:
        UnusableImageError: it is neither, or nothing in it is a region on an image.
    """
    with quiet_parser():
        header = parse(path)
        if header.SOPClassUID in REPORTS:
            return _read_report(header, category)
        if header.SOPClassUID == SEGMENTATION:
            return _read_segmentation(header, category)
    raise UnusableImageError("expected a structured report or a segmentation, the file is neither")


def meaning(code: Any) -> str:
    """What a coded concept means by the standard's code books, lower case.

    Raises:
        UnusableImageError: no book of pydicom has it.
    """
    from pydicom.sr._concepts_dict import concepts

    books: dict[str, Any] = concepts
    scheme, value = str(code.get("CodingSchemeDesignator", "")), str(code.get("CodeValue", ""))
    for name in books.get("SCT" if scheme == "SRT" else scheme, {}).values():
        if value in name:
            return str(name[value][0]).lower()
    raise UnusableImageError(
        "expected a finding coded after DICOM's books, this code is in none: name it yourself"
    )


# Structured reports


def _read_report(header: Dataset, category: str) -> ObjectBoxes:
    if header.get("Manufacturer") == MANUFACTURER and header.get("VerificationFlag") != "VERIFIED":
        raise UnusableImageError(
            "expected what a person marked, the report has a detector's unverified findings"
        )
    found, left_out = [], []
    for group in _groups(header, 0):
        try:
            name = category or _finding(group)
            found += [(uid, frame, name, box) for uid, frame, box in _regions(group)]
        except UnusableImageError as error:
            left_out.append(str(error))
    if not found and not left_out:
        raise UnusableImageError("expected regions on images in a report (TID 1500), it has none")
    images = dict.fromkeys((uid, frame) for uid, frame, _, _ in found)
    return ObjectBoxes(tuple(found), tuple(images), tuple(left_out))


def _groups(item: Dataset, depth: int) -> Iterator[Dataset]:
    for child in item.get("ContentSequence") or () if depth < 16 else ():
        if child.get("ValueType") == "CONTAINER" and _concept(child) == _GROUP:
            yield child
        else:
            yield from _groups(child, depth + 1)


def _concept(item: Dataset) -> tuple[str, str]:
    names = item.get("ConceptNameCodeSequence")
    return (
        (str(names[0].get("CodeValue")), str(names[0].get("CodingSchemeDesignator"))) if names else ("", "")
    )


def _finding(group: Dataset) -> str:
    for child in group.get("ContentSequence") or ():
        if child.get("ValueType") == "CODE" and _concept(child) == _FINDING:
            return meaning(child.ConceptCodeSequence[0])
    raise UnusableImageError(
        "expected a Finding (121071, DCM) in a measurement group, it has none: name it yourself"
    )


def _regions(group: Dataset) -> Iterator[tuple[str, int, tuple[float, float, float, float]]]:
    regions = [
        child
        for child in group.get("ContentSequence") or ()
        if child.get("ValueType") in ("SCOORD", "SCOORD3D")
    ]
    if not regions:
        raise UnusableImageError("expected a region in a measurement group, it has none")
    for region in regions:
        if region.ValueType == "SCOORD3D":
            raise UnusableImageError(
                "expected a region in pixels (SCOORD), the report has one in space (SCOORD3D)"
            )
        box = _graphic_box(region)
        for source in region.get("ContentSequence") or ():
            for reference in source.get("ReferencedSOPSequence") or ():
                frames = reference.get("ReferencedFrameNumber") or 1
                for frame in [frames] if isinstance(frames, int) else list(frames):
                    yield str(reference.ReferencedSOPInstanceUID), int(frame), box


def _graphic_box(region: Dataset) -> tuple[float, float, float, float]:
    """The extent of a graphic; (0, 0) is the top left corner of the first pixel (PS3.3 C.18.6.1)."""
    data = np.asarray(region.GraphicData, dtype=np.float64)
    if data.size % 2 or not 4 <= data.size <= 2 * _MOST_POINTS or not np.isfinite(data).all():
        raise UnusableImageError("expected a region of two points or more, the report has another")
    points = data.reshape(-1, 2)
    kind = str(region.get("GraphicType"))
    if kind in ("POLYLINE", "MULTIPOINT") and len(points) > 2:
        low, high = points.min(axis=0), points.max(axis=0)
    elif kind == "CIRCLE" and len(points) == 2:
        radius = math.dist(points[0], points[1])
        low, high = points[0] - radius, points[0] + radius
    elif kind == "ELLIPSE" and len(points) == 4:
        # halves of both axes; an ellipse reaches the root of the sum of their squares in each direction
        halves = np.array([points[1] - points[0], points[3] - points[2]]) / 2
        centre, reach = points[:2].mean(axis=0), np.sqrt((halves**2).sum(axis=0))
        low, high = centre - reach, centre + reach
    else:
        raise UnusableImageError("expected a polyline, circle or ellipse, the report has another graphic")
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


# Segmentations


def _read_segmentation(header: FileDataset, category: str) -> ObjectBoxes:
    kind, frames = str(header.get("SegmentationType")), Frames(header)
    if kind not in ("BINARY", "FRACTIONAL"):
        raise UnusableImageError("expected a binary or fractional segmentation, it is of another type")
    names = {int(item.SegmentNumber): category or _segment_name(item) for item in header.SegmentSequence}
    least = 1 if kind == "BINARY" else max(1, int(header.get("MaximumFractionalValue", 255)) // 2)
    found: list[tuple[str, int, str, tuple[float, float, float, float]]] = []
    images = dict.fromkeys(_referenced(header))
    for index, item in enumerate(header.PerFrameFunctionalGroupsSequence[: frames.count]):
        [segment] = _macro(header, item, "SegmentIdentificationSequence")
        name = names[int(segment.ReferencedSegmentNumber)]
        boxes = mask_boxes(frames.stored(index) >= least, 1)
        sources = list(_frame_sources(header, item))
        if boxes and not sources:
            # Without this check its images would count as free of lesions.
            raise UnusableImageError("expected a segmentation whose frames name their images, one does not")
        for uid, frame in sources:
            images[uid, frame] = None
            found += [(uid, frame, name, box[1:]) for box in boxes]
    if not images:
        raise UnusableImageError("expected a segmentation that names its images, this one does not")
    return ObjectBoxes(tuple(found), tuple(images), size=(int(header.Columns), int(header.Rows)))


def _segment_name(item: Dataset) -> str:
    return meaning(item.SegmentedPropertyTypeCodeSequence[0])


def _macro(header: Dataset, item: Dataset, sequence: str) -> list[Dataset]:
    """The items of a frame's own functional group, or of the one that all frames share."""
    shared = header.get("SharedFunctionalGroupsSequence") or [{}]
    return list(item.get(sequence) or shared[0].get(sequence) or ())


def _frame_sources(header: Dataset, item: Dataset) -> Iterator[tuple[str, int]]:
    for derivation in _macro(header, item, "DerivationImageSequence"):
        for source in derivation.get("SourceImageSequence") or ():
            yield str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1)


def _referenced(header: Dataset) -> Iterator[tuple[str, int]]:
    """The single-frame images that the segmentation was made on: those it marks nothing on, too."""
    for series in header.get("ReferencedSeriesSequence") or ():
        for instance in series.get("ReferencedInstanceSequence") or ():
            if instance.ReferencedSOPClassUID == "1.2.840.10008.5.1.4.1.1.2":
                yield str(instance.ReferencedSOPInstanceUID), 1


def by_image(objects: list[ObjectBoxes], categories: tuple[str, ...]) -> dict[tuple[str, int], list[Box]]:
    """All boxes by image, with labels 1..K in the order of the categories."""
    label_of = {name: label for label, name in enumerate(categories, start=1)}
    found: dict[tuple[str, int], list[Box]] = defaultdict(list)
    for item in objects:
        for image in item.images:
            found.setdefault(image, [])  # without a box: without a lesion
        for uid, frame, name, box in item.boxes:
            found[uid, frame].append((label_of[name], *box))
    return dict(found)
