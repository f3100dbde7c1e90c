"""How good a detector is on pictures it has never seen: COCO's mAP by faster-coco-eval, FROC with its CPM."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from consilia.detection.average_precision import resampled_precision
from consilia.detection.bootstrap import Interval, Resamples, interval, resample
from consilia.detection.examples import Example
from consilia.detection.froc import ImageFindings, Judged, froc_of, judge, resampled_froc
from consilia.detection.inference import Prediction, predict
from consilia.errors import DatasetError


@dataclass(frozen=True)
class Evaluation:
    """The figures of one detector on one set of pictures.

    `map50` and `map75` are COCO's average precision at IoU .5 and .75, `map` its mean over .5 to .95, each
    averaged over the classes; `froc` holds (false positives per image, sensitivity), `cpm` their mean
    sensitivity (hit rule: see `froc`).
    """

    map50: float
    map: float
    map75: float
    cpm: float
    froc: tuple[tuple[float, float], ...]
    num_images: int
    num_lesions: int
    seconds: float
    spread: Spread | None = None


FIGURES = ("map50", "map", "map75", "cpm")
"""What intervals are given of."""


@dataclass(frozen=True)
class Spread:
    """How far the figures could have come out otherwise, had other patients of the same kind been held out.

    `resampled` holds each figure of `FIGURES` in every resample, (4, resamples), so that two models that were
    scored on the same pictures can be compared in pairs; `sensitivities` those of FROC's points, (resamples, 7).
    """

    num_patients: int
    resampled: npt.NDArray[np.float64]
    sensitivities: npt.NDArray[np.float64]

    def interval(self, figure: str) -> Interval | None:
        """The 95 % interval of one of `FIGURES`; None where there are too few patients."""
        return interval(self.resampled[FIGURES.index(figure)], self.num_patients)

    def froc_intervals(self) -> tuple[Interval | None, ...]:
        """The 95 % interval of the sensitivity at each point of the FROC; None where there are too few patients."""
        return tuple(interval(column, self.num_patients) for column in self.sensitivities.T)

    def difference(self, others: Sequence[Spread], figure: str) -> Interval | None:
        """The interval of this model's figure minus the mean of the others', drawn in pairs."""
        row = FIGURES.index(figure)
        mean = np.mean([other.resampled[row] for other in others], axis=0)
        return interval(self.resampled[row] - mean, self.num_patients)


def evaluate(model: nn.Module, examples: Sequence[Example]) -> Evaluation:
    """Predict and score.

    Raises:
        DatasetError: there is no picture, or no lesion on any of them: no figure would mean anything.
    """
    began = time.perf_counter()
    predictions = predict(model, examples)
    return score(predictions, examples, seconds=time.perf_counter() - began)


def score(
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    seconds: float = 0.0,
    *,
    resamples: int = 0,
    seed: int = 0,
) -> Evaluation:
    """Compare findings with the lesions of the same pictures, in the same order.

    Args:
        predictions: the findings on each picture.
        examples: the pictures.
        seconds: what the findings took.
        resamples: how often to draw the patients anew for `spread`; 0 for no intervals.
        seed: of the draws; equal seeds draw equal patients for every model.

    Raises:
        DatasetError: there is no lesion, or predictions and pictures are not the same.
    """
    if not any(len(example.labels) for example in examples):
        raise DatasetError(f"expected pictures with lesions to evaluate on; none of {len(examples)} has one")
    images = findings_of(predictions, examples)
    average, at50, at75 = _coco_average_precision(
        predictions,
        [image.lesion_boxes_xyxy for image in images],
        [example.labels for example in examples],
    )
    judged = [judge(image) for image in images]
    curve = froc_of(judged)
    spread = (
        _spread(images, judged, resample([e.patient for e in examples], resamples, seed))
        if resamples
        else None
    )
    return Evaluation(
        at50, average, at75, curve.cpm, curve.points, len(examples), curve.num_lesions, seconds, spread
    )


def drawn_over(examples: Sequence[Example]) -> str:
    """What a resample draws: `patients`, `images` where nobody knows whose they are, or `patients and images`."""
    known = {example.patient_known for example in examples}
    if len(known) == 2:
        return "patients and images"
    return "patients" if known == {True} else "images"


def findings_of(predictions: Sequence[Prediction], examples: Sequence[Example]) -> list[ImageFindings]:
    """Lesions and findings of each picture, in pixels of the original.

    Raises:
        DatasetError: predictions and pictures are not the same.
    """
    if [found.image_id for found in predictions] != [example.image_id for example in examples]:
        raise DatasetError("expected predictions of the same pictures in the same order, they are of others")
    return [
        ImageFindings(
            example.in_original(example.boxes_xyxy),
            example.labels,
            found.boxes_xyxy,
            found.scores,
            found.labels,
        )
        for found, example in zip(predictions, examples, strict=True)
    ]


def _spread(images: Sequence[ImageFindings], judged: Sequence[Judged], drawn: Resamples) -> Spread:
    precision = resampled_precision(images, drawn)
    sensitivities = np.asarray(resampled_froc(judged, drawn), np.float64)
    rows = np.stack([precision.map50, precision.map, precision.map75, sensitivities.mean(axis=1)])
    return Spread(drawn.num_patients, rows, sensitivities)


def coco_tables(
    predictions: Sequence[Prediction],
    truths_xyxy: Sequence[npt.NDArray[np.float32]],
    truth_labels: Sequence[npt.NDArray[np.int64]],
) -> tuple[dict[str, object], list[dict[str, object]]]:
    """COCO's ground truth and results, as its evaluators read them; only classes with a lesion count."""
    annotations: list[dict[str, object]] = []
    results: list[dict[str, object]] = []
    for image, (found, boxes, labels) in enumerate(
        zip(predictions, truths_xyxy, truth_labels, strict=True), 1
    ):
        for box, label in zip(_as_xywh(boxes), labels, strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": int(label), "bbox": box}
            annotations.append({**row, "area": box[2] * box[3], "iscrowd": 0})
        for box, label, value in zip(_as_xywh(found.boxes_xyxy), found.labels, found.scores, strict=True):
            results.append({"image_id": image, "category_id": int(label), "bbox": box, "score": float(value)})
    present = sorted({int(label) for labels in truth_labels for label in labels})
    truth: dict[str, object] = {
        "info": {},
        "images": [{"id": image} for image in range(1, len(truths_xyxy) + 1)],
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in present],
    }
    return truth, results


def _coco_average_precision(
    predictions: Sequence[Prediction],
    truths_xyxy: Sequence[npt.NDArray[np.float32]],
    truth_labels: Sequence[npt.NDArray[np.int64]],
) -> tuple[float, float, float]:
    """COCO's AP at .5:.95, .5 and .75."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, results = coco_tables(predictions, truths_xyxy, truth_labels)
    if not results:
        return 0.0, 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a table of its own
        reference = COCO(truth)
        evaluator = COCOeval_faster(reference, reference.loadRes(results), "bbox")
        evaluator.run()
    average, at50, at75 = (float(value) for value in evaluator.stats[:3])
    return average, at50, at75


def _as_xywh(boxes_xyxy: npt.NDArray[np.float32]) -> list[list[float]]:
    boxes = boxes_xyxy.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    return [[float(value) for value in box] for box in boxes]
