"""FROC: sensitivity against false positives per image, and its summary, the CPM (Setio et al. 2017, LUNA16).

Hit rule. A finding hits a lesion when both have the same class and their boxes overlap with IoU >= 0.3. Each
lesion is hit at most once; a further finding on a lesion already hit is neither a hit nor a false positive
(as in LUNA16). Every other finding is a false positive. Why not LUNA16's "centre inside": a centre knows
nothing of the extent, and a box over half of the slice would hit. Why not 0.5: annotators pad boxes, and a
lesion of a few pixels loses an IoU of 0.5 to a shift of one pixel although a reader would find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

HIT_IOU = 0.3
OPERATING_POINTS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per image at which the sensitivity is read (Setio et al. 2017)."""

FloatArray = npt.NDArray[np.floating]


@dataclass(frozen=True)
class ImageFindings:
    """One picture's lesions and findings: boxes (n, 4) in the same pixels, labels (n,), scores (n,)."""

    lesion_boxes_xyxy: FloatArray
    lesion_labels: npt.NDArray[np.int64]
    boxes_xyxy: FloatArray
    scores: FloatArray
    labels: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Froc:
    """`points` are (false positives per image, sensitivity) at `OPERATING_POINTS`.

    `cpm`, the competition performance metric, is their mean sensitivity; 0 where there is no lesion to find.
    """

    points: tuple[tuple[float, float], ...]
    cpm: float
    num_lesions: int


def froc(images: Sequence[ImageFindings]) -> Froc:
    """The FROC of findings on pictures, all classes together, under the hit rule above.

    At an operating point stands the best sensitivity of all score thresholds with at most that many false
    positives per image.
    """
    num_lesions = sum(len(image.lesion_labels) for image in images)
    judged = [_judge(image) for image in images]
    scores = np.concatenate([scores for scores, _ in judged]) if judged else np.zeros(0)
    hits = np.concatenate([hits for _, hits in judged]) if judged else np.zeros(0, bool)
    order = np.argsort(-scores, kind="stable")
    # a threshold lets all findings of one score pass or none: read the curve only where the score changes
    last_of_score = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True)) if len(order) else order
    sensitivity = np.append(0.0, np.cumsum(hits[order])[last_of_score] / max(num_lesions, 1))
    false_positives = np.append(0.0, np.cumsum(~hits[order])[last_of_score] / max(len(images), 1))
    points = tuple((at, float(sensitivity[false_positives <= at].max())) for at in OPERATING_POINTS)
    return Froc(points, float(np.mean([found for _, found in points])), num_lesions)


def iou(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    """Intersection over union of every box with every other: (n, 4), (m, 4) -> (n, m)."""
    low = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    other_area = (others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(axis=1)
    union = area[:, None] + other_area[None, :] - overlap
    return np.asarray(overlap / np.where(union > 0, union, 1))


def _judge(image: ImageFindings) -> tuple[FloatArray, npt.NDArray[np.bool_]]:
    """Scores of the findings that count, and whether each is a hit; the best finding chooses first."""
    overlap = iou(image.boxes_xyxy.astype(np.float64), image.lesion_boxes_xyxy.astype(np.float64))
    matches = (overlap >= HIT_IOU) & (image.labels[:, None] == image.lesion_labels[None, :])
    free = np.ones(len(image.lesion_labels), bool)
    scores: list[float] = []
    hits: list[bool] = []
    for finding in np.argsort(-image.scores, kind="stable"):
        candidates = np.flatnonzero(matches[finding] & free)
        if len(candidates):
            free[candidates[np.argmax(overlap[finding, candidates])]] = False
        elif matches[finding].any():
            continue  # a second finding on a lesion already hit
        scores.append(float(image.scores[finding]))
        hits.append(len(candidates) > 0)
    return np.array(scores, np.float64), np.array(hits, bool)
