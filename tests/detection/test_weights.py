from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.errors import WeightsError

NAME = "roi_heads.box_predictor.cls_score.bias"


def model(seed: int = 0) -> torch.nn.Module:
    return build("faster-rcnn", num_classes=1, image_size=64, seed=seed)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    weights.save(model(1), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def tampered(path: Path, **changes: torch.Tensor | None) -> Path:
    tensors = load_file(path)
    for name, tensor in changes.items():
        tensors.pop(name, None)
        if tensor is not None:
            tensors[name] = tensor
    save_file(tensors, path)
    return path


def test_what_was_saved_is_loaded(saved):
    target = model(2)
    weights.load_into(target, saved)
    expected = model(1).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in target.state_dict().items())


def test_equal_weights_give_equal_bytes_whatever_the_order_of_the_metadata(tmp_path):
    weights.save(model(1), tmp_path / "a", {"round": "1", "task": "2", "z": "3"})
    weights.save(model(1), tmp_path / "b", {"z": "3", "task": "2", "round": "1"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_safetensors_library_reads_the_same(saved):
    expected = model(1).state_dict()
    read = load_file(saved)
    assert set(read) == set(expected)
    assert all(torch.equal(read[name], expected[name]) for name in read)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_not_finite_is_refused_by_name_and_nothing_is_changed(saved, bad):
    target = model(2)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError, match=f"{NAME}.*finite"):
        weights.load_into(target, tampered(saved, **{NAME: torch.tensor([0.0, bad])}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (None, "missing"),
        (torch.zeros(3), "shape"),
        (torch.zeros(2, 1), "shape"),
        (torch.zeros(2, dtype=torch.float16), "F32"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(saved, tensor, reason):
    with pytest.raises(WeightsError, match=rf"{NAME}: .*{reason}"):
        weights.load_into(model(), tampered(saved, **{NAME: tensor}))


def test_double_precision_is_refused(saved):
    # the library puts the wider tensor first, so that the next one is already out of its place
    with pytest.raises(WeightsError, match="expected"):
        weights.load_into(model(), tampered(saved, **{NAME: torch.zeros(2, dtype=torch.float64)}))


def test_a_tensor_too_many_is_refused_by_name(saved):
    with pytest.raises(WeightsError, match="zz_extra"):
        weights.load_into(model(), tampered(saved, zz_extra=torch.zeros(1)))


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_file_cut_short_is_refused(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(WeightsError):
        weights.load_into(model(), saved)


def test_a_pickle_is_refused(tmp_path):
    torch.save(model().state_dict(), tmp_path / "weights.pt")
    with pytest.raises(WeightsError):
        weights.load_into(model(), tmp_path / "weights.pt")


def test_a_diverged_model_is_not_written(tmp_path):
    diverged = model()
    with torch.no_grad():
        diverged.get_parameter(NAME)[0] = np.nan
    with pytest.raises(WeightsError, match=NAME):
        weights.save(diverged, tmp_path / "weights.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_averaged_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match="float64"):
        weights.save(torch.nn.Linear(2, 2).double(), tmp_path / "weights.safetensors")
    with pytest.raises(WeightsError, match="num_batches_tracked"):
        weights.save(torch.nn.BatchNorm2d(2), tmp_path / "weights.safetensors")
