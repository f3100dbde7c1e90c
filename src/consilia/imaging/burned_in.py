"""Text that was drawn into the pixels: suspected by header and by image, and given to a person to decide.

A scanner's pixels are noise around smooth tissue. Drawn characters are not: many small marks of exactly one value,
far from what surrounds them, of one height and in one row. Handwriting, one or two characters, or text that was
resampled after it was drawn can escape; so a person looks at a new scanner's images first (`consilia data preview`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from consilia.imaging.dicom import image_type

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Box = tuple[int, int, int, int]
"""x1, y1, x2, y2 in pixels."""

IN_HEADER = "Burned In Annotation (0028,0301) is YES"
NOT_ORIGINAL = "Image Type (0008,0008) is not ORIGINAL\\PRIMARY: somebody processed it"
CAPTURED = "the file went through a capture device (0008,0064)"
IN_IMAGE = "the image shows marks that look like text"

_HEIGHTS = (5, 64)
_WIDEST = 64
_FEWEST_IN_ROW = 4
_CONTRAST_HU = 300.0
_SPIKE = 8.0
"""How many times more frequent than its neighbours a value must be to look drawn."""
_FEWEST_PIXELS = 40
_MOST_VALUES = 6
_MARGIN = 3


@dataclass(frozen=True)
class Suspicion:
    """Why a person should look, and where; a suspicion by header alone has no places."""

    reasons: tuple[str, ...]
    boxes: tuple[Box, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.reasons)


def suspect(header: Dataset, stored: NDArray[Any], slope: float) -> Suspicion:
    """Look at both.

    Args:
        stored: stored values of one frame, (rows, columns).
        slope: HU a stored unit.
    """
    reasons = list(suspect_header(header))
    boxes = find_text(stored, abs(slope))
    if boxes:
        reasons.append(IN_IMAGE)
    return Suspicion(tuple(reasons), boxes)


def suspect_header(header: Dataset) -> tuple[str, ...]:
    """What the header itself says against the pixels; that it says nothing proves nothing."""
    reasons = []
    if str(header.get("BurnedInAnnotation") or "").strip().upper() == "YES":
        reasons.append(IN_HEADER)
    if image_type(header)[:2] != ("ORIGINAL", "PRIMARY"):
        reasons.append(NOT_ORIGINAL)
    if header.get("ConversionType") or header.get("SecondaryCaptureDeviceManufacturer"):
        reasons.append(CAPTURED)
    return tuple(reasons)


def find_text(stored: NDArray[Any], slope: float) -> tuple[Box, ...]:
    """Boxes around rows of marks that look drawn, with a margin; none in most images."""
    found = [
        box for value in _drawn_values(stored) for box in _rows_of_marks(stored, value, _CONTRAST_HU / slope)
    ]
    height, width = stored.shape
    grown = (
        (max(0, x1 - _MARGIN), max(0, y1 - _MARGIN), min(width, x2 + _MARGIN), min(height, y2 + _MARGIN))
        for x1, y1, x2, y2 in found
    )
    return tuple(sorted(set(grown)))


def _drawn_values(stored: NDArray[Any]) -> list[float]:
    """Values that far more pixels have than the values beside them, the largest too; what fills the frame is none."""
    values, counts = np.unique(stored, return_counts=True)
    if len(values) < 2:
        return []
    padded = np.pad(counts.astype(np.float64), 8, mode="edge")
    around = np.median(np.lib.stride_tricks.sliding_window_view(padded, 17), axis=1)
    spikes = (counts >= _FEWEST_PIXELS) & (counts > _SPIKE * np.maximum(around, 1.0))
    spikes[-1] |= counts[-1] >= _FEWEST_PIXELS
    candidates = values[spikes & (counts < stored.size // 4)]
    return [float(value) for value in candidates[::-1][:_MOST_VALUES]]


def _rows_of_marks(stored: NDArray[Any], value: float, contrast: float) -> list[Box]:
    from scipy import ndimage

    labels, _ = ndimage.label(stored == value, structure=np.ones((3, 3), dtype=int))
    marks = []
    for number, place in enumerate(ndimage.find_objects(labels), start=1):
        rows, columns = place
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not _HEIGHTS[0] <= height <= _HEIGHTS[1] or width > _WIDEST:
            continue
        if _stands_out(stored, labels, number, place, contrast):
            marks.append((columns.start, rows.start, columns.stop, rows.stop))
    return _group(marks)


def _stands_out(
    stored: NDArray[Any], labels: NDArray[Any], number: int, place: tuple[slice, slice], contrast: float
) -> bool:
    """Whether a mark is thin, and most of what touches it differs clearly."""
    rows, columns = place
    around = (
        slice(max(0, rows.start - 2), rows.stop + 2),
        slice(max(0, columns.start - 2), columns.stop + 2),
    )
    mark = labels[around] == number
    patch = stored[around].astype(np.float64)
    value = float(patch[mark][0])
    others = np.abs(patch[~mark] - value)
    return bool(others.size and (others > contrast).mean() > 0.6 and mark.sum() >= 4)


def _group(marks: list[Box]) -> list[Box]:
    """Rows of at least four marks of about one height, each near the next."""
    rows: list[list[Box]] = []
    for mark in sorted(marks):
        for row in rows:
            last = row[-1]
            height, before = mark[3] - mark[1], last[3] - last[1]
            overlap = min(mark[3], last[3]) - max(mark[1], last[1])
            near = mark[0] - last[2] <= 2 * max(height, before)
            if (
                near
                and overlap >= 0.5 * min(height, before)
                and max(height, before) <= 2 * min(height, before)
            ):
                row.append(mark)
                break
        else:
            rows.append([mark])
    return [
        (min(m[0] for m in row), min(m[1] for m in row), max(m[2] for m in row), max(m[3] for m in row))
        for row in rows
        if len(row) >= _FEWEST_IN_ROW
    ]


def blank(stored: NDArray[Any], boxes: tuple[Box, ...]) -> NDArray[Any]:
    """A copy with these boxes set to the frame's smallest value."""
    clean = stored.copy()
    for x1, y1, x2, y2 in boxes:
        clean[y1:y2, x1:x2] = stored.min()
    return clean
