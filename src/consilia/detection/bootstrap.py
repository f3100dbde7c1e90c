"""How far a figure could have come out otherwise: the bootstrap over patients (Efron and Tibshirani 1993, ch. 13).

Pictures of one patient resemble one another, so it is patients that are drawn, with all their pictures. A resample
is a row of weights: how often each patient was drawn. Everything that a resample needs is counted per patient
beforehand, so that a thousand of them are a matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
CONFIDENCE = 0.95
MIN_PATIENTS = 2
"""Of one patient alone nothing can be drawn otherwise; an interval would be a point that means nothing."""

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Interval:
    """The middle 95 % of the resamples (percentile interval)."""

    low: float
    high: float


@dataclass(frozen=True)
class Resamples:
    """Which pictures belong to which patient, and how often each patient is in each resample.

    `patient_of_image` is (images,), an index; `weights` is (resamples, patients), whole numbers. Two models on
    the same pictures take the same resamples, so that their difference is drawn in pairs.
    """

    patient_of_image: IntArray
    weights: FloatArray

    @property
    def num_patients(self) -> int:
        """How many patients there are to draw from."""
        return int(self.weights.shape[1])

    def per_patient(self, per_image: npt.ArrayLike) -> FloatArray:
        """Sums over each patient's pictures: (images,) -> (patients,)."""
        summed = np.zeros(self.num_patients)
        np.add.at(summed, self.patient_of_image, np.asarray(per_image, np.float64))
        return summed

    def total(self, per_image: npt.ArrayLike) -> FloatArray:
        """The sum over the pictures of each resample: (images,) -> (resamples,)."""
        return self.weights @ self.per_patient(per_image)

    def cumulative(self, image_of_item: IntArray, counts: npt.NDArray[np.bool_], at: IntArray) -> FloatArray:
        """How many counting items stand among the first `at[k] + 1`, in each resample.

        Args:
            image_of_item: the picture that each item belongs to, in the order in which items are counted.
            counts: which of them count.
            at: positions, rising (positions,).

        Returns:
            (resamples, positions).
        """
        bins = np.searchsorted(at, np.flatnonzero(counts))
        patients = self.patient_of_image[image_of_item[counts]]
        inside = bins < len(at)
        steps = np.zeros((self.num_patients, len(at)))
        np.add.at(steps, (patients[inside], bins[inside]), 1.0)
        return self.weights @ np.cumsum(steps, axis=1)


def resample(patients: Sequence[str], count: int = RESAMPLES, seed: int = 0) -> Resamples:
    """Draw patients with replacement, as many as there are, `count` times; the same for the same seed.

    Args:
        patients: each picture's patient.
        count: how many resamples.
        seed: of the draws.
    """
    names, patient_of_image = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), count)
    return Resamples(patient_of_image.astype(np.int64), drawn.astype(np.float64))


def interval(values: FloatArray, num_patients: int) -> Interval | None:
    """The percentile interval of a figure's resamples; those in which it means nothing are NaN and left out.

    None where there are too few patients, or fewer than half of the resamples give a figure.
    """
    good = values[np.isfinite(values)]
    if num_patients < MIN_PATIENTS or len(good) * 2 < len(values):
        return None
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(good, [tail, 100 - tail])
    return Interval(float(low), float(high))
