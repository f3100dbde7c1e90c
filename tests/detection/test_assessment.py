"""Sizes, patients, hospitals, calibration and comparison, on cases small enough to count by hand."""

from dataclasses import replace

import numpy as np
import pytest

from consilia.detection.assessment import assess, lesion_sizes
from consilia.detection.comparison import compare
from consilia.detection.inference import Prediction
from consilia.detection.predictions import read_predictions, write_predictions
from consilia.errors import DatasetError, InputError
from tests.detection.squares import square_example


def case(index, *, patient, side=20.0, found=True, score=0.9, hospital="", spacing=None, extra=0):
    """A picture with one lesion of `side` pixels, found or not, and some false positives of score .2."""
    box = np.array([[5, 5, 5 + side, 5 + side]], np.float32)
    example = replace(
        square_example(index),
        boxes_xyxy=box,
        labels=np.ones(1, np.int64),
        patient=patient,
        hospital=hospital,
        spacing_mm=spacing,
    )
    wrong = np.array([[200, 200, 210, 210]] * extra, np.float32).reshape(-1, 4)
    boxes = np.concatenate([box if found else box[:0], wrong])
    scores = np.array([score] * found + [0.2] * extra, np.float32)
    return Prediction(example.image_id, boxes, scores, np.ones(len(scores), np.int64)), example


def split(cases):
    return [found for found, _ in cases], [example for _, example in cases]


def test_lesions_are_grouped_by_their_longer_side_in_pixels_and_in_millimetres():
    _, example = case(0, patient="a", side=20)
    example = replace(example, boxes_xyxy=np.array([[0, 0, 20, 10]], np.float32), original_px=(128, 128))
    assert lesion_sizes(example, in_mm=False).tolist() == [40]
    # spacing is between rows, then between columns: 40 columns of .5 mm, 20 rows of 2 mm
    assert lesion_sizes(replace(example, spacing_mm=(2.0, 0.5)), in_mm=True).tolist() == [40]
    assert lesion_sizes(replace(example, spacing_mm=(0.5, 2.0)), in_mm=True).tolist() == [80]


def test_sensitivity_by_size_and_by_patient():
    cases = [
        case(0, patient="a", side=5, found=False, spacing=(1.0, 1.0)),
        case(1, patient="a", side=20, spacing=(1.0, 1.0)),
        case(2, patient="b", side=5, found=False, spacing=(1.0, 1.0)),
        case(3, patient="c", side=40, spacing=(1.0, 1.0)),
    ]
    result = assess(*split(cases), resamples=200)
    assert [(g.unit, g.low, g.lesions.found, g.lesions.number) for g in result.by_size] == [
        ("mm", 0, 0, 2),
        ("mm", 10, 1, 1),
        ("mm", 30, 1, 1),
    ]
    assert (result.patients.found, result.patients.number) == (2, 3)
    small, middle, _ = (group.lesions.interval for group in result.by_size)
    assert small is not None and (small.low, small.high) == (0, 0)
    assert middle is None  # one patient alone has no interval


def test_one_picture_without_spacing_makes_all_sizes_pixels():
    cases = [case(0, patient="a", spacing=(1.0, 1.0)), case(1, patient="b")]
    assert {group.unit for group in assess(*split(cases), resamples=10).by_size} == {"px"}


def test_the_worst_hospital_is_named():
    cases = [case(i, patient=f"n{i}", hospital="north") for i in range(3)]
    cases += [case(i + 3, patient=f"s{i}", hospital="south", found=i == 0) for i in range(3)]
    result = assess(*split(cases), resamples=50)
    assert [(own.hospital, own.patients) for own in result.hospitals] == [("north", 3), ("south", 3)]
    assert result.worst_hospital and result.worst_hospital.hospital == "south"
    alone = assess(*split(cases[:3]), resamples=50)
    assert alone.worst_hospital is None


def test_calibration_of_scores_that_are_right_and_of_scores_that_boast():
    # ten findings of score .9, of which nine hit; and ten of .9 of which none does
    honest = [case(i, patient=f"p{i}", found=i > 0, score=0.9) for i in range(10)]
    honest[0] = (
        replace(honest[0][0], boxes_xyxy=np.array([[200, 200, 210, 210]], np.float32), scores=np.float32([0.9]),
                labels=np.ones(1, np.int64)),
        honest[0][1],
    )  # fmt: skip
    assert assess(*split(honest), resamples=50).calibration.ece == pytest.approx(0, abs=1e-6)
    boasting = [case(i, patient=f"p{i}", found=False, extra=2) for i in range(10)]
    measured = assess(*split(boasting), resamples=50).calibration
    assert measured.ece == pytest.approx(0.2, abs=1e-6)
    assert [(item.findings, item.hits) for item in measured.bins if item.findings] == [(20, 0)]


def test_a_difference_in_pairs_knows_more_than_two_intervals():
    better = [case(i, patient=f"p{i}", found=i % 2 == 0 or i % 3 == 0) for i in range(30)]
    worse = [case(i, patient=f"p{i}", found=i % 2 == 0) for i in range(30)]
    result = compare(split(better)[0], split(worse)[0], split(better)[1], resamples=400)
    cpm = next(item for item in result.differences if item.figure == "cpm")
    assert cpm.difference == pytest.approx(5 / 30) and cpm.beyond_chance
    first, second = result.first.spread.interval("cpm"), result.second.spread.interval("cpm")
    assert first.low < second.high, "by themselves the two could be equal"
    same = compare(split(worse)[0], split(worse)[0], split(worse)[1], resamples=50)
    assert all(item.difference == 0 and not item.beyond_chance for item in same.differences)


def test_every_point_of_the_froc_has_its_interval():
    half = [case(i, patient=f"p{i}", found=i % 2 == 0) for i in range(30)]
    measured = assess(*split(half), resamples=400).overall
    # without a false positive all points are one figure, and so is their mean
    assert [found for _, found in measured.froc] == [0.5] * 7
    for bounds in measured.spread.froc_intervals():
        assert vars(bounds) == pytest.approx(vars(measured.spread.interval("cpm")))
        assert 0.2 < bounds.low < 0.5 < bounds.high < 0.8
    # hits stand below one false positive an image on average: it depends on the draw whether 1 lets them pass
    noisy = [case(i, patient=f"p{i}", score=0.1, extra=i % 3) for i in range(30)]
    bounds = assess(*split(noisy), resamples=400).overall.spread.froc_intervals()
    assert [(item.low, item.high) for item in bounds] == [(0, 0)] * 3 + [(0, 1)] + [(1, 1)] * 3
    alone = [case(i, patient="p", found=i % 2 == 0) for i in range(4)]
    assert assess(*split(alone), resamples=50).overall.spread.froc_intervals() == (None,) * 7


def test_findings_of_other_pictures_are_refused():
    predictions, examples = split([case(0, patient="a"), case(1, patient="b")])
    with pytest.raises(DatasetError, match="same pictures"):
        assess(predictions[::-1], examples)


def test_kept_findings_give_the_same_figures(tmp_path):
    cases = [case(i, patient=f"p{i}", found=i != 2, extra=i) for i in range(5)]
    predictions, examples = split(cases)
    write_predictions(tmp_path / "kept.json", predictions, ("lesion",), "0" * 64)
    kept = read_predictions(tmp_path / "kept.json", ("lesion",))
    assert (
        assess(kept, examples, resamples=50).overall.map
        == assess(predictions, examples, resamples=50).overall.map
    )
    with pytest.raises(InputError, match="lesion"):
        read_predictions(tmp_path / "kept.json", ("tumour",))
    (tmp_path / "kept.json").write_text('{"images": []}')
    with pytest.raises(InputError, match="COCO"):
        read_predictions(tmp_path / "kept.json", ("lesion",))
