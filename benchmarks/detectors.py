"""How well each detector of the family learns from scratch, pooled, in a stated time on one core.

    python benchmarks/detectors.py ../shared/data/bccd --seconds 120 --out build/detectors.json

Trains on the official train and val images, scores on the official test images, prints a row a detector. The time is
CPU seconds of the training alone; how many steps fit is found by taking some first, and they are thrown away.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from consilia.detection.detectors import BODIES, DETECTORS
from consilia.detection.evaluation import evaluate
from consilia.detection.examples import Example, prepare
from consilia.detection.proposals import with_proposals
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.imaging.readers import read_dataset

TRIAL_STEPS = 12
GIVEN_REGIONS = ("r-cnn", "spp-net", "fast-rcnn")
LARGE = ("yolo",)
"""Left out unless it is named: a Darknet-53 takes seconds a step on a core."""


@dataclass(frozen=True)
class Row:
    """What one detector reached."""

    detector: str
    backbone: str
    parameters: int
    steps: int
    train_cpu_seconds: float
    test_cpu_seconds: float
    """The whole test set, regions not counted."""
    map50: float
    map: float
    cpm: float
    loss: float


@dataclass(frozen=True)
class Task:
    """The pictures, and how long and how everybody learns."""

    train: list[Example]
    test: list[Example]
    num_classes: int
    image_size: int
    recipe: Recipe
    seconds: float
    steps: int
    seed: int


def run_one(name: str, backbone: str, task: Task) -> Row:
    """Train and score one detector."""
    steps = task.steps or _steps_in(name, backbone, task)
    trainer = _trainer(name, backbone, task)
    began = time.process_time()
    losses = trainer.run(StepBudget(steps, 0, steps))
    trained = time.process_time()
    scored = evaluate(trainer.model, task.test)
    return Row(
        detector=name,
        backbone=backbone,
        parameters=sum(parameter.numel() for parameter in trainer.model.parameters()),
        steps=steps,
        train_cpu_seconds=round(trained - began, 1),
        test_cpu_seconds=round(time.process_time() - trained, 1),
        map50=round(scored.map50, 3),
        map=round(scored.map, 3),
        cpm=round(scored.cpm, 3),
        loss=round(sum(losses[-50:]) / len(losses[-50:]), 3),
    )


def _steps_in(name: str, backbone: str, task: Task) -> int:
    trial = _trainer(name, backbone, task)
    trial.run(StepBudget(2, 0, TRIAL_STEPS))  # the first steps also pay for the first allocations
    began = time.process_time()
    trial.run(StepBudget(TRIAL_STEPS, 2, TRIAL_STEPS))
    return max(1, round(task.seconds / (time.process_time() - began) * TRIAL_STEPS))


def _trainer(name: str, backbone: str, task: Task) -> Trainer:
    return Trainer(
        name, task.num_classes, task.image_size, task.recipe, task.train, task.seed, backbone=backbone
    )


def _parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="a folder with official splits")
    parser.add_argument("--detector", action="append", choices=DETECTORS, help="default: all but the large")
    parser.add_argument("--backbone", default="", choices=("", *BODIES), help="default: each one's own")
    parser.add_argument("--seconds", type=float, default=120, help="CPU seconds of training")
    parser.add_argument("--steps", type=int, default=0, help="so many steps instead")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--proposals", type=Path, help="where regions are kept between runs")
    parser.add_argument("--out", type=Path, help="the table as JSON")
    return parser.parse_args()


def main() -> None:
    """Run what the command line says."""
    asked = _parsed()
    torch.set_num_threads(1)
    dataset = read_dataset(asked.data)
    examples = {
        test: prepare(
            [image for image in dataset.images if (image.official_split == "test") is test], asked.image_size
        )[0]
        for test in (False, True)
    }
    names = asked.detector or [name for name in DETECTORS if name not in LARGE]
    task = Task(
        examples[False],
        examples[True],
        len(dataset.categories),
        asked.image_size,
        Recipe(learning_rate=asked.learning_rate, batch_size=asked.batch_size),
        asked.seconds,
        asked.steps,
        asked.seed,
    )
    print(f"{len(task.train)} pictures to learn from, {len(task.test)} to score on", file=sys.stderr)
    rows = []
    print("detector backbone parameters steps train-cpu-s test-cpu-s mAP@.5 mAP CPM loss")
    for name in names:
        if name in GIVEN_REGIONS and task.train[0].proposals_xyxy is None:
            began = time.process_time()
            task = replace(
                task,
                train=with_proposals(task.train, asked.proposals),
                test=with_proposals(task.test, asked.proposals),
            )
            print(f"selective search: {time.process_time() - began:.0f} CPU s", file=sys.stderr)
        rows.append(run_one(name, asked.backbone, task))
        print(*asdict(rows[-1]).values(), flush=True)
        if asked.out:
            asked.out.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
