import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from consilia.detection.froc import OPERATING_POINTS, ImageFindings, froc, iou


def image(lesions=(), findings=(), lesion_labels=None, labels=None):
    """Lesions are boxes; findings are (box, score)."""
    boxes = np.array([box for box, _ in findings], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score in findings], np.float32)
    truth = np.array(lesions, np.float32).reshape(-1, 4)
    one = np.ones(len(truth), np.int64) if lesion_labels is None else np.array(lesion_labels)
    found = np.ones(len(boxes), np.int64) if labels is None else np.array(labels)
    return ImageFindings(truth, one, boxes, scores, found)


A, B, C = (0, 0, 10, 10), (50, 50, 70, 70), (20, 80, 40, 95)
NOWHERE = (80, 0, 90, 10)


def sensitivities(images):
    return [found for _, found in froc(images).points]


def test_worked_example():
    # Four pictures, three lesions. By falling score: hit A .9, false .8, hit B .7, false .6, hit C .5.
    # After them (false positives per image, sensitivity): (0, 1/3) (1/4, 1/3) (1/4, 2/3) (1/2, 2/3) (1/2, 1)
    images = [
        image([A], [(A, 0.9), (NOWHERE, 0.6)]),
        image([B, C], [(B, 0.7), (C, 0.5)]),
        image([], [(NOWHERE, 0.8)]),
        image(),
    ]
    result = froc(images)
    assert [at for at, _ in result.points] == [0.125, 0.25, 0.5, 1, 2, 4, 8]
    assert [found for _, found in result.points] == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1])
    assert result.cpm == pytest.approx((1 / 3 + 2 / 3 + 5) / 7)
    assert result.num_lesions == 3


def test_a_second_finding_on_a_lesion_is_no_hit_and_no_false_positive():
    once = [image([A, B], [(A, 0.9)])]
    twice = [image([A, B], [(A, 0.9), (A, 0.8), (A, 0.7)])]
    assert froc(twice) == froc(once)
    assert sensitivities(once) == [0.5] * 7


def test_two_findings_on_two_touching_lesions_hit_both():
    left, right = (0, 0, 10, 10), (6, 0, 16, 10)
    both = [image([left, right], [((3, 0, 13, 10), 0.9), ((4, 0, 14, 10), 0.8)])]
    assert sensitivities(both) == [1.0] * 7


@pytest.mark.parametrize(("shift", "hit"), [(5.3, 1.0), (5.5, 0.0)])
def test_a_hit_needs_an_iou_of_three_tenths(shift, hit):
    # two 10 x 10 boxes shifted by d overlap with (10 - d) / (10 + d): .3 at d = 5.38
    assert sensitivities([image([A], [((shift, 0, 10 + shift, 10), 0.9)])]) == [hit] * 7


def test_a_box_over_the_whole_picture_hits_nothing():
    assert froc([image([A], [((0, 0, 100, 100), 0.9)])]).cpm == 0


def test_another_class_is_a_false_positive():
    wrong = [image([A], [(A, 0.9)], lesion_labels=[1], labels=[2])]
    assert sensitivities(wrong) == [0.0] * 7


def test_findings_of_equal_score_pass_a_threshold_together():
    # one picture: whoever lets the hit pass lets two false positives pass as well
    tied = [image([A], [(A, 0.5), (NOWHERE, 0.5), (B, 0.5)])]
    assert sensitivities(tied) == [0, 0, 0, 0, 1, 1, 1]


def test_nothing_found_and_nothing_to_find():
    assert sensitivities([image([A])]) == [0.0] * 7
    assert froc([image([], [(A, 0.5)])]).cpm == 0
    assert froc([]).num_lesions == 0


boxes = hnp.arrays(np.int64, st.tuples(st.integers(0, 6), st.just(4)), elements=st.integers(0, 20)).map(
    lambda raw: np.concatenate([raw[:, :2], raw[:, :2] + 1 + raw[:, 2:]], axis=1).astype(np.float32)
)


@st.composite
def random_image(draw):
    lesions, found = draw(boxes), draw(boxes)
    scores = draw(hnp.arrays(np.float32, len(found), elements=st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9])))
    classes = st.integers(1, 2)
    return ImageFindings(
        lesions,
        draw(hnp.arrays(np.int64, len(lesions), elements=classes)),
        found,
        scores,
        draw(hnp.arrays(np.int64, len(found), elements=classes)),
    )


@given(st.lists(random_image(), min_size=1, max_size=5))
def test_sensitivity_never_falls_as_more_false_positives_are_allowed(images):
    found = sensitivities(images)
    assert found == sorted(found)
    assert all(0 <= value <= 1 for value in found)


@given(st.lists(random_image(), min_size=1, max_size=5), st.floats(0.2, 5))
def test_only_the_order_of_the_scores_counts(images, factor):
    stretched = [
        ImageFindings(i.lesion_boxes_xyxy, i.lesion_labels, i.boxes_xyxy, i.scores * factor, i.labels)
        for i in images
    ]
    assert froc(stretched) == froc(images)


@given(st.lists(random_image(), min_size=1, max_size=5))
def test_the_order_of_the_pictures_does_not_count(images):
    assert froc(images[::-1]) == froc(images)


@given(st.lists(random_image(), min_size=1, max_size=4))
def test_a_perfect_reader_finds_everything(images):
    perfect = [
        ImageFindings(
            i.lesion_boxes_xyxy,
            i.lesion_labels,
            i.lesion_boxes_xyxy,
            np.ones(len(i.lesion_labels)),
            i.lesion_labels,
        )
        for i in images
    ]
    assert froc(perfect).cpm == (1.0 if any(len(i.lesion_labels) for i in images) else 0.0)


def test_iou_of_known_boxes():
    others = np.array([A, (5, 0, 15, 10), (20, 20, 30, 30), (0, 0, 0, 0)], np.float64)
    assert iou(np.array([A], np.float64), others)[0] == pytest.approx([1, 1 / 3, 0, 0])


def test_the_operating_points_are_those_of_luna16():
    assert OPERATING_POINTS == (1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8)
