import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.detection.augment import Augment, augmented
from tests.detection.squares import square_example

NOTHING = Augment(mirror=False, zoom=0, shift=0, gain=0, offset=0)


def bright_box(pixels):
    rows, columns = np.nonzero(pixels > 0.5)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_without_changes_the_picture_stays():
    example = square_example(3)
    pixels, boxes, labels = augmented(example, NOTHING, np.random.default_rng(0))
    assert pixels == pytest.approx(example.pixels / 255)
    assert (boxes == example.boxes_xyxy).all()
    assert (labels == example.labels).all()


@given(index=st.integers(0, 50), seed=st.integers(0, 1000))
def test_the_box_stays_around_its_lesion(index, seed):
    geometry = Augment(mirror=True, zoom=0.2, shift=0.06, gain=0, offset=0)
    pixels, boxes, _ = augmented(square_example(index), geometry, np.random.default_rng(seed))
    assert boxes[0] == pytest.approx(bright_box(pixels), abs=1.5)


def test_mirrors_both_ways():
    mirror = Augment(mirror=True, zoom=0, shift=0, gain=0, offset=0)
    example = square_example(3)
    seen = {
        tuple(augmented(example, mirror, np.random.default_rng(seed))[1][0].tolist()) for seed in range(40)
    }
    assert len(seen) == 4


def test_a_lesion_pushed_out_of_the_picture_is_not_asked_for():
    example = square_example(3)
    example.boxes_xyxy[0] = [0, 0, 3, 3]
    far = Augment(mirror=False, zoom=0, shift=0.5, gain=0, offset=0)
    counts = {len(augmented(example, far, np.random.default_rng(seed))[2]) for seed in range(30)}
    assert counts == {0, 1}


@given(seed=st.integers(0, 1000))
def test_pixels_stay_in_range_and_the_example_is_not_touched(seed):
    example = square_example(3, colour=True)
    before = example.pixels.copy(), example.boxes_xyxy.copy()
    pixels, _, _ = augmented(example, Augment(gain=1.0, offset=0.5), np.random.default_rng(seed))
    assert pixels.shape == example.pixels.shape
    assert pixels.dtype == np.float32
    assert 0 <= pixels.min() <= pixels.max() <= 1
    assert (example.pixels == before[0]).all()
    assert (example.boxes_xyxy == before[1]).all()
