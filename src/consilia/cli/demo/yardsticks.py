"""The two yardsticks of a demo, each hospital alone and all data pooled, and the scores of every model.

Each runs in a process of its own on one core. They start from the same w_0, follow the same recipe and see the same
images as the federation. A hospital alone takes the steps that it took in the federation; the pooled model takes as
many as all hospitals together.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from consilia.cli.report.report import Box, Example, Prediction, png_base64
from consilia.cli.report.results import Interval, Score, SiteScore
from consilia.detection import evaluation, inference, weights
from consilia.detection.bootstrap import RESAMPLES
from consilia.detection.examples import Example as DetectorExample
from consilia.detection.examples import prepare
from consilia.detection.inference import load_detector, predict
from consilia.detection.predictions import write_predictions
from consilia.detection.proposals import ready_for
from consilia.detection.training import StepBudget, Trainer
from consilia.errors import ConsiliaError
from consilia.protocols.task_spec import TaskSpec, parse_bytes
from consilia.roles.artifacts import file_digest
from consilia.roles.training.local_training import read_training_data, recipe_of
from consilia.settings.sections import DataSection

MIN_SHOWN_SCORE = 0.3
"""Findings below it are not drawn on the example slices; the figures count them all."""


@dataclass(frozen=True)
class Site:
    """The images of one hospital: its own, or the held-out ones of its patients."""

    hospital: str
    data: DataSection


@dataclass(frozen=True)
class TrainingJob:
    """One yardstick to train."""

    spec: bytes
    sites: tuple[Site, ...]
    initial: Path
    out: Path


@dataclass(frozen=True)
class Trained:
    """How long a yardstick took."""

    steps: int
    seconds: float


def train(job: TrainingJob) -> Trained:
    """Train a yardstick for as many steps as its hospitals took in the federation, and write its weights."""
    torch.set_num_threads(1)
    began = time.monotonic()
    spec = parse_bytes(job.spec)
    own = [_examples(spec, site) for site in job.sites]
    examples = [example for site in own for example in site]
    steps = sum(spec.training.rounds * spec.training.local_steps(len(site)) for site in own)
    size = spec.model.image_size
    trainer = Trainer(
        spec.model.detector,
        len(spec.data.categories),
        size,
        recipe_of(spec),
        examples,
        spec.model.seed,
        backbone=spec.model.backbone,
        proposals=job.sites[0].data.proposals,
    )
    weights.load_into(trainer.model, job.initial)
    trainer.run(StepBudget(steps, 0, steps))
    weights.save(trainer.model, job.out)
    return Trained(steps, time.monotonic() - began)


@dataclass(frozen=True)
class ScoringJob:
    """One model to score on the held-out patients; `keep` is where its findings go, and asks for intervals too."""

    spec: bytes
    sites: tuple[Site, ...]
    model: Path
    keep: Path | None = None


@dataclass(frozen=True)
class Scored:
    """A model's score, and its resamples where they were drawn."""

    score: Score
    spread: evaluation.Spread | None


def score(job: ScoringJob) -> Scored:
    """Score a model on all held-out patients; where findings are kept, on those of each hospital too."""
    torch.set_num_threads(1)
    spec = parse_bytes(job.spec)
    detector = load_detector(spec, job.model)
    groups = {
        site.hospital: ready_for(detector.model, _examples(spec, site), site.data.proposals)
        for site in job.sites
    }
    findings = {hospital: predict(detector.model, examples) for hospital, examples in groups.items()}
    found = [finding for own in findings.values() for finding in own]
    resamples = 0
    if job.keep is not None:
        resamples = RESAMPLES
        write_predictions(job.keep, found, spec.data.categories, str(file_digest(job.model)))
    result = evaluation.score(
        found, [example for examples in groups.values() for example in examples], resamples=resamples
    )
    sites = []
    for hospital, examples in groups.items() if job.keep is not None and len(groups) > 1 else ():
        if any(len(example.labels) for example in examples):
            own = evaluation.score(findings[hospital], examples, resamples=resamples)
            sites.append(
                SiteScore(
                    hospital=hospital,
                    map50=own.map50,
                    map=own.map,
                    cpm=own.cpm,
                    map50_interval=shown(own.spread, "map50"),
                )
            )
    return Scored(_score(result, tuple(sites)), result.spread)


def shown(spread: evaluation.Spread | None, figure: str) -> Interval | None:
    """A figure's interval as the report shows it."""
    found = spread.interval(figure) if spread else None
    return Interval(low=found.low, high=found.high) if found else None


def _score(result: evaluation.Evaluation, sites: tuple[SiteScore, ...]) -> Score:
    return Score(
        map50=result.map50,
        map=result.map,
        cpm=result.cpm,
        map50_interval=shown(result.spread, "map50"),
        map_interval=shown(result.spread, "map"),
        cpm_interval=shown(result.spread, "cpm"),
        froc=result.froc,
        by_hospital=sites,
    )


@dataclass(frozen=True)
class ExamplesJob:
    """Some held-out slices to draw, with what several models find on them."""

    spec: bytes
    sites: tuple[Site, ...]
    models: tuple[tuple[str, str, Path], ...]
    """(federated, pooled or local; the hospital of a local one; its weights)"""
    count: int


def draw_examples(job: ExamplesJob) -> tuple[Example, ...]:
    """Slices with lesions of different hospitals and patients, and one without a lesion if there is one."""
    torch.set_num_threads(1)
    spec = parse_bytes(job.spec)
    chosen = _choose([(site.hospital, _examples(spec, site)) for site in job.sites], job.count)
    models = [(kind, hospital, load_detector(spec, path)) for kind, hospital, path in job.models]
    first = models[0][2].model
    pictures = ready_for(first, [example for _, example in chosen], job.sites[0].data.proposals)
    findings = [predict(detector.model, pictures) for _, _, detector in models]
    return tuple(
        Example(
            patient=f"held-out {index + 1}",
            hospital=hospital,
            width=example.pixels.shape[1],
            height=example.pixels.shape[0],
            image_png_base64=png_base64(example.pixels),
            truth=tuple(_boxes(spec, example.boxes_xyxy, example.labels, None)),
            predictions=tuple(
                _prediction(spec, kind, local, found[index], example.scale_xyxy)
                for (kind, local, _), found in zip(models, findings, strict=True)
            ),
        )
        for index, (hospital, example) in enumerate(chosen)
    )


def _choose(groups: list[tuple[str, list[DetectorExample]]], count: int) -> list[tuple[str, DetectorExample]]:
    chosen: list[tuple[str, DetectorExample]] = []
    for turn in range(count):
        hospital, examples = groups[turn % len(groups)]
        lesions = [example for example in examples if len(example.labels)]
        patients = {example.patient for _, example in chosen}
        fresh = [example for example in lesions if example.patient not in patients] or lesions
        if fresh:
            # the middle of a patient's slices shows most of a lesion
            chosen.append((hospital, fresh[len(fresh) // 2]))
    return chosen


def _prediction(
    spec: TaskSpec, kind: str, hospital: str, found: inference.Prediction, scale_xyxy: NDArray[np.float64]
) -> Prediction:
    shown = found.scores >= MIN_SHOWN_SCORE
    boxes = _boxes(
        spec, found.boxes_xyxy[shown] * np.float32(scale_xyxy), found.labels[shown], found.scores[shown]
    )
    return Prediction.model_validate({"model": kind, "hospital": hospital, "boxes": tuple(boxes)})


def _boxes(
    spec: TaskSpec,
    boxes_xyxy: NDArray[np.float32],
    labels: NDArray[np.int64],
    scores: NDArray[np.float32] | None,
) -> list[Box]:
    names = spec.data.categories
    return [
        Box(
            xyxy=tuple(round(float(edge), 2) for edge in box),
            label=names[int(label) - 1],
            score=None if scores is None else float(scores[index]),
        )
        for index, (box, label) in enumerate(zip(boxes_xyxy, labels, strict=True))
    ]


def _examples(spec: TaskSpec, site: Site) -> list[DetectorExample]:
    examples, skipped = prepare(read_training_data(spec, site.data).images, spec.model.image_size)
    if not examples:
        raise ConsiliaError(f"none of the images of {site.hospital} can be used: {skipped[0].reason}")
    return examples
