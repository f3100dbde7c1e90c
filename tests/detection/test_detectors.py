import pytest
import torch

from consilia.detection.detectors import DETECTORS, build
from consilia.errors import SpecError

FAST = sorted({*DETECTORS} - {"yolo"})
"""The full YOLO draws 62 million weights: tests of the family have it on another body."""

REGIONS = torch.tensor([[8.0, 8, 42, 52], [30.0, 5, 60, 60]])


@pytest.mark.parametrize("name", FAST)
def test_weights_depend_on_the_seed_alone(name):
    torch.manual_seed(5)
    first = build(name, num_classes=2, image_size=96, seed=1).state_dict()
    torch.manual_seed(6)
    again = build(name, num_classes=2, image_size=96, seed=1).state_dict()
    other = build(name, num_classes=2, image_size=96, seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_building_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build("faster-rcnn", num_classes=1, image_size=96, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", FAST)
def test_every_tensor_can_be_averaged(name):
    state = build(name, num_classes=3, image_size=96, seed=0).state_dict()
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert not [key for key in state if "running" in key]


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("num_classes", [1, 3])
def test_trains_on_pictures_with_and_without_lesions_and_finds_known_classes(name, num_classes):
    model = build(name, num_classes=num_classes, image_size=96, seed=0)
    images = [torch.rand(3, 96, 96), torch.rand(3, 72, 96)]
    targets = [
        {"boxes": torch.tensor([[10.0, 10, 40, 50]]), "labels": torch.tensor([num_classes])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    targets = [{**target, "proposals": REGIONS} for target in targets]
    losses = model.train()(images, targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    with torch.inference_mode():
        found = model.eval()(images, [dict(target) for target in targets])
    assert len(found) == 2
    for image, result in zip(images, found, strict=True):
        assert set(result["labels"].tolist()) <= set(range(num_classes + 1))
        assert (result["boxes"][:, 2] <= image.shape[2]).all()
        assert (result["boxes"][:, 3] <= image.shape[1]).all()


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(SpecError, match=r"model\.detector: expected one of .*faster-rcnn.*yolo.*, got 'vgg'"):
        build("vgg", num_classes=1, image_size=96, seed=0)
