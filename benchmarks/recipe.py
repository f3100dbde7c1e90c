"""Federated against pooled against local-only training in one process, without chain or encryption.

    python benchmarks/recipe.py ../shared/data/bccd --preset bccd

Prints one line a result, with the CPU seconds of its training, and the same as JSON. Every side takes the same
total number of steps: hospitals x rounds x local steps.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from consilia.detection.evaluation import evaluate
from consilia.detection.examples import Example, prepare
from consilia.detection.presets import PRESETS, Preset
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.imaging.readers import read_dataset
from consilia.imaging.split import split_by_patient

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Bench:
    """One data set over hospitals, and how it is trained."""

    preset: Preset
    hospitals: list[list[Example]]
    held_out: list[Example]
    num_classes: int
    seed: int

    @property
    def steps(self) -> int:
        return self.preset.rounds * self.preset.local_steps

    def trainer(self, examples: list[Example], index: int) -> Trainer:
        recipe = Recipe(learning_rate=self.preset.learning_rate, batch_size=self.preset.batch_size)
        preset = self.preset
        return Trainer(
            preset.detector, self.num_classes, preset.image_size, recipe, examples, self.seed + index
        )

    def initial(self) -> State:
        return _copy(self.trainer(self.hospitals[0], 0).model.state_dict())


def federated(bench: Bench) -> Iterator[tuple[str, torch.nn.Module, float]]:
    """FedAvg (McMahan et al. 2017, algorithm 1) with float64 sums; every second round is evaluated."""
    trainers = [bench.trainer(examples, i) for i, examples in enumerate(bench.hospitals)]
    total = sum(map(len, bench.hospitals))
    model, seconds = bench.initial(), 0.0
    for round_index in range(bench.preset.rounds):
        began = time.process_time()
        budget = StepBudget(bench.preset.local_steps, round_index * bench.preset.local_steps, bench.steps)
        sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in model.items()}
        for trainer in trainers:
            trainer.model.load_state_dict(model)
            trainer.run(budget)
            for name, tensor in trainer.model.state_dict().items():
                sums[name] += tensor.double() * (len(trainer.examples) / total)
        model = {name: tensor.float() for name, tensor in sums.items()}
        seconds += time.process_time() - began
        if round_index % 2 or round_index == bench.preset.rounds - 1:
            trainers[0].model.load_state_dict(model)
            yield f"federated round {round_index + 1}", trainers[0].model, seconds


def pooled(bench: Bench) -> Iterator[tuple[str, torch.nn.Module, float]]:
    """All pictures in one place, with all hospitals' steps together."""
    steps = len(bench.hospitals) * bench.steps
    everything = [example for examples in bench.hospitals for example in examples]
    yield "pooled", *_alone(bench, everything, steps, 0)


def local_only(bench: Bench) -> Iterator[tuple[str, torch.nn.Module, float]]:
    """Each hospital by itself, with its own steps."""
    for index, examples in enumerate(bench.hospitals):
        yield f"hospital {index + 1} alone", *_alone(bench, examples, bench.steps, index)


def _alone(bench: Bench, examples: list[Example], steps: int, index: int) -> tuple[torch.nn.Module, float]:
    trainer = bench.trainer(examples, index)
    trainer.model.load_state_dict(bench.initial())
    began = time.process_time()
    trainer.run(StepBudget(steps, 0, steps))
    return trainer.model, time.process_time() - began


def _copy(state: State) -> State:
    return {name: tensor.clone() for name, tensor in state.items()}


SIDES = {"federated": federated, "pooled": pooled, "local": local_only}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--preset", choices=sorted(PRESETS), required=True)
    parser.add_argument("--sides", nargs="+", choices=sorted(SIDES), default=sorted(SIDES))
    parser.add_argument("--hospitals", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    for field in ("image_size", "rounds", "local_steps", "batch_size"):
        parser.add_argument(f"--{field.replace('_', '-')}", type=int)
    parser.add_argument("--learning-rate", type=float)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    asked = {name: getattr(arguments, name, None) for name in Preset.__dataclass_fields__}
    preset = replace(PRESETS[arguments.preset], **{k: v for k, v in asked.items() if v is not None})
    dataset = read_dataset(arguments.data)
    parts, rest = split_by_patient(dataset, arguments.hospitals, arguments.seed)
    hospitals = [prepare(part.images, preset.image_size)[0] for part in parts]
    held_out = prepare(rest.images, preset.image_size)[0]
    bench = Bench(preset, hospitals, held_out, len(dataset.categories), arguments.seed)
    print(preset, f"hospitals {[len(h) for h in hospitals]}, held out {len(held_out)}", flush=True)
    for side in arguments.sides:
        for name, model, seconds in SIDES[side](bench):
            result = evaluate(model, held_out)
            row = {"name": name, "cpu_seconds": round(seconds, 1), **asdict(result)}
            print(
                f"{name:24} mAP@.5 {result.map50:.3f}  mAP {result.map:.3f}  CPM {result.cpm:.3f}"
                f"  {seconds:6.0f} CPU s",
                flush=True,
            )
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
