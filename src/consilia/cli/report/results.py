"""The part of a report that says how good each model is, with intervals, and what comes of comparing them.

Nothing is worked out twice: `Results.of` derives the summary from the scores, so that the sentence at the top of
the report cannot disagree with the table under it.
"""

from __future__ import annotations

from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from consilia.errors import InputError

Unit = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Wei = Annotated[int, Field(ge=0)]
PositiveSeconds = Annotated[float, Field(ge=0)]


class Part(BaseModel):
    """A piece of the report: frozen, finite numbers only, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Text(Part):
    """A sentence in both languages of the page."""

    en: str
    zh: str


class Interval(Part):
    """A 95 % bootstrap interval over the held-out patients."""

    low: float
    high: float


class SiteScore(Part):
    """How one model does on the held-out patients of one hospital."""

    hospital: str
    map50: Unit
    map: Unit
    cpm: Unit
    map50_interval: Interval | None = None


class Score(Part):
    """How one model does on all held-out patients.

    `map50` is mAP@.5, `map` is mAP@[.5:.95], `cpm` the mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false
    positives an image, `froc` the curve as (mean false positives an image, sensitivity). The intervals are None
    where there are too few patients. `training_steps` counts optimiser steps over all trainers together;
    `seconds` is the wall time that the training took.
    """

    map50: Unit
    map: Unit
    cpm: Unit
    map50_interval: Interval | None = None
    map_interval: Interval | None = None
    cpm_interval: Interval | None = None
    froc: tuple[tuple[Annotated[float, Field(ge=0)], Unit], ...] = ()
    training_steps: Count = 0
    seconds: PositiveSeconds = 0.0
    by_hospital: tuple[SiteScore, ...] = ()


class LocalScore(Score):
    """A model that one hospital trained alone, on the same held-out patients as all the others."""

    hospital: str


class Differences(Part):
    """Intervals of the federated model's figures minus others', drawn in pairs: the same patients for both.

    One that lies above 0 says more than two intervals that do not overlap. None: too few patients, or not drawn.
    """

    map50_minus_mean_local: Interval | None = None
    map_minus_mean_local: Interval | None = None
    cpm_minus_mean_local: Interval | None = None
    map50_minus_pooled: Interval | None = None
    map_minus_pooled: Interval | None = None
    cpm_minus_pooled: Interval | None = None


class Summary(Part):
    """The comparison, worked out from the scores. A ratio is 0 where what it divides by is 0."""

    mean_local_map50: Unit
    mean_local_map: Unit
    mean_local_cpm: Unit
    best_local_map50: Unit
    gain_map50: float
    gain_map: float
    gain_cpm: float
    ratio_to_pooled_map50: float
    ratio_to_pooled_map: float
    ratio_to_pooled_cpm: float
    beats_mean_local: bool
    beats_every_local: bool


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else 0.0


class Results(Part):
    """The three ways to train, and what comes of comparing them. Build it with `Results.of`."""

    federated: Score
    pooled: Score
    local_only: tuple[LocalScore, ...]
    summary: Summary
    differences: Differences = Differences()

    @classmethod
    def of(
        cls,
        federated: Score,
        pooled: Score,
        local_only: tuple[LocalScore, ...],
        differences: Differences | None = None,
    ) -> Results:
        """The results with their summary; `local_only` holds at least one hospital."""
        if not local_only:
            raise InputError("a comparison needs at least one hospital trained alone, got none")
        map50 = fmean(score.map50 for score in local_only)
        mean_map = fmean(score.map for score in local_only)
        cpm = fmean(score.cpm for score in local_only)
        best = max(score.map50 for score in local_only)
        summary = Summary(
            mean_local_map50=map50,
            mean_local_map=mean_map,
            mean_local_cpm=cpm,
            best_local_map50=best,
            gain_map50=federated.map50 - map50,
            gain_map=federated.map - mean_map,
            gain_cpm=federated.cpm - cpm,
            ratio_to_pooled_map50=_ratio(federated.map50, pooled.map50),
            ratio_to_pooled_map=_ratio(federated.map, pooled.map),
            ratio_to_pooled_cpm=_ratio(federated.cpm, pooled.cpm),
            beats_mean_local=federated.map50 > map50,
            beats_every_local=federated.map50 > best,
        )
        return cls(
            federated=federated,
            pooled=pooled,
            local_only=local_only,
            summary=summary,
            differences=differences or Differences(),
        )
