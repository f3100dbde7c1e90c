"""Canonical pixels: what of an image leaves for a diagnosis. One size, one depth, no header, no name.

What an image is known again by is not these: another model's size or window makes others of the same image.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consilia.errors import UnusableImageError
from consilia.imaging.burned_in import find_text
from consilia.imaging.cases import LabelledImage
from consilia.imaging.dicom import read_ct
from consilia.imaging.raster import read_raster
from consilia.values import Digest

HU_OF_A_GREY_LEVEL = 5.0
"""A picture of 8 bits has no Hounsfield units: a quarter of its range is taken for the contrast of drawn text in CT."""


@dataclass(frozen=True, eq=False)
class CanonicalImage:
    """An image as a model sees it, and what it is known again by whatever model sees it."""

    pixels: NDArray[np.uint8]
    """(image_size, image_size), grey."""
    scale_xy: tuple[float, float]
    """Canonical by original size, across and down: a side is a whole number of pixels, so each has its own ratio."""
    source: Digest
    """Of the pixels in the file, before any window and size."""
    marks: tuple[Digest, ...]
    """`source`, and one of the SOPInstanceUID (0008,0018) where there is one."""

    @property
    def digest(self) -> Digest:
        """SHA-256 of the canonical pixels."""
        return Digest.of(self.pixels.tobytes())


def read_canonical(image: LabelledImage, image_size: int) -> CanonicalImage:
    """Read an image once for its canonical pixels and its marks.

    Raises:
        UnusableImageError: it changed since it was read.
    """
    stored: NDArray[Any]
    if image.window is None:
        seen, instance = read_raster(image.path), ""
        stored = seen
    else:
        slice_ = read_ct(image.path)
        stored, instance = slice_.hu, slice_.sop_instance_uid
        channels = image.more_windows or image.neighbours
        seen = image.pixels() if channels else image.window.to_uint8(slice_.hu)
    told = f"consilia/source/v1/{stored.dtype.str}/{'x'.join(map(str, stored.shape))}/"
    source = Digest.of(told.encode() + stored.tobytes())
    instance_mark = (Digest.of(f"consilia/instance/v1/{instance}".encode()),) if instance else ()
    pixels, scale_xy = _canonical(seen, image_size)
    return CanonicalImage(pixels, scale_xy, source, (source, *instance_mark))


def shows_text(image: LabelledImage) -> bool:
    """Whether header or pixels make one suspect drawn text, such as a name; looked for before window and size.

    Raises:
        UnusableImageError: it changed since it was read.
    """
    if image.window is None:
        return bool(find_text(_grey(read_raster(image.path)), HU_OF_A_GREY_LEVEL))
    slice_ = read_ct(image.path)
    return slice_.burned_in or bool(find_text(slice_.hu, 1.0))


def fit(pixels: NDArray[np.uint8], image_size: int) -> NDArray[np.uint8]:
    """Resize to `image_size` pixels on the longer side: (H, W) or (H, W, 3).

    PIL's BILINEAR widens its filter when it shrinks a picture, so that fine noise does not alias.
    """
    height, width = pixels.shape[:2]
    scale = image_size / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))


def canonical_pixels(image: LabelledImage, image_size: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    """The image in grey as uint8 (image_size, image_size), after its HU window, and `scale_xy`.

    What is not square is filled with black at the right or the foot: all images of a query have one size.

    Raises:
        UnusableImageError: it changed since it was read.
    """
    return _canonical(image.pixels(), image_size)


def _canonical(pixels: NDArray[np.uint8], image_size: int) -> tuple[NDArray[np.uint8], tuple[float, float]]:
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or 0 in pixels.shape:
        raise UnusableImageError(f"expected uint8 pixels, got {pixels.dtype} of shape {pixels.shape}")
    pixels = _grey(pixels)
    fitted = fit(pixels, image_size)
    square = np.zeros((image_size, image_size), np.uint8)
    height, width = fitted.shape
    square[:height, :width] = fitted
    return square, (width / pixels.shape[1], height / pixels.shape[0])


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).convert("L")) if pixels.ndim == 3 else pixels
