"""Two detectors on the same pictures: their figures, and how sure the differences are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from consilia.detection.bootstrap import RESAMPLES, Interval
from consilia.detection.evaluation import FIGURES, Evaluation, drawn_over, score
from consilia.detection.examples import Example
from consilia.detection.inference import Prediction


@dataclass(frozen=True)
class Difference:
    """`first` minus `second` in one of `FIGURES`, with its interval over the same draws of patients for both."""

    figure: str
    first: float
    second: float
    interval: Interval | None

    @property
    def difference(self) -> float:
        """How much better the first is."""
        return self.first - self.second

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves out 0: other patients would hardly have turned the order round."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


@dataclass(frozen=True)
class Comparison:
    """Two evaluations and their differences; `over` tells what was drawn, see `drawn_over`."""

    first: Evaluation
    second: Evaluation
    differences: tuple[Difference, ...]
    over: str


def compare(
    first: Sequence[Prediction],
    second: Sequence[Prediction],
    examples: Sequence[Example],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Comparison:
    """Compare the findings of two detectors on the same pictures.

    Raises:
        DatasetError: there is no lesion, or predictions and pictures are not the same.
    """
    one, other = (score(found, examples, resamples=resamples, seed=seed) for found in (first, second))
    differences = []
    for figure in FIGURES:
        drawn = one.spread.difference([other.spread], figure) if one.spread and other.spread else None
        differences.append(Difference(figure, getattr(one, figure), getattr(other, figure), drawn))
    return Comparison(one, other, tuple(differences), drawn_over(examples))
