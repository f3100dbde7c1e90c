"""Toy pictures: bright rectangles on dark noise, boxes known to the pixel."""

from __future__ import annotations

import numpy as np

from consilia.detection.examples import Example


def square_example(index: int, *, size: int = 64, lesions: int = 1, colour: bool = False) -> Example:
    """A picture with `lesions` bright rectangles of class 1, the same for the same index."""
    rng = np.random.default_rng(index)
    pixels = rng.integers(0, 60, (size, size), dtype=np.uint8)
    boxes = np.zeros((lesions, 4), np.float32)
    for row in boxes:
        left, top = rng.integers(4, size // 2, 2)
        width, height = rng.integers(size // 5, size // 3, 2)
        pixels[top : top + height, left : left + width] = 230
        row[:] = left, top, left + width, top + height
    if colour:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    return Example(
        f"picture-{index}", f"patient-{index}", pixels, boxes, np.ones(lesions, np.int64), (size, size)
    )
