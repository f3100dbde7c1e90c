"""Random changes of a training picture that a lesion survives: mirror, zoom, shift, brightness, contrast; or HU."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from consilia.detection.examples import Example

SMALLEST_SIDE_PX = 2.0
"""A box cut thinner than this at the picture's edge shows too little of its lesion to be asked for."""

SHIFT_HU = 7.0
"""Water may read 0 +- 7 HU on an accredited scanner (ACR, CT phantom test)."""
SCALE = 0.03
"""Tube voltage and filters move everything but water and air; soft tissue by a few parts in a hundred."""


@dataclass(frozen=True)
class Augment:
    """How far each change may go; all zero and False leaves the picture as it is."""

    mirror: bool = True
    """Left and right, top and bottom: most detectors of lesions need no sense of sides. False where they do: either
    mirror turns a left side into a right one."""
    zoom: float = 0.2
    """Up to 20 % larger or smaller: about how much heads and fields of view differ."""
    shift: float = 0.06
    """Of the picture's side."""
    gain: float = 0.2
    offset: float = 0.08
    """Contrast and brightness: about how much scanners and windows differ."""
    windows_hu: tuple[tuple[float, float], ...] = ()
    """(center, width) of one window, or of each channel's: then intensity moves in HU, in place of the two above."""


def augmented(
    example: Example, augment: Augment, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """One random variant: pixels float32 (H, W) or (H, W, 3) in [0, 1], boxes_xyxy (n, 4), labels (n,)."""
    pixels, boxes = example.pixels, example.boxes_xyxy.copy()
    height, width = pixels.shape[:2]
    if augment.zoom or augment.shift:
        pixels, boxes = _zoomed_and_shifted(pixels, boxes, augment, rng)
    if augment.mirror and rng.random() < 0.5:
        pixels, boxes[:, [0, 2]] = pixels[:, ::-1], width - boxes[:, [2, 0]]
    if augment.mirror and rng.random() < 0.5:
        pixels, boxes[:, [1, 3]] = pixels[::-1], height - boxes[:, [3, 1]]
    values = _another_scanner(pixels, augment, rng) if augment.windows_hu else _brighter(pixels, augment, rng)
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    kept = ((boxes[:, 2:] - boxes[:, :2]) > SMALLEST_SIDE_PX).all(axis=1)
    return values, boxes[kept], example.labels[kept]


def _brighter(
    pixels: npt.NDArray[np.uint8], augment: Augment, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    gain = np.float32(np.exp(rng.uniform(-augment.gain, augment.gain)) / 255)
    offset = np.float32(rng.uniform(-augment.offset, augment.offset))
    values: npt.NDArray[np.float32] = np.clip(pixels.astype(np.float32) * gain + offset, 0, 1)
    return values


def _another_scanner(
    pixels: npt.NDArray[np.uint8], augment: Augment, rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """The slice as another scanner would have it: HU' = (1 + scale) HU + shift, in every channel's window alike.

    What the window has cut off stays cut off: nobody knows how far beyond it was.
    """
    scale, shift_hu = rng.uniform(-SCALE, SCALE), rng.uniform(-SHIFT_HU, SHIFT_HU)
    center, width = np.array(augment.windows_hu).T
    gain = np.float32((1 + scale) / 255)
    offset = ((scale * (center - width / 2) + shift_hu) / width).astype(np.float32)
    moved = pixels.astype(np.float32) * gain + (offset if len(offset) > 1 else offset[0])
    cut_off = (pixels == 0) | (pixels == 255)
    values: npt.NDArray[np.float32] = np.where(cut_off, pixels == 255, np.clip(moved, 0, 1)).astype(
        np.float32
    )
    return values


def _zoomed_and_shifted(
    pixels: npt.NDArray[np.uint8],
    boxes_xyxy: npt.NDArray[np.float32],
    augment: Augment,
    rng: np.random.Generator,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Scale about the centre, then shift; what comes in from outside is black."""
    height, width = pixels.shape[:2]
    zoom = 1 + rng.uniform(-augment.zoom, augment.zoom)
    to = rng.uniform(-augment.shift, augment.shift, 2) * (width, height) + (1 - zoom) / 2 * np.array(
        [width, height]
    )
    # PIL asks where each new pixel comes from: the inverse of x -> zoom * x + to
    inverse = (1 / zoom, 0, -to[0] / zoom, 0, 1 / zoom, -to[1] / zoom)
    image = Image.fromarray(pixels).transform(
        (width, height), Image.Transform.AFFINE, inverse, Image.Resampling.BILINEAR
    )
    return np.asarray(image), (boxes_xyxy * zoom + np.tile(to, 2)).astype(np.float32)
