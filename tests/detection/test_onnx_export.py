import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from consilia.detection.detectors import DETECTORS, build, yolo
from consilia.detection.inference import Detector
from consilia.detection.onnx_export import BOX_TOLERANCE_PX, drawn_picture, export_onnx
from consilia.errors import VerificationError

SIZE = 64
SLOW = {"yolo": pytest.mark.slow}  # 61.5 million parameters


def detector(name: str) -> Detector:
    model = build(name, num_classes=2, image_size=SIZE, seed=0)
    # RetinaNet and YOLO begin with equal scores everywhere: no order, no findings; training pulls them apart
    if name == "retinanet":
        nn.init.normal_(model.head.classification_head.cls_logits.weight, std=5.0)
    if name in ("yolo", "yolo-small"):
        for head in model.heads:
            nn.init.normal_(head[-1].weight, std=0.2)
            nn.init.zeros_(head[-1].bias)
    return Detector(model.eval(), SIZE, ("lesion", "mass"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=SLOW.get(name, ())) for name in DETECTORS])
def test_onnxruntime_finds_what_torch_finds(name, tmp_path):
    agreed = export_onnx(
        detector(name), tmp_path / "model.onnx", [drawn_picture(SIZE, seed) for seed in (0, 1)]
    )
    assert agreed.findings > 0 and agreed.largest_deviation_px < BOX_TOLERANCE_PX


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # of the tracer, on purpose
def test_the_most_candidates_of_yolo_hold_in_a_graph_of_another_picture(monkeypatch):
    monkeypatch.setattr(yolo, "MOST_CANDIDATES", 6)

    def found(scores, boxes):
        return tuple(yolo.findings(scores, boxes, (SIZE, SIZE)).values())

    def candidates(number):
        corner = torch.rand(number, 2) * SIZE / 2
        return torch.rand(number, 2) * 0.9 + 0.1, torch.cat([corner, corner + 1], dim=1)

    torch.manual_seed(0)
    few, many = candidates(2), candidates(20)  # of two classes each
    for traced_on in (few, many):
        graph = torch.jit.trace(found, traced_on, check_trace=False)
        for given in (few, many):
            for theirs, ours in zip(graph(*given), found(*given), strict=True):
                assert torch.equal(theirs, ours)


def test_the_file_says_what_it_is_and_takes_what_the_docs_say(tmp_path):
    export_onnx(
        detector("ssd"), tmp_path / "model.onnx", [drawn_picture(SIZE, 0)], {"consilia.digest": "ab" * 32}
    )
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert session.get_modelmeta().custom_metadata_map == {"consilia.digest": "ab" * 32}
    assert [(given.name, given.shape) for given in session.get_inputs()] == [("image", [3, SIZE, SIZE])]
    assert [given.name for given in session.get_outputs()] == ["boxes", "scores", "labels"]


def test_an_export_that_was_compared_on_nothing_is_refused(tmp_path):
    silent = build("yolo-small", num_classes=1, image_size=SIZE, seed=0).eval()
    (tmp_path / "model.onnx").write_text("an older one")
    with pytest.raises(VerificationError, match="nothing was compared"):
        export_onnx(Detector(silent, SIZE, ("lesion",)), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "an older one"


def test_a_graph_that_finds_something_else_is_refused(tmp_path, monkeypatch):
    from consilia.detection import onnx_export

    other = onnx_export._exported(
        onnx_export._Whole(build("ssd", num_classes=2, image_size=SIZE, seed=1)).eval(),
        onnx_export._inputs(nn.Identity(), drawn_picture(SIZE, 0)),
    )
    monkeypatch.setattr(onnx_export, "_exported", lambda whole, inputs: other)
    with pytest.raises(VerificationError, match="no partner"):
        export_onnx(detector("ssd"), tmp_path / "model.onnx", [drawn_picture(SIZE, 0)])
    assert not (tmp_path / "model.onnx").exists()


def test_a_drawn_picture_depends_on_its_seed():
    assert np.array_equal(drawn_picture(32, 1), drawn_picture(32, 1))
    assert not np.array_equal(drawn_picture(32, 1), drawn_picture(32, 2))
