"""What lies behind the headline figures: which lesions, which patients, which hospital, and what a score means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from consilia.detection.bootstrap import RESAMPLES, FloatArray, Interval, Resamples, interval, resample
from consilia.detection.evaluation import Evaluation, drawn_over, findings_of, score
from consilia.detection.examples import Example
from consilia.detection.froc import Judged, judge, threshold_at
from consilia.detection.inference import Prediction

FALSE_POSITIVES = 1.0
"""The operating point of the tables: as many false positives per image as a reader may put up with."""

SIZES_MM = (0.0, 10.0, 30.0, float("inf"))
"""Below 10 mm a node or nodule is small (RECIST 1.1); above 30 mm a lung nodule is a mass (Fleischner Society)."""

SIZES_PX = (0.0, 32.0, 96.0, float("inf"))
"""COCO's small, medium and large, where nobody knows millimetres."""

BINS = 10


@dataclass(frozen=True)
class Rate:
    """`found` of `number`, with the bootstrap interval of their ratio."""

    number: int
    found: int
    interval: Interval | None

    @property
    def rate(self) -> float:
        """The ratio; 0 where there is nothing."""
        return self.found / self.number if self.number else 0.0


@dataclass(frozen=True)
class SizeGroup:
    """Lesions whose longer side is at least `low` and below `high`, in `unit` (mm or px of the original)."""

    low: float
    high: float
    unit: str
    lesions: Rate


@dataclass(frozen=True)
class Bin:
    """Findings with a score from `low` to `high`: how many, their mean score, and how many are hits."""

    low: float
    high: float
    findings: int
    mean_score: float
    hits: int


@dataclass(frozen=True)
class Calibration:
    """How far scores are from the share of hits: reliability bins, and their mean gap, the ECE (Guo et al. 2017).

    Every finding that the detector reports counts; most have a low score.
    """

    bins: tuple[Bin, ...]
    ece: float
    interval: Interval | None


@dataclass(frozen=True)
class HospitalFigures:
    """The figures on the patients of one hospital alone."""

    hospital: str
    patients: int
    evaluation: Evaluation


@dataclass(frozen=True)
class Assessment:
    """Everything that is known of one detector on one set of pictures.

    `threshold` is the score above which there is at most `FALSE_POSITIVES` per image; `by_size` and `patients`
    are at this score. A patient is found if one of its lesions is. Where a picture's patient is unknown, the picture
    counts as one; `over` tells what was drawn: `patients`, `images`, or `patients and images`.
    """

    overall: Evaluation
    num_patients: int
    threshold: float
    by_size: tuple[SizeGroup, ...]
    patients: Rate
    calibration: Calibration
    hospitals: tuple[HospitalFigures, ...]
    over: str = "patients"

    @property
    def worst_hospital(self) -> HospitalFigures | None:
        """The hospital with the lowest mAP@.5; None unless there are two."""
        if len(self.hospitals) < 2:
            return None
        return min(self.hospitals, key=lambda figures: (figures.evaluation.map50, figures.hospital))


def assess(
    predictions: Sequence[Prediction],
    examples: Sequence[Example],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Assessment:
    """Measure findings on pictures with known lesions, in the same order.

    Raises:
        DatasetError: there is no lesion, or predictions and pictures are not the same.
    """
    overall = score(predictions, examples, resamples=resamples, seed=seed)
    judged = [judge(image) for image in findings_of(predictions, examples)]
    drawn = resample([example.patient for example in examples], resamples, seed)
    threshold = threshold_at(judged, FALSE_POSITIVES)
    return Assessment(
        overall,
        drawn.num_patients,
        threshold,
        tuple(_by_size(examples, judged, threshold, drawn)),
        _patients(judged, threshold, drawn),
        _calibration(judged, drawn),
        tuple(_hospitals(predictions, examples, resamples, seed)),
        drawn_over(examples),
    )


def _by_size(
    examples: Sequence[Example], judged: Sequence[Judged], threshold: float, drawn: Resamples
) -> list[SizeGroup]:
    in_mm = all(example.spacing_mm is not None for example in examples)
    unit, edges = ("mm", SIZES_MM) if in_mm else ("px", SIZES_PX)
    sizes = [lesion_sizes(example, in_mm) for example in examples]
    groups = []
    for low, high in pairwise(edges):
        inside = [(size >= low) & (size < high) for size in sizes]
        there = [int(mine.sum()) for mine in inside]
        found = [
            int((image.lesion_scores()[mine] >= threshold).sum())
            for image, mine in zip(judged, inside, strict=True)
        ]
        groups.append(SizeGroup(low, high, unit, _rate(there, found, drawn)))
    return groups


def lesion_sizes(example: Example, in_mm: bool) -> FloatArray:
    """The longer side of each lesion's box: in millimetres, or in pixels of the original picture."""
    boxes = example.boxes_xyxy.astype(np.float64) / example.scale_xyxy
    sides = boxes[:, 2:] - boxes[:, :2]
    if in_mm and example.spacing_mm is not None:
        between_rows, between_columns = example.spacing_mm
        sides = sides * np.array([between_columns, between_rows])
    return np.asarray(sides.max(axis=1, initial=0.0))


def _rate(there: Sequence[int], found: Sequence[int], drawn: Resamples) -> Rate:
    number = drawn.total(there)
    ratios = drawn.total(found) / np.where(number > 0, number, np.nan)
    # an interval of a group that lives in one patient would be a point that means nothing
    patients = int((drawn.per_patient(there) > 0).sum())
    return Rate(sum(there), sum(found), interval(ratios, patients))


def _patients(judged: Sequence[Judged], threshold: float, drawn: Resamples) -> Rate:
    ill = drawn.per_patient([image.num_lesions for image in judged]) > 0
    hits = drawn.per_patient([(image.lesion_scores() >= threshold).sum() for image in judged]) > 0
    number = drawn.weights @ ill
    ratios = drawn.weights @ hits / np.where(number > 0, number, np.nan)
    return Rate(int(ill.sum()), int(hits.sum()), interval(ratios, int(ill.sum())))


def _calibration(judged: Sequence[Judged], drawn: Resamples) -> Calibration:
    edges = np.linspace(0, 1, BINS + 1)
    counts, scores, hits = (np.zeros((len(judged), BINS)) for _ in range(3))
    for row, image in enumerate(judged):
        column = np.clip(np.digitize(image.scores, edges[1:-1]), 0, BINS - 1)
        for table, values in ((counts, 1.0), (scores, image.scores), (hits, image.hits)):
            np.add.at(table[row], column, values)
    everybody = _gap(*(table.sum(axis=0, keepdims=True) for table in (counts, scores, hits)))[0]
    resampled = _gap(*(_total(table, drawn) for table in (counts, scores, hits)))
    bins = tuple(
        Bin(float(edges[k]), float(edges[k + 1]), int(n), float(s / n) if n else 0.0, int(h))
        for k, (n, s, h) in enumerate(
            zip(counts.sum(axis=0), scores.sum(axis=0), hits.sum(axis=0), strict=True)
        )
    )
    return Calibration(bins, float(np.nan_to_num(everybody)), interval(resampled, drawn.num_patients))


def _total(table: FloatArray, drawn: Resamples) -> FloatArray:
    return np.stack([drawn.total(column) for column in table.T], axis=1)


def _gap(counts: FloatArray, scores: FloatArray, hits: FloatArray) -> FloatArray:
    """The ECE: the mean over all findings of the gap between a bin's mean score and its share of hits."""
    all_findings = counts.sum(axis=1)
    return np.asarray(np.abs(scores - hits).sum(axis=1) / np.where(all_findings > 0, all_findings, np.nan))


def _hospitals(
    predictions: Sequence[Prediction], examples: Sequence[Example], resamples: int, seed: int
) -> list[HospitalFigures]:
    figures = []
    for name in sorted({example.hospital for example in examples if example.hospital}):
        mine: npt.NDArray[np.int64] = np.flatnonzero([example.hospital == name for example in examples])
        own = [examples[index] for index in mine]
        if any(len(example.labels) for example in own):
            found = [predictions[index] for index in mine]
            patients = len({example.patient for example in own})
            evaluation = score(found, own, resamples=resamples, seed=seed)
            figures.append(HospitalFigures(name, patients, evaluation))
    return figures
