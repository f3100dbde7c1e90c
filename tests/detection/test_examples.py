from dataclasses import dataclass, field

import numpy as np
import pytest

from consilia.detection.examples import prepare
from consilia.errors import UnusableImageError


@dataclass
class Picture:
    """Stands where a `LabelledImage` stands: pixels from memory instead of from a file."""

    image_id: str
    data: np.ndarray
    boxes_xyxy: np.ndarray = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    patient: str = "patient"
    study: str = "study"
    spacing_mm: tuple[float, float] | None = (0.7, 0.8)
    hospital: str = "north"
    patient_known: bool = True

    def pixels(self) -> np.ndarray:
        if self.data.size == 0:
            raise UnusableImageError("cut short")
        return self.data


def test_a_picture_and_its_boxes_are_resized_together():
    data = np.zeros((100, 200), np.uint8)
    data[40:80, 100:160] = 255
    boxes = np.array([[100, 40, 160, 80]], np.float32)
    [example], skipped = prepare([Picture("a", data, boxes, np.array([2]))], 64)
    assert skipped == [] and (example.spacing_mm, example.hospital) == ((0.7, 0.8), "north")
    assert example.pixels.shape == (32, 64)
    assert example.scale_xyxy == pytest.approx(0.32)
    assert example.boxes_xyxy[0] == pytest.approx([32, 12.8, 51.2, 25.6])
    assert example.boxes_xyxy.dtype == np.float32
    assert example.labels.tolist() == [2]
    left, top, right, bottom = example.boxes_xyxy[0].round().astype(int)
    assert example.pixels[top + 1 : bottom - 1, left + 1 : right - 1].min() > 200
    assert example.pixels[:, : left - 1].max() < 50


@pytest.mark.parametrize(("width", "height"), [(333, 1000), (512, 507), (4, 2000), (64, 64)])
def test_boxes_follow_a_side_that_was_rounded_and_come_back_where_they_were(width, height):
    boxes = np.array([[0, 0, width, height], [width / 4, height / 4, width / 2, height / 2]], np.float32)
    picture = Picture("a", np.zeros((height, width), np.uint8), boxes, np.array([1, 1]))
    [example], _ = prepare([picture], 96)
    fitted_height, fitted_width = example.pixels.shape
    assert example.boxes_xyxy[0] == pytest.approx([0, 0, fitted_width, fitted_height])
    back = example.in_original(example.boxes_xyxy)
    assert back == pytest.approx(boxes[: len(back)], abs=1e-3)
    assert (back <= [width, height, width, height]).all(), "no box reaches out of the picture"


def test_small_pictures_grow_and_colours_stay():
    data = np.zeros((20, 10, 3), np.uint8)
    data[:, :, 1] = 200
    [example], _ = prepare([Picture("a", data)], 64)
    assert example.pixels.shape == (64, 32, 3)
    assert (example.pixels == [0, 200, 0]).all()


def test_a_damaged_picture_is_named_and_the_rest_is_used():
    good = np.zeros((8, 8), np.uint8)
    pictures = [
        Picture("good", good),
        Picture("cut", np.zeros(0, np.uint8)),
        Picture("deep", good.astype(np.uint16)),
        Picture("flat", good[0]),
        Picture("too", good),
    ]
    examples, skipped = prepare(pictures, 64)
    assert [example.image_id for example in examples] == ["good", "too"]
    assert [item.name for item in skipped] == ["cut", "deep", "flat"]
    assert skipped[0].reason == "cut short"
    assert "uint16" in skipped[1].reason
    assert skipped[0].study == "study"


def test_a_box_without_area_after_resizing_is_dropped():
    boxes = np.array([[10, 10, 12, 300], [10, 10, 300, 300]], np.float32)
    [example], _ = prepare([Picture("a", np.zeros((640, 640), np.uint8), boxes, np.array([1, 2]))], 64)
    assert example.labels.tolist() == [2]
