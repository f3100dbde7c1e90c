"""What single choices of the recipe are worth on a small set: one pooled detector each, all else alike, on one core.

    OMP_NUM_THREADS=1 nice python benchmarks/ablation.py DATA [--only standard none] [--steps 300] [--image-size 128]

Held out is what the data set's authors held out, or a fifth of the patients. Every run takes the same number of steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from consilia.detection.augment import Augment
from consilia.detection.evaluation import score
from consilia.detection.examples import prepare
from consilia.detection.inference import predict
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.imaging.cases import BRAIN, Dataset, WindowHU
from consilia.imaging.channels import with_neighbours, with_windows
from consilia.imaging.readers import read_dataset
from consilia.imaging.split import split_by_patient

STANDARD = Recipe()
UNCHANGED = Augment(mirror=False, zoom=0, shift=0, gain=0, offset=0)
RECIPES = {
    "standard": STANDARD,
    "no augmentation": replace(STANDARD, augment=UNCHANGED),
    "never mirrored": replace(STANDARD, augment=Augment(mirror=False)),
    "intensity in HU": replace(STANDARD, augment=Augment(windows_hu=((BRAIN.center_hu, BRAIN.width_hu),))),
    "no negatives": replace(STANDARD, negatives_per_positive=0.0),
    "3 negatives a positive": replace(STANDARD, negatives_per_positive=3.0),
    "EMA .998": replace(STANDARD, ema_decay=0.998),
}
WINDOWS = (BRAIN, WindowHU(80, 200), WindowHU(600, 2800))
"""Brain, blood beside the skull, bone."""
CHANNELS: dict[str, Callable[[Dataset], Dataset]] = {
    "three windows": lambda dataset: with_windows(dataset, WINDOWS),
    "2.5D": with_neighbours,
}
"""Only for CT in DICOM."""


@dataclass(frozen=True)
class Figures:
    """One variant."""

    variant: str
    map50: float
    map: float
    cpm: float
    cpu_seconds: float


def measure(variant: str, dataset: Dataset, options: argparse.Namespace) -> Figures:
    """Train on the pooled part and score on the held-out one."""
    recipe = RECIPES.get(variant, STANDARD)
    if variant in CHANNELS:
        dataset = CHANNELS[variant](dataset)
    parts, rest = split_by_patient(dataset, 1, seed=0)
    train, _ = prepare(parts[0].images, options.image_size)
    test, _ = prepare(rest.images, options.image_size)
    began = time.process_time()
    trainer = Trainer(
        options.detector, len(dataset.categories), options.image_size, recipe, train, options.seed
    )
    trainer.run(StepBudget(options.steps, 0, options.steps))
    seconds = time.process_time() - began
    found = score(predict(trainer.model, test), test)
    return Figures(variant, found.map50, found.map, found.cpm, seconds)


def main() -> None:
    """Measure the variants in turn, a line of the table each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*RECIPES, *CHANNELS], default=list(RECIPES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--detector", default="faster-rcnn")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dataset = read_dataset(options.data, window=BRAIN)
    print("| variant | mAP@.5 | mAP | CPM | CPU s |\n|---|---|---|---|---|", flush=True)
    figures = []
    for variant in options.only:
        f = measure(variant, dataset, options)
        print(f"| {variant} | {f.map50:.3f} | {f.map:.3f} | {f.cpm:.3f} | {f.cpu_seconds:.0f} |", flush=True)
        figures.append(asdict(f))
        if options.json is not None:
            options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
