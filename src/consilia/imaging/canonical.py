"""Canonical pixels: what of an image leaves for a diagnosis. One size, one depth, no header, no name."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consilia.errors import UnusableImageError
from consilia.imaging.cases import LabelledImage


def fit(pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Resize to `image_size` pixels on the longer side: (H, W) or (H, W, 3).

    PIL's BILINEAR widens its filter when it shrinks a picture, so that fine noise does not alias.
    """
    height, width = pixels.shape[:2]
    scale = image_size / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def canonical_pixels(image: LabelledImage, image_size: int) -> tuple[NDArray[np.uint8], float]:
    """The image in grey as uint8 (image_size, image_size), after its HU window, and resized by original size.

    What is not square is filled with black at the right or the foot: all images of a query have one size.

    Raises:
        UnusableImageError: it changed since it was read.
    """
    pixels = image.pixels()
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UnusableImageError(f"expected uint8 pixels, got {pixels.dtype} of shape {pixels.shape}")
    if pixels.ndim == 3:
        pixels = np.asarray(Image.fromarray(pixels).convert("L"))
    fitted = fit(pixels, image_size)
    square = np.zeros((image_size, image_size), np.uint8)
    square[: fitted.shape[0], : fitted.shape[1]] = fitted
    return square, image_size / max(pixels.shape[:2])
