import numpy as np
import pytest
import torch
from PIL import Image

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.inference import Detector, load_detector
from consilia.errors import UnusableImageError, WeightsError
from consilia.imaging.cases import LabelledImage
from consilia.protocols.task_spec import parse_toml

SPEC = """title = "squares"
[purpose]
object_of_learning = "square"
application = "drawing"
[data]
format = "image"
categories = ["square"]
[model]
image_size = 64
"""


class BrightSpot(torch.nn.Module):
    """Finds the one bright rectangle of each picture."""

    def forward(self, images):
        found = []
        for image in images:
            rows, columns = torch.nonzero(image[0] > 0.5, as_tuple=True)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            found.append(
                {
                    "boxes": torch.tensor([box]).float(),
                    "scores": torch.ones(1),
                    "labels": torch.ones(1).long(),
                }
            )
        return found


def picture(width, height, box):
    pixels = np.zeros((height, width), np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return pixels


@pytest.mark.parametrize(("width", "height"), [(64, 64), (128, 96), (100, 256), (32, 20)])
def test_findings_come_back_in_pixels_of_each_original(width, height):
    box = (width // 4, height // 4, width // 2, height // 2)
    detector = Detector(BrightSpot(), 64, ("square",))
    pictures = [picture(width, height, box)] * 5  # more than a batch
    found = detector.find_in(pictures)
    assert len(found) == 5
    for finding in found:
        assert finding.boxes_xyxy[0] == pytest.approx(box, abs=max(width, height) / 64)


def test_a_finding_at_the_edge_stays_in_a_long_picture():
    found = Detector(BrightSpot(), 64, ("square",)).find_in([picture(333, 1000, (0, 0, 333, 1000))])[0]
    assert found.boxes_xyxy[0] == pytest.approx([0, 0, 333, 1000]) and found.boxes_xyxy[0, 2] <= 333


def test_findings_do_not_depend_on_the_neighbours():
    model = build("ssd", num_classes=1, image_size=64, seed=0)  # GroupNorm: black at the side would count
    detector = Detector(model.eval(), 64, ("square",))
    pictures = [picture(*side, (5, 5, 25, 25)) for side in ((64, 64), (64, 30), (30, 64), (64, 64))]
    together, reverse = detector.find_in(pictures), detector.find_in(pictures[::-1])[::-1]
    for number, alone in enumerate(detector.find_in([one])[0] for one in pictures):
        for found in (together[number], reverse[number]):
            assert found.scores == pytest.approx(alone.scores, abs=1e-5)
            assert found.boxes_xyxy == pytest.approx(alone.boxes_xyxy, abs=1e-2)


def test_files_and_pixels_give_the_same_findings_and_a_bad_file_is_named(tmp_path):
    def entry(name):
        no = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return LabelledImage(name, f"patient-{name}", name, 96, 128, *no, None, tmp_path / name)

    pixels = picture(96, 128, (10, 20, 50, 60))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    found, skipped = Detector(BrightSpot(), 64, ("square",)).find([entry("a.png"), entry("b.png")])
    assert [item.name for item in skipped] == ["b.png"]
    (finding,), (direct,) = found, Detector(BrightSpot(), 64, ("square",)).find_in([pixels])
    assert finding.image_id == "a.png"
    assert np.array_equal(finding.boxes_xyxy, direct.boxes_xyxy)


def test_pixels_of_another_type_are_refused():
    with pytest.raises(UnusableImageError, match="uint8"):
        Detector(BrightSpot(), 64, ("square",)).find_in([np.zeros((8, 8), np.float32)])


def test_a_detector_is_loaded_by_its_spec(tmp_path):
    spec = parse_toml(SPEC)
    model = build("faster-rcnn", num_classes=1, image_size=64, seed=3)
    weights.save(model, tmp_path / "model.safetensors")
    detector = load_detector(spec, tmp_path / "model.safetensors")
    pixels = picture(64, 64, (10, 10, 30, 30))
    again = Detector(model.eval(), 64, ("square",)).find_in([pixels])
    assert np.array_equal(detector.find_in([pixels])[0].boxes_xyxy, again[0].boxes_xyxy)
    other = parse_toml(SPEC.replace('["square"]', '["square", "disc"]'))
    with pytest.raises(WeightsError):
        load_detector(other, tmp_path / "model.safetensors")


def test_only_findings_of_a_score_remain():
    found = Detector(BrightSpot(), 64, ("square",)).find_in([picture(64, 64, (1, 1, 9, 9))])[0]
    assert len(found.above(1.0).scores) == 1
    assert len(found.above(1.1).boxes_xyxy) == 0
