"""Pictures made ready for a detector: decoded once, resized to fit, kept as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    these pixels; `labels` is int64 (n,), from 1; `scale` is resized by original size; `spacing_mm` is that of
    the original pixels, between rows and columns, where it is known.
    """

    image_id: str
    patient: str
    pixels: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    scale: float
    spacing_mm: tuple[float, float] | None = None
    hospital: str = ""
    proposals_xyxy: npt.NDArray[np.float32] | None = None
    """Regions to judge, float32 (n, 4), for the detectors that are given them (see `proposals`)."""
    patient_known: bool = True
    """False where the picture stands for a patient of its own, since nothing tells whose it is."""


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


def resized(pixels: npt.NDArray[np.uint8], image_size: int) -> tuple[npt.NDArray[np.uint8], float]:
    """A picture whose longer side is `image_size`, and by how much it was scaled.

    Raises:
        UnusableImageError: it is not uint8 (H, W) or (H, W, 3).
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UnusableImageError(
            f"expected uint8 pixels (H, W) or (H, W, 3), got {pixels.dtype} {pixels.shape}"
        )
    height, width = pixels.shape[:2]
    scale = image_size / max(height, width)
    return fit(pixels, image_size), scale


def _prepare_one(image: LabelledImage, image_size: int) -> Example:
    pixels, scale = resized(image.pixels(), image_size)
    height, width = pixels.shape[:2]
    boxes = np.asarray(image.boxes_xyxy, np.float32).reshape(-1, 4) * np.float32(scale)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    good = ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE_PX).all(axis=1)
    labels = np.asarray(image.labels, np.int64)
    return Example(
        image.image_id,
        image.patient,
        pixels,
        boxes[good],
        labels[good],
        scale,
        image.spacing_mm,
        image.hospital,
        patient_known=image.patient_known,
    )
