"""Every detector of the family, by its name alone: builds, learns, averages, is saved and loaded, predicts."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from consilia.detection import weights
from consilia.detection.detectors import BODIES, DETECTORS, build
from consilia.detection.evaluation import predict
from consilia.detection.proposals import find, with_proposals
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.errors import SpecError
from consilia.federation.aggregate import WeightedUpdate, federated_average
from tests.detection.squares import square_example

SIZE = 64
SLIM = {"yolo": "darknet-small"}
"""The full Darknet-53 takes seconds a step; it has a test of its own."""

FIRST_WEIGHTS = {
    ("faster-rcnn", 1, 64, 9): "4d4daf69a6f36dd60f9ea9b491ab61b7a3a30a39d9fa3a8fbeadf1ee03cc3b42",
    ("faster-rcnn", 3, 192, 0): "799421e7d55b76ed2fc263b935698cdc3aa57b88bd754f4587dbf54f3bcb49a2",
    ("retinanet", 1, 64, 9): "84f2a32fbad82c04b2a8fb9c69c7813ab446bc0fb49e465ddb6475fdaed59313",
    ("retinanet", 3, 192, 0): "17d6add170d1645d2e41f533497194017cd0c4cfefdebb70d80678700a5ab537",
}
"""Digests of w_0 from when there were two detectors in one module: a published task must find its weights again."""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def pictures():
    """Their regions are searched once for all tests."""
    return with_proposals([square_example(i, lesions=1 + i % 2) for i in range(8)])


def built(name: str, seed: int = 0, num_classes: int = 1) -> torch.nn.Module:
    return build(name, num_classes=num_classes, image_size=SIZE, seed=seed, backbone=SLIM.get(name, ""))


@pytest.mark.parametrize("built_for", FIRST_WEIGHTS, ids=lambda values: "-".join(map(str, values)))
def test_the_defaults_have_the_weights_that_they_always_had(built_for, tmp_path):
    name, num_classes, size, seed = built_for
    weights.save(build(name, num_classes=num_classes, image_size=size, seed=seed), tmp_path / "w")
    assert hashlib.sha256((tmp_path / "w").read_bytes()).hexdigest() == FIRST_WEIGHTS[built_for]


@pytest.mark.parametrize("name", DETECTORS)
def test_learns_averages_is_saved_and_predicts(name, pictures, tmp_path):
    losses, files = [], []
    for seed in (0, 1):
        trainer = Trainer(
            name, 1, SIZE, Recipe(batch_size=2, warmup_steps=2), pictures, seed, backbone=SLIM.get(name, "")
        )
        losses = trainer.run(StepBudget(24, 0, 24))
        assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])  # eight steps see each picture twice
        files.append(tmp_path / f"update-{seed}")
        weights.save(trainer.model, files[-1])
    updates = [
        WeightedUpdate(f"0x{number:040x}", path, examples)
        for number, (path, examples) in enumerate(zip(files, (1, 3), strict=True))
    ]
    federated_average(updates, tmp_path / "average")
    mixed = built(name, seed=5)
    weights.load_into(mixed, tmp_path / "average")
    first, second = built(name), built(name)
    weights.load_into(first, files[0])
    weights.load_into(second, files[1])
    for key, tensor in mixed.state_dict().items():
        one, other = first.state_dict()[key].double(), second.state_dict()[key].double()
        assert torch.equal(tensor, ((one + 3 * other) / 4).float()), key
    weights.save(mixed, tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "average").read_bytes()
    assert len(predict(mixed, pictures[:1])) == 1


@pytest.mark.parametrize("name", DETECTORS)
def test_findings_are_in_the_original_pictures_pixels_and_inside_it(name, pictures):
    model = built(name, num_classes=2)
    if name in ("yolo", "yolo-small"):  # which finds nothing before it has learnt something
        with torch.no_grad():
            for head in model.heads:
                head[-1].bias += 3
    [small] = predict(model, pictures[:1])
    [large] = predict(model, [replace(pictures[0], original_px=(256, 256))])
    assert len(small.scores)
    assert large.boxes_xyxy == pytest.approx(small.boxes_xyxy * 4)
    assert small.boxes_xyxy.min() >= 0 and small.boxes_xyxy.max() <= SIZE
    assert set(small.labels.tolist()) <= {0, 1, 2}
    assert (np.diff(small.scores) <= 0).all()


@pytest.mark.parametrize("backbone", BODIES)
def test_every_backbone_has_the_strides_and_channels_that_it_says(backbone):
    body = BODIES[backbone]()
    features, maps = torch.rand(1, 3, 64, 64), {}
    with torch.inference_mode():
        for layer, module in body.net.named_children():
            features = module(features)
            maps[layer] = features
    for stage, channels in enumerate(body.channels, 1):
        assert maps[f"layer{stage}"].shape == (1, channels, 64 // 2 ** (stage + 1), 64 // 2 ** (stage + 1))
    assert {tensor.dtype for tensor in body.net.state_dict().values()} == {torch.float32}
    assert not [name for name in body.net.state_dict() if "running" in name]


TRUTH = {"boxes": torch.tensor([[10.0, 10, 40, 50]]), "labels": torch.tensor([1])}
REGIONS = torch.tensor([[8.0, 8, 42, 52], [0.0, 0, 20, 20], [30.0, 5, 60, 60]])


@pytest.mark.parametrize("backbone", [name for name in BODIES if name not in ("darknet-53", "resnet-50")])
@pytest.mark.parametrize("name", ["fast-rcnn", "r-cnn", "ssd", "yolo-small", "retinanet", "faster-rcnn"])
def test_stands_on_every_small_backbone(name, backbone):
    check_backward(build(name, num_classes=1, image_size=SIZE, seed=0, backbone=backbone))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "backbone"),
    [("yolo", "darknet-53"), *((name, "resnet-50") for name in DETECTORS), ("faster-rcnn", "darknet-53")],
)
def test_stands_on_the_large_backbones(name, backbone, tmp_path):
    model = build(name, num_classes=1, image_size=SIZE, seed=0, backbone=backbone)
    check_backward(model)
    weights.save(model, tmp_path / "w")
    weights.load_into(model, tmp_path / "w")
    halves = [WeightedUpdate(f"0x{n:040x}", tmp_path / "w", 1) for n in (1, 2)]
    federated_average(halves, tmp_path / "average")
    assert (tmp_path / "average").read_bytes() == (tmp_path / "w").read_bytes()


def check_backward(model: torch.nn.Module) -> None:
    """Finite losses of one step, and a gradient that reaches the first convolution."""
    losses = model.train()([torch.rand(3, SIZE, SIZE)], [{**TRUTH, "proposals": REGIONS}])
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    first = next(parameter for name, parameter in model.named_parameters() if parameter.ndim == 4)
    assert float(first.grad.abs().sum()) > 0


def test_yolo_as_in_the_report_has_its_size():
    model = build("yolo", num_classes=80, image_size=416, seed=0)
    convolutions = [module for module in model.backbone.body.modules() if isinstance(module, torch.nn.Conv2d)]
    assert len(convolutions) == 52  # Darknet-53 without its classifier
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(62e6, rel=0.02)


def test_regions_that_are_missing_at_prediction_are_searched(pictures):
    model = built("fast-rcnn")
    [with_them] = predict(model, pictures[:1])
    [without] = predict(model, [replace(pictures[0], proposals_xyxy=None)])
    assert (with_them.boxes_xyxy == without.boxes_xyxy).all()
    with torch.inference_mode():
        found = find(model, [torch.rand(3, SIZE, SIZE)], pictures[:1])
    assert len(found) == 1


def test_a_region_detector_looks_where_it_is_told_and_nowhere_else(pictures):
    model = built("fast-rcnn")
    nowhere = replace(pictures[0], proposals_xyxy=np.zeros((0, 4), np.float32))
    [found] = predict(model, [nowhere])
    assert len(found.scores) == 0


def test_an_unknown_backbone_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match=r"model\.backbone: expected one of cnn, .*resnet-50.*, got 'vgg'"):
        build("ssd", num_classes=1, image_size=SIZE, seed=0, backbone="vgg")
