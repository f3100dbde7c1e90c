"""Canonical pixels have one size and depth whatever the image was, and are what a detector is fed in training."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from consilia.detection.examples import prepare
from consilia.imaging.canonical import canonical_pixels
from consilia.imaging.cases import LabelledImage


def image_of(tmp_path, pixels):
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    height, width = pixels.shape[:2]
    boxes, labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return LabelledImage("image", "p", "s", width, height, boxes, labels, None, path)


@pytest.mark.parametrize("shape", [(64, 64), (50, 80), (80, 50), (64, 64, 3), (1, 300)], ids=str)
def test_every_image_gets_one_size(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(1, 255, shape, np.uint8)
    canonical, (across, down) = canonical_pixels(image_of(tmp_path, pixels), 32)
    assert (canonical.shape, canonical.dtype) == ((32, 32), np.uint8)
    height, width = (max(1, round(side * 32 / max(shape[:2]))) for side in shape[:2])
    assert (across, down) == (width / shape[1], height / shape[0])
    assert (canonical[:height, :width] > 0).any()
    assert not canonical[height:].any() and not canonical[:, width:].any()


def test_a_detector_sees_in_a_query_what_it_saw_in_training(tmp_path):
    image = image_of(tmp_path, np.random.default_rng(1).integers(0, 255, (61, 96), np.uint8))
    (example,), _ = prepare([image], 48)
    canonical, scale_xy = canonical_pixels(image, 48)
    assert (canonical[: len(example.pixels)] == example.pixels).all()
    assert (scale_xy * 2 == example.scale_xyxy).all()
