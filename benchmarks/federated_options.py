"""FedAvg beside FedProx, FedAvgM, FedAdam and FedBN on hospitals that differ, in one process on one core.

    OMP_NUM_THREADS=1 nice python benchmarks/federated_options.py DATA [--only fedavg fedbn] [--seeds 0 1]
        [--rounds 15] [--steps 8] [--image-size 160] [--workers 2] [--json FILE]

DATA is a folder with a hospitals.json, such as bccd. Every option starts from the same w_0 and takes the same steps;
trainers and aggregation are Consilia's own. Only ledger, keys and store are left out. The last table has each
option's mean over the seeds, and its difference from FedAvg with the interval that drawing the held-out patients
anew gives, in pairs.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean

import numpy as np
import torch

from consilia.detection import weights
from consilia.detection.bootstrap import RESAMPLES
from consilia.detection.evaluation import Spread, score
from consilia.detection.examples import Example, prepare
from consilia.detection.inference import predict
from consilia.detection.training import StepBudget, Trainer
from consilia.federation.aggregate import WeightedUpdate
from consilia.federation.rules import next_global_model
from consilia.imaging.cases import LabelledImage
from consilia.imaging.readers import read_dataset
from consilia.imaging.split import split_by_patient
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.training.local_training import recipe_of, write_initial_model
from consilia.roles.training.rounds import rule_of

OPTIONS = {
    "fedavg": "",
    "fedprox": "proximal_mu = 0.01",
    "fedavgm-.5": 'aggregation = "fedavgm"\nserver_momentum = 0.5',
    "fedavgm-.9": 'aggregation = "fedavgm"\nserver_momentum = 0.9',
    "fedadam-.003": 'aggregation = "fedadam"\nserver_learning_rate = 0.003',
    "fedadam-.01": 'aggregation = "fedadam"\nserver_learning_rate = 0.01',
    "fedadam-.001": 'aggregation = "fedadam"\nserver_learning_rate = 0.001',
    "fedbn": "local_norm = true",
    "ema": "ema_decay = 0.9",
}


@dataclass(frozen=True)
class Figures:
    """One option with one seed."""

    option: str
    seed: int
    map50: float
    map: float
    cpm: float
    worst_map50: float
    """Of the hospital whose held-out images fared worst."""
    cpu_seconds: float
    spread: Spread

    def record(self) -> dict[str, object]:
        """All but the resamples, for the JSON."""
        return {name: value for name, value in vars(self).items() if name != "spread"}


@dataclass(frozen=True)
class Data:
    """The examples of each hospital: to train on, and held out."""

    categories: tuple[str, ...]
    train: dict[str, list[Example]]
    held_out: dict[str, list[Example]]


def read(folder: Path, image_size: int) -> Data:
    """Read a data set, hold out what its authors did or a fifth of the patients, and keep its hospitals."""
    dataset = read_dataset(folder)
    names = sorted({image.hospital for image in dataset.images})
    parts, rest = split_by_patient(dataset, len(names), seed=0)
    own = [image for part in parts for image in part.images]

    def examples(images: Sequence[LabelledImage], hospital: str) -> list[Example]:
        return prepare([image for image in images if image.hospital == hospital], image_size)[0]

    return Data(
        dataset.categories,
        {name: examples(own, name) for name in names},
        {name: examples(rest.images, name) for name in names},
    )


def spec_of(option: str, data: Data, arguments: argparse.Namespace, seed: int) -> TaskSpec:
    """The TaskSpec of one run."""
    categories = ", ".join(f'"{name}"' for name in data.categories)
    return parse_toml(f"""title = "{option}"
[purpose]
object_of_learning = "findings"
application = "any"
[data]
format = "image"
categories = [{categories}]
[model]
detector = "{arguments.detector}"
image_size = {arguments.image_size}
seed = {seed}
[training]
rounds = {arguments.rounds}
batch_size = 1
{OPTIONS[option]}
""")


def federate(spec: TaskSpec, data: Data, steps: int, work: Path) -> tuple[Path, dict[str, Path]]:
    """Run all rounds; the last global model, and each hospital's own normalisation (FedBN)."""
    rule, recipe = rule_of(spec), recipe_of(spec)
    total = spec.training.rounds * steps
    trainers = {
        hospital: Trainer(
            spec.model.detector,
            len(data.categories),
            spec.model.image_size,
            recipe,
            examples,
            spec.model.seed * 100 + number,
        )
        for number, (hospital, examples) in enumerate(data.train.items())
    }
    own_norm = {hospital: work / f"norm-{hospital}" for hospital in trainers}
    model = work / "round-000.safetensors"
    write_initial_model(spec, model)
    for index in range(spec.training.rounds):
        updates = []
        for number, (hospital, trainer) in enumerate(trainers.items()):
            path = work / f"update-{number}"
            weights.load_with_own_norm(trainer.model, model, own_norm[hospital])
            trainer.run(StepBudget(steps, index * steps, total))
            own = weights.norm_tensors(trainer.model) if spec.training.local_norm else frozenset()
            weights.save(trainer.model, path, names=trainer.model.state_dict().keys() - own)
            if own:
                weights.save(trainer.model, own_norm[hospital], names=own)
            updates.append(WeightedUpdate(f"0x{number + 1:040x}", path, len(trainer.examples)))
        after = work / f"round-{index + 1:03d}.safetensors"
        next_global_model(rule, updates, model, after, first=index == 0)
        model = after
    return model, own_norm


def judge(spec: TaskSpec, data: Data, model: Path, own_norm: dict[str, Path], seconds: float) -> Figures:
    """Score on all held-out images, each hospital's with its own normalisation where it kept one."""
    findings, examples, worst = [], [], 1.0
    for number, (hospital, images) in enumerate(data.held_out.items()):
        detector = Trainer(
            spec.model.detector, len(data.categories), spec.model.image_size, recipe_of(spec), images, number
        ).model
        weights.load_with_own_norm(detector, model, own_norm[hospital])
        found = predict(detector, images)
        worst = min(worst, score(found, images).map50)
        findings += found
        examples += images
    total = score(findings, examples, resamples=RESAMPLES)
    assert total.spread is not None
    return Figures(
        spec.title, spec.model.seed, total.map50, total.map, total.cpm, worst, seconds, total.spread
    )


def run(arguments: argparse.Namespace, data: Data, job: tuple[int, str]) -> Figures:
    """One option with one seed."""
    torch.set_num_threads(1)
    seed, option = job
    spec = spec_of(option, data, arguments, seed)
    with tempfile.TemporaryDirectory(prefix="consilia-bench-") as work:
        began = time.process_time()
        model, own_norm = federate(spec, data, arguments.steps, Path(work))
        return judge(spec, data, model, own_norm, time.process_time() - began)


def summary(figures: Sequence[Figures]) -> Iterable[str]:
    """A row of each option: means over the seeds, and what they are ahead of FedAvg."""
    by_option: dict[str, list[Figures]] = {}
    for f in figures:
        by_option.setdefault(f.option, []).append(f)
    spreads = {option: over_seeds(runs) for option, runs in by_option.items()}
    for option, runs in by_option.items():
        low, high = min(f.map50 for f in runs), max(f.map50 for f in runs)
        cells = [f"{mean(f.map50 for f in runs):.3f} ({low:.3f} to {high:.3f})"]
        cells += [f"{mean(f.cpm for f in runs):.3f}", f"{mean(f.worst_map50 for f in runs):.3f}"]
        if option == "fedavg" or "fedavg" not in by_option:
            cells.append("")
        else:
            ahead = mean(f.map50 for f in runs) - mean(f.map50 for f in by_option["fedavg"])
            between = spreads[option].difference([spreads["fedavg"]], "map50")
            cells.append(f"{ahead:+.3f}" + (f" [{between.low:.3f}, {between.high:.3f}]" if between else ""))
        yield f"| {option} | {' | '.join(cells)} |"


def over_seeds(runs: Sequence[Figures]) -> Spread:
    """The mean over the seeds in each resample: all drew the same patients."""
    resampled = np.mean([f.spread.resampled for f in runs], axis=0)
    return Spread(runs[0].spread.num_patients, resampled)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the options in turn, print a line of the table each, and write the JSON as it grows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=8, help="of each hospital in a round")
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--detector", default="faster-rcnn")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time, a core each")
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args(arguments)
    data = read(options.data, options.image_size)
    counts = ", ".join(f"{h}: {len(own)} + {len(data.held_out[h])}" for h, own in data.train.items())
    print(f"images to train on + held out: {counts}")
    print(
        "| option | seed | mAP@.5 | mAP | CPM | worst hospital's mAP@.5 | CPU s |\n|---|---|---|---|---|---|---|"
    )
    figures: list[Figures] = []
    jobs = [(seed, option) for seed in options.seeds for option in options.only]
    with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as workers:
        for f in workers.map(partial(run, options, data), jobs):
            figures.append(f)
            cells = [f"{value:.3f}" for value in (f.map50, f.map, f.cpm, f.worst_map50)]
            print(f"| {f.option} | {f.seed} | {' | '.join(cells)} | {f.cpu_seconds:.0f} |", flush=True)
            if options.json is not None:
                options.json.write_text(json.dumps([f.record() for f in figures], indent=1) + "\n")
    print("| option | mAP@.5 (range over seeds) | CPM | worst hospital's mAP@.5 | mAP@.5 minus FedAvg's |")
    print("|---|---|---|---|---|", *summary(figures), sep="\n")


if __name__ == "__main__":
    main()
