"""A detector from elsewhere comes in by an entry point: the example's, and ones that must be refused."""

from __future__ import annotations

import importlib.util
import os
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch

from consilia.detection import weights
from consilia.detection.detectors import ENTRY_POINTS, build, families
from consilia.detection.inference import predict
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.errors import SpecError
from consilia.federation.aggregate import WeightedUpdate, federated_average
from consilia.settings.sections import PolicySection
from tests.detection.installed import install_detectors
from tests.detection.squares import square_example

EXAMPLE = Path(__file__).parents[2] / "examples" / "detector-from-transformers"
SIZE = 64


def require_transformers() -> None:
    """Skip, but not in CI: an example that nobody runs is a promise."""
    if importlib.util.find_spec("transformers") is not None:
        return
    reason = "transformers is missing: pip install -e .[dev]"
    if os.environ.get("CI"):
        pytest.fail(f"CI must run the example: {reason}")
    pytest.skip(f"THE EXAMPLE WAS NOT RUN: {reason}")


@pytest.fixture
def install(tmp_path, monkeypatch):
    return lambda *what: install_detectors(tmp_path, monkeypatch, *what)


def test_the_example_trains_averages_and_predicts(install, tmp_path):
    require_transformers()
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    install("consilia-yolos", project["entry-points"][ENTRY_POINTS], EXAMPLE)
    assert "yolos" in families()
    torch.set_num_threads(1)
    pictures = [square_example(i, lesions=i % 3) for i in range(6)]
    files = []
    for seed in (0, 1):
        trainer = Trainer("yolos", 1, SIZE, Recipe(batch_size=3, warmup_steps=2), pictures, seed)
        losses = trainer.run(StepBudget(12, 0, 12))
        assert np.mean(losses[-3:]) < np.mean(losses[:3])
        files.append(tmp_path / f"update-{seed}")
        weights.save(trainer.model, files[-1])
    updates = [WeightedUpdate(f"0x{n:040x}", path, 1) for n, path in enumerate(files)]
    federated_average(updates, tmp_path / "average")
    model = build("yolos", num_classes=1, image_size=SIZE, seed=0)
    weights.load_into(model, tmp_path / "average")
    [found] = predict(model, pictures[:1])
    assert len(found.scores) > 0 and set(found.labels.tolist()) == {1}
    assert found.boxes_xyxy.min() >= 0 and found.boxes_xyxy.max() <= SIZE


MODULE = """
from torch import nn

class Maker:
    def backbones(self):
        return ("only",)

    def build(self, num_classes, image_size, backbone):
        return nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))

DETECTOR = Maker()
"""


def test_one_whose_state_has_no_average_is_refused_by_the_tensors_name(install, tmp_path):
    (tmp_path / "theirs_bn.py").write_text(MODULE)
    install("theirs-bn", {"with-batch-norm": "theirs_bn:DETECTOR"}, tmp_path)
    with pytest.raises(SpecError, match=r"with-batch-norm.*1\.num_batches_tracked.*GroupNorm"):
        build("with-batch-norm", num_classes=1, image_size=SIZE, seed=0)
    with pytest.raises(SpecError, match=r"model\.backbone: expected one of only for with-batch-norm"):
        build("with-batch-norm", num_classes=1, image_size=SIZE, seed=0, backbone="resnet-10")


def test_another_packages_code_is_not_loaded_before_its_name_is_asked_for(install, tmp_path):
    (tmp_path / "theirs_broken.py").write_text("raise SystemExit('loaded')")
    install("theirs-broken", {"broken": "theirs_broken:DETECTOR"}, tmp_path)
    build("spp-net", num_classes=1, image_size=SIZE, seed=0)
    with pytest.raises(SpecError, match=r"expected one of .*broken.*, got 'absent'"):
        build("absent", num_classes=1, image_size=SIZE, seed=0)
    with pytest.raises(SystemExit, match="loaded"):
        build("broken", num_classes=1, image_size=SIZE, seed=0)


def test_nobody_takes_the_name_of_a_built_in_detector(install, tmp_path):
    install("theirs-twice", {"faster-rcnn": "theirs_twice:DETECTOR"}, tmp_path)
    with pytest.raises(SpecError, match=r"'faster-rcnn' is registered twice \(theirs_twice:DETECTOR\)"):
        build("ssd", num_classes=1, image_size=SIZE, seed=0)


def test_a_hospital_admits_anothers_code_only_by_name():
    assert {"yolo", "faster-rcnn", "r-cnn"} <= set(PolicySection().detectors)
    assert "yolos" not in PolicySection().detectors
