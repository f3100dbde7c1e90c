import pytest

from consilia.detection.detectors import build
from consilia.detection.inference import Detector
from consilia.detection.onnx_export import BOX_TOLERANCE_PX, export_onnx


@pytest.mark.parametrize("name", ["faster-rcnn"])
def test_onnxruntime_finds_what_torch_finds(name, tmp_path):
    model = build(name, num_classes=1, image_size=64, seed=0).eval()
    assert export_onnx(Detector(model, 64, ("lesion",)), tmp_path / "model.onnx") < BOX_TOLERANCE_PX
    assert (tmp_path / "model.onnx").stat().st_size > 1_000_000
