"""Pictures made ready for a detector: decoded once, resized to fit, kept as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from consilia.errors import UnusableImageError
from consilia.imaging.canonical import fit
from consilia.imaging.cases import LabelledImage, Skipped

SMALLEST_SIDE_PX = 1.0
"""A box thinner than this after resizing has no area to learn from; it is dropped."""


@dataclass(frozen=True)
class Example:
    """A picture that fits the detector, with its lesions.

    `pixels` is uint8 (H, W) or (H, W, 3), the longer side `image_size`; `boxes_xyxy` is float32 (n, 4) in
    these pixels; `labels` is int64 (n,), from 1; `original_px` is the width and height of the picture as it came;
    `spacing_mm` is that of its pixels, between rows and columns, where it is known.
    """

    image_id: str
    patient: str
    pixels: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    original_px: tuple[int, int]
    spacing_mm: tuple[float, float] | None = None
    hospital: str = ""
    proposals_xyxy: npt.NDArray[np.float32] | None = None
    """Regions to judge, float32 (n, 4), for the detectors that are given them (see `proposals`)."""
    patient_known: bool = True
    """False where the picture stands for a patient of its own, since nothing tells whose it is."""

    @property
    def scale_xyxy(self) -> npt.NDArray[np.float64]:
        """Resized by original size, (4,): a side is a whole number of pixels, so each axis has its own ratio."""
        height, width = self.pixels.shape[:2]
        across, down = width / self.original_px[0], height / self.original_px[1]
        return np.array([across, down, across, down])

    def in_original(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Boxes (n, 4) of these pixels in pixels of the original picture, and inside it."""
        edges = np.array(self.original_px * 2, np.float32)
        return np.clip(boxes_xyxy / self.scale_xyxy.astype(np.float32), 0, edges)


def prepare(images: Sequence[LabelledImage], image_size: int) -> tuple[list[Example], list[Skipped]]:
    """Decode and resize every picture; one that cannot be decoded is skipped and named.

    Args:
        images: labelled pictures of any size.
        image_size: the longer side of the result in pixels.
    """
    examples: list[Example] = []
    skipped: list[Skipped] = []
    for image in images:
        try:
            examples.append(_prepare_one(image, image_size))
        except (UnusableImageError, OSError) as error:
            skipped.append(Skipped(image.image_id, str(error), image.patient, image.study))
    return examples, skipped


def resized(pixels: npt.NDArray[np.uint8], image_size: int) -> npt.NDArray[np.uint8]:
    """The picture with a longer side of `image_size`.

    Raises:
        UnusableImageError: it is not uint8 (H, W) or (H, W, 3).
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UnusableImageError(
            f"expected uint8 pixels (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    return fit(pixels, image_size)


def _prepare_one(image: LabelledImage, image_size: int) -> Example:
    original = image.pixels()
    pixels = resized(original, image_size)
    example = Example(
        image.image_id,
        image.patient,
        pixels,
        np.asarray(image.boxes_xyxy, np.float32).reshape(-1, 4),
        np.asarray(image.labels, np.int64),
        (original.shape[1], original.shape[0]),
        image.spacing_mm,
        image.hospital,
        patient_known=image.patient_known,
    )
    height, width = pixels.shape[:2]
    boxes = example.boxes_xyxy * example.scale_xyxy.astype(np.float32)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    good = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE_PX).all(axis=1)
    return replace(example, boxes_xyxy=boxes[good], labels=example.labels[good])
