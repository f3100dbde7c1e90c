"""Selective search is repeatable, kept once a picture, and its regions move with the picture."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from consilia.detection import proposals
from consilia.detection.augment import Augment, augmented
from consilia.detection.froc import iou
from consilia.detection.proposals import BACKGROUND, MOST_REGIONS, as_one, as_target, search, with_proposals
from consilia.detection.training import Recipe, StepBudget, Trainer
from tests.detection.squares import square_example


@pytest.mark.parametrize("colour", [True, False])
def test_a_lesion_is_among_the_regions(colour):
    example = square_example(3, colour=colour)
    regions = search(example.pixels)
    assert iou(example.boxes_xyxy, regions).max() > 0.7
    assert 1 < len(regions) <= MOST_REGIONS
    assert regions.dtype == np.float32
    assert (regions >= 0).all() and (regions <= 64).all()
    assert (regions[:, 2:] > regions[:, :2]).all()


def test_a_picture_has_the_same_regions_in_every_call():
    # OpenCV orders them by the C library's random numbers, which go on from call to call
    first = search(square_example(1).pixels)
    assert len(first) > 5
    for _ in range(3):
        assert (first == search(square_example(1).pixels)).all()


def test_colours_that_are_all_equal_are_grey():
    example = square_example(2)
    grey = search(example.pixels)
    coloured = search(np.repeat(example.pixels[:, :, None], 3, axis=2))
    assert {tuple(box) for box in grey} == {tuple(box) for box in coloured}


def test_a_picture_without_anything_has_no_regions_and_is_no_error():
    assert search(np.zeros((48, 64), np.uint8)).shape == (0, 4)


def test_each_picture_is_searched_once_and_kept_by_its_content(tmp_path, monkeypatch):
    examples = [square_example(1), replace(square_example(1), image_id="a copy"), square_example(2)]
    first = with_proposals(examples, tmp_path / "new" / "folder")
    assert len(list((tmp_path / "new" / "folder").iterdir())) == 2
    monkeypatch.setattr(proposals, "search", lambda pixels: pytest.fail("searched again"))
    again = with_proposals(examples, tmp_path / "new" / "folder")
    for one, other in zip(first, again, strict=True):
        assert (one.proposals_xyxy == other.proposals_xyxy).all()
    assert (first[0].proposals_xyxy == first[1].proposals_xyxy).all()
    assert first[2].proposals_xyxy.shape != first[0].proposals_xyxy.shape
    assert with_proposals(first)[0].proposals_xyxy is first[0].proposals_xyxy


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"not numpy",
        np.full((2, 4), np.nan, np.float32),
        np.full((2, 4), 900, np.float32),
        np.zeros((2, 5), np.float32),
        np.zeros((2, 4), np.float64),
        np.array([[5, 5, 5, 9]], np.float32),
        np.array([{"a": 1}], dtype=object),
    ],
)
def test_a_damaged_file_is_searched_again(tmp_path, bad):
    [kept] = with_proposals([square_example(1)], tmp_path)
    [file] = tmp_path.iterdir()
    if isinstance(bad, bytes):
        file.write_bytes(bad)
    else:
        with file.open("wb") as out:
            np.save(out, bad, allow_pickle=True)
    [again] = with_proposals([square_example(1)], tmp_path)
    assert (again.proposals_xyxy == kept.proposals_xyxy).all()
    assert (np.load(file) == kept.proposals_xyxy).all()


def test_regions_of_another_opencv_are_not_taken(tmp_path, monkeypatch):
    with_proposals([square_example(1)], tmp_path)
    with_proposals([square_example(1)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr("cv2.__version__", "0.1")
    with_proposals([square_example(1)], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("seed", range(8))
def test_regions_move_with_the_lesions(seed):
    # a region that is the lesion's own box stays so under every mirror, zoom and shift
    example = square_example(4)
    example = replace(
        example, proposals_xyxy=np.concatenate([example.boxes_xyxy, [[0, 0, 30, 20]]]).astype("f4")
    )
    boxes, labels = augmented(as_one(example), Augment(), np.random.default_rng(seed))[1:]
    target = as_target(boxes, labels)
    assert target["labels"].tolist() == [1]
    assert torch.equal(target["proposals"][0], target["boxes"][0])
    plain_boxes = augmented(example, Augment(), np.random.default_rng(seed))[1]
    assert (target["boxes"].numpy() == plain_boxes).all()


def test_without_regions_nothing_is_added():
    example = square_example(4)
    assert as_one(example) is example
    assert len(as_target(example.boxes_xyxy, example.labels)["proposals"]) == 0
    assert BACKGROUND not in example.labels


def test_the_trainer_keeps_the_regions_where_it_is_told(tmp_path):
    def losses():
        examples = [square_example(i) for i in range(2)]
        recipe = Recipe(batch_size=1)
        return Trainer("spp-net", 1, 64, recipe, examples, 0, proposals=tmp_path).run(StepBudget(2, 0, 2))

    first = losses()
    assert len(list(tmp_path.iterdir())) == 2
    assert losses() == first


def test_other_detectors_do_not_search(tmp_path):
    Trainer("ssd", 1, 64, Recipe(), [square_example(1)], 0, proposals=tmp_path)
    assert list(tmp_path.iterdir()) == []
