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

from consilia.detection.bootstrap import Resamples

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


@dataclass(frozen=True)
class Judged:
    """The findings that count on one picture, best first: `scores` (n,), and `lesions` (n,), which one each hits.

    -1 stands for a false positive. `num_lesions` counts those that there are to find.
    """

    scores: npt.NDArray[np.float64]
    lesions: npt.NDArray[np.int64]
    num_lesions: int

    @property
    def hits(self) -> npt.NDArray[np.bool_]:
        """Whether each finding is a hit."""
        return self.lesions >= 0

    def lesion_scores(self) -> npt.NDArray[np.float64]:
        """The score of the finding that hit each lesion; minus infinity where none did."""
        scores = np.full(self.num_lesions, -np.inf)
        scores[self.lesions[self.hits]] = self.scores[self.hits]
        return scores


def froc(images: Sequence[ImageFindings]) -> Froc:
    """The FROC of findings on pictures, all classes together, under the hit rule above."""
    return froc_of([judge(image) for image in images])


def froc_of(judged: Sequence[Judged]) -> Froc:
    """The FROC of judged pictures.

    At an operating point stands the best sensitivity of all score thresholds with at most that many false
    positives per image.
    """
    num_lesions = sum(image.num_lesions for image in judged)
    scores = np.concatenate([image.scores for image in judged]) if judged else np.zeros(0)
    hits = np.concatenate([image.hits for image in judged]) if judged else np.zeros(0, bool)
    order = np.argsort(-scores, kind="stable")
    last = last_of_each_score(scores[order])
    sensitivity = np.append(0.0, np.cumsum(hits[order])[last] / max(num_lesions, 1))
    false_positives = np.append(0.0, np.cumsum(~hits[order])[last] / max(len(judged), 1))
    points = tuple((at, float(sensitivity[false_positives <= at].max())) for at in OPERATING_POINTS)
    return Froc(points, float(np.mean([found for _, found in points])), num_lesions)


def threshold_at(judged: Sequence[Judged], false_positives: float) -> float:
    """The lowest score at which findings have at most so many false positives per image; infinity if none has."""
    scores = np.concatenate([image.scores for image in judged]) if judged else np.zeros(0)
    hits = np.concatenate([image.hits for image in judged]) if judged else np.zeros(0, bool)
    order = np.argsort(-scores, kind="stable")
    last = last_of_each_score(scores[order])
    allowed = last[np.cumsum(~hits[order])[last] <= false_positives * len(judged)]
    return float(scores[order][allowed[-1]]) if len(allowed) else float("inf")


def last_of_each_score(falling: FloatArray) -> npt.NDArray[np.int64]:
    """Where falling scores change: a threshold lets all findings of one score pass or none."""
    return np.flatnonzero(np.append(np.diff(falling) != 0, True)) if len(falling) else np.zeros(0, np.int64)


def iou(boxes_xyxy: FloatArray, others_xyxy: FloatArray) -> FloatArray:
    """Intersection over union of every box with every other: (n, 4), (m, 4) -> (n, m)."""
    low = np.maximum(boxes_xyxy[:, None, :2], others_xyxy[None, :, :2])
    high = np.minimum(boxes_xyxy[:, None, 2:], others_xyxy[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=2)
    area = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(axis=1)
    other_area = (others_xyxy[:, 2:] - others_xyxy[:, :2]).prod(axis=1)
    union = area[:, None] + other_area[None, :] - overlap
    return np.asarray(overlap / np.where(union > 0, union, 1))


def judge(image: ImageFindings) -> Judged:
    """Which findings count, and what each hits; the best finding chooses first."""
    overlap = iou(image.boxes_xyxy.astype(np.float64), image.lesion_boxes_xyxy.astype(np.float64))
    matches = (overlap >= HIT_IOU) & (image.labels[:, None] == image.lesion_labels[None, :])
    free = np.ones(len(image.lesion_labels), bool)
    scores: list[float] = []
    lesions: list[int] = []
    for finding in np.argsort(-image.scores, kind="stable"):
        candidates = np.flatnonzero(matches[finding] & free)
        hit = int(candidates[np.argmax(overlap[finding, candidates])]) if len(candidates) else -1
        if hit >= 0:
            free[hit] = False
        elif matches[finding].any():
            continue  # a second finding on a lesion already hit
        scores.append(float(image.scores[finding]))
        lesions.append(hit)
    return Judged(np.array(scores, np.float64), np.array(lesions, np.int64), len(image.lesion_labels))


def resampled_froc(judged: Sequence[Judged], resamples: Resamples) -> FloatArray:
    """The sensitivities at `OPERATING_POINTS` in each resample: (resamples, 7); NaN where it holds no lesion."""
    lesions = resamples.total([image.num_lesions for image in judged])
    pictures = resamples.total(np.ones(len(judged)))
    image_of = np.concatenate([np.full(len(image.scores), index) for index, image in enumerate(judged)])
    scores = np.concatenate([image.scores for image in judged])
    order = np.argsort(-scores, kind="stable")
    hits = np.concatenate([image.hits for image in judged])[order]
    last = last_of_each_score(scores[order])
    # only thresholds that let a hit more pass than the one before can be the best ones
    at = last[np.diff(np.cumsum(hits)[last], prepend=0) > 0]
    found = resamples.cumulative(image_of[order], hits, at)
    wrong = resamples.cumulative(image_of[order], ~hits, at)
    columns = []
    for allowed in OPERATING_POINTS:
        passed = (wrong <= (allowed * pictures)[:, None]).sum(axis=1)
        best = np.concatenate([np.zeros((len(found), 1)), found], axis=1)[np.arange(len(found)), passed]
        columns.append(best / np.where(lesions > 0, lesions, np.nan))
    return np.stack(columns, axis=1)
