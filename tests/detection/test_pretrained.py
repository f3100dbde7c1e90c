"""Weights from elsewhere: what fits is taken, what does not is named, too little is refused and changes nothing."""

from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save
from torchvision.models import resnet18

from consilia.detection.detectors import DETECTORS, build
from consilia.detection.pretrained import take
from consilia.errors import WeightsError

FIRST = "backbone.body.conv1.weight"


def detector(name: str = "faster-rcnn", backbone: str = "resnet-10", num_classes: int = 1) -> torch.nn.Module:
    return build(name, num_classes=num_classes, image_size=64, seed=0, backbone=backbone)


def learnt(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state that nobody draws."""
    return {name: torch.full_like(tensor, 0.25) for name, tensor in model.state_dict().items()}


def unchanged(model: torch.nn.Module) -> bool:
    drawn = detector().state_dict()
    return all(torch.equal(tensor, drawn[name]) for name, tensor in model.state_dict().items())


def test_a_detector_of_other_classes_gives_all_but_the_layers_that_name_classes():
    model, drawn = detector(num_classes=3), detector(num_classes=3).state_dict()
    what = take(model, save(learnt(detector(num_classes=1))))
    classes = {f"roi_heads.box_predictor.{part}" for part in ("cls_score", "bbox_pred")}
    assert {name.rpartition(".")[0] for name in what.other_shape} == classes and not what.missing
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, drawn[name]) == (name in what.other_shape), name


def test_a_classifier_gives_the_body_whatever_detector_stands_on_it():
    """torchvision's ResNet-18 as it is published: BatchNorm, a classifier on top, numbers of batches."""
    torch.manual_seed(7)
    classifier = resnet18().state_dict()
    given = save(classifier)
    for name in ("faster-rcnn", "r-cnn", "ssd"):
        model = detector(name, "resnet-18")
        what = take(model, given)
        assert all(".body." in taken for taken in what.taken) and not what.other_shape
        body = {key: tensor for key, tensor in model.state_dict().items() if ".body." in key}
        assert len(what.taken) == len(body) == 60
        for key, tensor in body.items():
            assert torch.equal(tensor, classifier[key.partition(".body.")[2]]), key


@pytest.mark.parametrize("name", [name for name in DETECTORS if name != "yolo"])
def test_every_detector_takes_its_own(name):
    model = detector(name, "")
    assert len(take(model, save(learnt(model))).taken) == len(model.state_dict())
    assert all((tensor == 0.25).all() for tensor in model.state_dict().values())


def test_half_precision_is_widened():
    model = detector()
    take(model, save({name: tensor.bfloat16() for name, tensor in learnt(model).items()}))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert (model.state_dict()[FIRST] == 0.25).all()


def test_too_little_is_refused_by_the_names_that_do_not_fit():
    model = detector()
    with pytest.raises(
        WeightsError, match=r"at least 50%.*not in the file: backbone.*of another shape: .*conv1"
    ):
        take(model, save(learnt(detector(backbone="resnet-18"))))  # twice as wide, twice as deep
    with pytest.raises(
        WeightsError, match=r"got 0 of \d+, 0 of \d+ tensors; not in the file: .* and \d+ more"
    ):
        take(model, save({"features.0.weight": torch.zeros(3)}))
    heads = {name: tensor for name, tensor in learnt(model).items() if ".body." not in name}
    with pytest.raises(
        WeightsError, match=rf"got 0 of \d+, {len(heads)} of .*not in the file: backbone\.body"
    ):
        take(model, save(heads))
    assert unchanged(model)


def test_a_number_that_is_not_finite_is_refused_by_name():
    model = detector()
    given = learnt(model)
    given[FIRST][0, 0, 0, 0] = float("nan")
    with pytest.raises(WeightsError, match=rf"{FIRST}.*finite"):
        take(model, save(given))
    assert unchanged(model)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff" * 64, pickle.dumps({"weights": [1.0]}), save({"a": torch.zeros(9)})[:-4]],
    ids=["empty", "noise", "a pickle", "cut"],
)
def test_what_is_no_safetensors_is_refused(data):
    model = detector()
    with pytest.raises(WeightsError, match="as safetensors, never as a pickle"):
        take(model, data)
    assert unchanged(model)
