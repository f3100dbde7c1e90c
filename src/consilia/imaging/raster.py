"""8-bit PNG and JPEG files, checked before and while they are decoded."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from consilia.errors import UnusableImageError

MAX_PIXELS = 4096 * 4096
"""An image larger than this is refused before anything is decoded: a few kilobytes can claim gigapixels."""

_COLOUR_MODES = {"RGB", "RGBA", "P", "PA", "YCbCr", "CMYK"}


def read_raster(path: Path, *, palette: bool = True) -> NDArray[np.uint8]:
    """Decode a PNG or JPEG to (H, W) grey or (H, W, 3) colour.

    A palette gives its colours, or without `palette` its numbers. Orientation marks of EXIF are ignored: boxes are
    drawn on the pixels as they are stored.

    Raises:
        UnusableImageError: not a PNG or JPEG, too large, more than 8 bits a sample, damaged or cut short.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                return _decode(image, palette)
    except Image.DecompressionBombError:
        raise UnusableImageError(f"expected at most {MAX_PIXELS} pixels, the file claims far more") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise UnusableImageError("expected a whole PNG or JPEG, the file is damaged or cut short") from error


def _decode(image: Image.Image, palette: bool) -> NDArray[np.uint8]:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise UnusableImageError(f"expected at most {MAX_PIXELS} pixels, the file claims {width} x {height}")
    if image.mode in ("1", "L", "LA"):
        return np.asarray(image.convert("L"), dtype=np.uint8)
    if image.mode == "P" and not palette:
        return np.asarray(image, dtype=np.uint8)
    if image.mode in _COLOUR_MODES:
        return np.asarray(image.convert("RGB"), dtype=np.uint8)
    raise UnusableImageError(
        f"expected 8 bits a sample, the file has mode {image.mode}: export CT as DICOM, which knows HU"
    )
