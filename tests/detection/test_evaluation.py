import contextlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch

from consilia.detection.detectors import build
from consilia.detection.evaluation import coco_tables, evaluate, score
from consilia.detection.inference import Prediction, predict
from consilia.errors import DatasetError
from tests.detection.squares import square_example


def random_case(seed: int):
    """Pictures with lesions of three classes, and noisy findings: right, shifted, and of nowhere."""
    rng = np.random.default_rng(seed)
    examples, predictions = [], []
    for index in range(12):
        count = int(rng.integers(0, 6))
        corner = rng.uniform(0, 40, (count, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(5, 22, (count, 2))], axis=1).astype(np.float32)
        labels = rng.integers(1, 4, count)
        example = replace(square_example(index), boxes_xyxy=boxes, labels=labels, original_px=(128, 128))
        noise = rng.normal(0, 2, boxes.shape)
        extra = np.array([[2, 2, 20, 20]] * int(rng.integers(0, 3))).reshape(-1, 4)
        found = (np.concatenate([boxes + noise, extra]) / 0.5).astype(np.float32)
        found_labels = np.concatenate([labels, rng.integers(1, 4, len(extra))])
        scores = rng.uniform(0, 1, len(found)).astype(np.float32)
        examples.append(example)
        predictions.append(Prediction(example.image_id, found, scores, found_labels))
    return predictions, examples


@pytest.mark.parametrize("seed", range(5))
def test_agrees_with_pycocotools(seed):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    predictions, examples = random_case(seed)
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
    ours = score(predictions, examples)
    assert 0.05 < ours.map < 0.95
    assert (ours.map, ours.map50, ours.map75) == pytest.approx(tuple(evaluator.stats[:3]), abs=1e-9)


def test_a_perfect_detector_scores_one():
    examples = [replace(square_example(i, lesions=2), original_px=(256, 256)) for i in range(3)]
    perfect = [
        Prediction(e.image_id, e.boxes_xyxy / np.float32(0.25), np.ones(2, np.float32), e.labels)
        for e in examples
    ]
    result = score(perfect, examples)
    assert (result.map50, result.map, result.map75, result.cpm) == pytest.approx((1, 1, 1, 1))
    assert (result.num_images, result.num_lesions) == (3, 6)


def test_finding_nothing_scores_zero():
    examples = [square_example(1)]
    nothing = [
        Prediction("picture-1", np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    ]
    result = score(nothing, examples)
    assert (result.map50, result.map, result.cpm) == (0, 0, 0)


@pytest.mark.parametrize("examples", [[], [square_example(1, lesions=0)]])
def test_a_set_without_lesions_is_refused(examples):
    with pytest.raises(DatasetError, match="lesion"):
        evaluate(build("faster-rcnn", num_classes=1, image_size=64, seed=0), examples)


def test_findings_are_in_pixels_of_the_original_picture():
    class Fixed(torch.nn.Module):
        def forward(self, images):
            box = torch.tensor([[8.0, 8, 16, 24]])
            return [{"boxes": box, "scores": torch.ones(1), "labels": torch.ones(1).long()} for _ in images]

    examples = [
        replace(square_example(i), original_px=(side, side)) for i, side in enumerate((128, 64, 32, 256, 640))
    ]
    boxes = [found.boxes_xyxy[0].tolist() for found in predict(Fixed(), examples)]
    assert boxes[0] == [16, 16, 32, 48]
    assert boxes[2] == [4, 4, 8, 12]
    assert len(boxes) == 5
