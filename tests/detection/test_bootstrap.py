"""The bootstrap against a worked example, and against drawing the patients one by one with the reference."""

import contextlib
import io

import numpy as np
import pytest

from consilia.detection.average_precision import resampled_precision
from consilia.detection.bootstrap import Resamples, interval, resample
from consilia.detection.evaluation import coco_tables
from consilia.detection.froc import ImageFindings, froc, froc_of, judge, resampled_froc
from tests.detection.test_evaluation import random_case
from tests.detection.test_froc import NOWHERE, A, B, C, image


def findings(predictions, examples):
    return [
        ImageFindings(
            e.in_original(e.boxes_xyxy), e.labels, p.boxes_xyxy, p.scores.astype(np.float64), p.labels
        )
        for p, e in zip(predictions, examples, strict=True)
    ]


def test_weights_are_whole_draws_of_as_many_patients_and_the_same_for_a_seed():
    drawn = resample(["b", "a", "b", "c"], count=50, seed=4)
    assert drawn.patient_of_image.tolist() == [1, 0, 1, 2]
    assert (drawn.weights.sum(axis=1) == 3).all() and (drawn.weights >= 0).all()
    assert np.array_equal(drawn.weights, resample(["b", "a", "b", "c"], count=50, seed=4).weights)
    assert not np.array_equal(drawn.weights, resample(["b", "a", "b", "c"], count=50, seed=5).weights)


def test_a_worked_example_of_resampled_froc():
    # Patient a: lesion A found at .9, a false positive at .6. Patient b: lesions B (.7) and C (missed).
    judged = [judge(image([A], [(A, 0.9), (NOWHERE, 0.6)])), judge(image([B, C], [(B, 0.7)]))]
    weights = np.array([[1.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    points = resampled_froc(judged, Resamples(np.array([0, 1]), weights))
    assert points[0] == pytest.approx([2 / 3] * 7)  # both hits come before the false positive
    assert points[1] == pytest.approx([1.0] * 7)  # a twice: its lesion is found first of all
    assert points[2] == pytest.approx([0.5] * 7)  # b twice: one of two lesions, C never


def test_a_worked_example_where_the_false_positive_comes_first():
    # a: false positive at .9 and hit at .5; drawn twice over two pictures that is one false positive a picture
    judged = [judge(image([A], [(NOWHERE, 0.9), (A, 0.5)])), judge(image([B], [(B, 0.7)]))]
    points = resampled_froc(judged, Resamples(np.array([0, 1]), np.array([[1.0, 1.0], [2.0, 0.0]])))
    # together: false .9 (1/2 a picture), then both hits
    assert points[0] == pytest.approx([0, 0, 1, 1, 1, 1, 1])
    assert points[1] == pytest.approx([0, 0, 0, 1, 1, 1, 1])


def pycocotools_ap(predictions, examples):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth, results = coco_tables(
        predictions, [e.in_original(e.boxes_xyxy) for e in examples], [e.labels for e in examples]
    )
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO()
        reference.dataset = truth
        reference.createIndex()
        evaluator = COCOeval(reference, reference.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats[:3]


@pytest.mark.parametrize("seed", range(3))
def test_resamples_agree_with_pycocotools_on_the_drawn_pictures(seed):
    predictions, examples = random_case(seed)
    patients = [f"p{index % 5}" for index in range(len(examples))]
    drawn = resample(patients, count=6, seed=seed)
    ours = resampled_precision(findings(predictions, examples), drawn)
    froc_points = resampled_froc([judge(item) for item in findings(predictions, examples)], drawn)
    for row, weights in enumerate(drawn.weights):
        chosen = [
            index
            for index in range(len(examples))
            for _ in range(int(weights[drawn.patient_of_image[index]]))
        ]
        some, truths = [predictions[i] for i in chosen], [examples[i] for i in chosen]
        expected = pycocotools_ap(some, truths)
        assert (ours.map[row], ours.map50[row], ours.map75[row]) == pytest.approx(tuple(expected), abs=1e-9)
        curve = froc(findings(some, truths))
        assert froc_points[row] == pytest.approx([found for _, found in curve.points])


def test_drawing_everybody_once_gives_the_figures_themselves():
    predictions, examples = random_case(7)
    everybody = Resamples(np.zeros(len(examples), np.int64), np.ones((1, 1)))
    judged = [judge(item) for item in findings(predictions, examples)]
    assert resampled_froc(judged, everybody)[0] == pytest.approx([f for _, f in froc_of(judged).points])
    ours = resampled_precision(findings(predictions, examples), everybody)
    assert ours.map[0] == pytest.approx(pycocotools_ap(predictions, examples)[0], abs=1e-9)


def test_a_resample_without_a_lesion_gives_no_figure():
    images = [image([A], [(A, 0.9)]), image([], [(NOWHERE, 0.8)])]
    drawn = Resamples(np.array([0, 1]), np.array([[0.0, 2.0], [1.0, 1.0]]))
    ours = resampled_precision(images, drawn)
    assert np.isnan(ours.map[0]) and ours.map[1] == 1.0
    assert np.isnan(resampled_froc([judge(item) for item in images], drawn)[0]).all()


def test_an_interval_is_of_the_middle_and_needs_two_patients():
    values = np.arange(1001) / 1000
    found = interval(values, 30)
    assert found and (found.low, found.high) == pytest.approx((0.025, 0.975))
    assert interval(values, 1) is None
    assert interval(np.array([0.5, np.nan, np.nan]), 30) is None
    assert interval(np.array([0.5, 0.7, np.nan]), 30) is not None


def test_an_interval_covers_what_patients_differ_by():
    # 20 patients: of ten everything is found, of the others nothing. The sensitivity is binomial: .5 +- .22
    found, missed = judge(image([A], [(A, 0.9)])), judge(image([A]))
    judged = [found] * 10 + [missed] * 10
    drawn = resample([f"p{index:02d}" for index in range(20)], count=2000, seed=1)
    bounds = interval(resampled_froc(judged, drawn).mean(axis=1), 20)
    assert bounds is not None
    assert (bounds.low, bounds.high) == pytest.approx((0.28, 0.72), abs=0.07)
