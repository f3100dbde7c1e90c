"""COCO's average precision of many resamples at once.

The figure itself is faster-coco-eval's. It would need half a second a resample; here each picture's findings are
matched once, and a resample only weighs them. Tests hold both to the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from consilia.detection.bootstrap import FloatArray, Resamples
from consilia.detection.froc import ImageFindings, iou

IOU_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
RECALLS = np.linspace(0.0, 1.0, 101)
MAX_FINDINGS = 100
"""COCO looks at the best hundred findings of a class on a picture."""


@dataclass(frozen=True)
class ResampledPrecision:
    """Average precision in each resample (resamples,); NaN where a resample holds no lesion."""

    map50: FloatArray
    map75: FloatArray
    map: FloatArray


@dataclass(frozen=True)
class _Matches:
    """One class: findings by falling score, each with its picture and whether it is a hit at each IoU (n, 10)."""

    image_of: npt.NDArray[np.int64]
    hits: npt.NDArray[np.bool_]
    lesions_of_image: npt.NDArray[np.int64]


def resampled_precision(images: Sequence[ImageFindings], resamples: Resamples) -> ResampledPrecision:
    """COCO's AP at IoU .5 to .95, averaged over the classes that a resample has lesions of."""
    classes = sorted({int(label) for image in images for label in image.lesion_labels})
    by_class = np.stack([_class_precision(_match(images, label), resamples) for label in classes])
    there = np.isfinite(by_class[:, 0])  # a class without a lesion has no precision, whatever the IoU
    counted = there.sum(axis=0)
    mean = np.where(there[:, None], by_class, 0.0).sum(axis=0) / np.where(counted, counted, np.nan)
    return ResampledPrecision(mean[0], mean[5], mean.mean(axis=0))


def _match(images: Sequence[ImageFindings], label: int) -> _Matches:
    scores, image_of, hits = [], [], []
    for index, image in enumerate(images):
        mine = np.flatnonzero(image.labels == label)
        mine = mine[np.argsort(-image.scores[mine], kind="stable")][:MAX_FINDINGS]
        boxes = image.lesion_boxes_xyxy[image.lesion_labels == label].astype(np.float64)
        scores.append(image.scores[mine].astype(np.float64))
        image_of.append(np.full(len(mine), index))
        hits.append(_hits(iou(image.boxes_xyxy[mine].astype(np.float64), boxes)))
    order = np.argsort(-np.concatenate(scores), kind="stable")
    lesions = np.array([(image.lesion_labels == label).sum() for image in images])
    return _Matches(np.concatenate(image_of)[order], np.concatenate(hits)[order], lesions)


def _hits(overlap: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """COCO's matching: the best finding takes the free lesion that it overlaps most. (n, m) -> (n, 10)."""
    hits = np.zeros((len(overlap), len(IOU_THRESHOLDS)), bool)
    if overlap.shape[1] == 0:
        return hits
    for column, threshold in enumerate(IOU_THRESHOLDS):
        free = np.ones(overlap.shape[1], bool)
        for finding in np.flatnonzero((overlap >= threshold).any(axis=1)):
            left = np.where(free, overlap[finding], -1.0)
            best = len(left) - 1 - int(np.argmax(left[::-1]))  # of equals the last, as COCO does
            if left[best] >= threshold:
                free[best], hits[finding, column] = False, True
    return hits


def _class_precision(matches: _Matches, resamples: Resamples) -> FloatArray:
    """One class's AP: (10, resamples), NaN where there is no lesion of it."""
    lesions = resamples.total(matches.lesions_of_image)
    rows = [_one_iou(matches, matches.hits[:, column], lesions, resamples) for column in range(10)]
    return np.where(lesions > 0, np.stack(rows), np.nan)


def _one_iou(
    matches: _Matches, hits: npt.NDArray[np.bool_], lesions: FloatArray, resamples: Resamples
) -> FloatArray:
    # recall moves at hits alone, and there precision is highest: nothing needs to be known in between
    at = np.flatnonzero(hits)
    if len(at) == 0:
        return np.zeros(len(lesions))
    found = resamples.cumulative(matches.image_of, hits, at)
    wrong = resamples.cumulative(matches.image_of, ~hits, at)
    recall = found / np.maximum(lesions, 1)[:, None]
    precision = found / np.maximum(found + wrong, 1)
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(
        RECALLS, recall, side="right"
    )  # how many of the 101 recalls are reached by here
    new = np.diff(reached, axis=1, prepend=0)
    return np.asarray((envelope * new).sum(axis=1) / len(RECALLS))
