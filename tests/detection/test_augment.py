from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consilia.detection.augment import SCALE, SHIFT_HU, Augment, augmented
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


def test_where_sides_matter_nothing_is_mirrored():
    """The left rectangle must stay left of the middle, whatever else moves."""
    example = square_example(3)
    example.boxes_xyxy[0] = [8, 20, 20, 40]
    for seed in range(40):
        _, boxes, _ = augmented(example, Augment(mirror=False), np.random.default_rng(seed))
        assert boxes[0, [0, 2]].mean() < 32 and boxes[0, 1] < boxes[0, 3]


WINDOWS = ((40.0, 80.0), (80.0, 200.0), (600.0, 2800.0))


@given(seed=st.integers(0, 1000))
def test_intensity_moves_by_the_same_hounsfield_units_in_every_window(seed):
    """Through three windows of very different width one slice stays one slice."""
    hu = np.linspace(-900, 1900, 64 * 64).reshape(64, 64)
    units = [(hu - center) / width + 0.5 for center, width in WINDOWS]
    pixels = np.stack([np.rint(np.clip(unit, 0, 1) * 255) for unit in units], axis=2).astype(np.uint8)
    example = replace(square_example(3), pixels=pixels)
    still = Augment(mirror=False, zoom=0, shift=0, windows_hu=WINDOWS)
    values, _, _ = augmented(example, still, np.random.default_rng(seed))
    found = []
    for channel, (center, width) in enumerate(WINDOWS):
        inside = (pixels[..., channel] > 32) & (pixels[..., channel] < 223)  # stays in the narrowest window
        moved = (values[..., channel][inside] - 0.5) * width + center
        before = (pixels[..., channel][inside] / 255.0 - 0.5) * width + center
        found.append(np.polyfit(before, moved, 1))
        assert np.abs(moved - before).max() <= SHIFT_HU + SCALE * 1900 + 0.1
    assert np.array(found)[:, 0] == pytest.approx(found[0][0], abs=1e-4)
    assert np.array(found)[:, 1] == pytest.approx(found[0][1], abs=0.1)
    outside = (pixels == 0) | (pixels == 255)
    assert (values[outside] == pixels[outside] / 255).all(), "what the window cut off stays cut off"


def test_one_window_is_for_grey_and_for_three_slices():
    narrow = Augment(mirror=False, zoom=0, shift=0, windows_hu=WINDOWS[:1])
    for colour in (False, True):
        example = square_example(3, colour=colour)
        values, _, _ = augmented(example, narrow, np.random.default_rng(5))
        assert values.shape == example.pixels.shape and values.dtype == np.float32
        moved = np.abs(values - example.pixels / 255).max()
        assert 0 < moved <= (SHIFT_HU + SCALE * 80) / 80
