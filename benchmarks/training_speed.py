"""Images a second of Consilia's trainer beside a bare torchvision loop: same model, same batches, no augmentation.

    OMP_NUM_THREADS=1 nice python benchmarks/training_speed.py [--image-size 160] [--batch-size 4]

The bare loop gets its batches ready in memory and does nothing but forward, backward and AdamW. The trainer chooses,
augments and collates the same batches itself, clips gradients, sets the rate and looks for numbers that are not finite.
Both take turns in one process, so that whatever else the machine does slows both.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from rich.console import Console

from consilia.detection.examples import Example
from consilia.detection.training import Batch, Recipe, StepBudget, Trainer

GOAL = 0.95
"""Of the bare loop's images a second."""


@dataclass(frozen=True)
class Speed:
    """Seconds of both loops, turn by turn."""

    image_size: int
    images_a_turn: int
    device: str
    ours_cpu_seconds: tuple[float, ...]
    bare_cpu_seconds: tuple[float, ...]
    ours_seconds: tuple[float, ...]
    bare_seconds: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Our images a CPU second by those of the bare loop: the median turn."""
        pairs = zip(self.bare_cpu_seconds, self.ours_cpu_seconds, strict=True)
        return median(bare / ours for bare, ours in pairs)

    @property
    def wall_ratio(self) -> float:
        """The same by the clock; on a loaded machine it says little."""
        return median(bare / ours for bare, ours in zip(self.bare_seconds, self.ours_seconds, strict=True))


def pictures(count: int, size: int) -> list[Example]:
    """Noise with a bright rectangle; every second one is without."""
    rng = np.random.default_rng(0)
    examples = []
    for number in range(count):
        pixels = rng.integers(0, 60, (size, size), dtype=np.uint8)
        left, top = rng.integers(4, size // 2, 2)
        boxes = np.zeros((0, 4), np.float32)
        if number % 2:
            pixels[top : top + size // 4, left : left + size // 4] = 230
            boxes = np.array([[left, top, left + size // 4, top + size // 4]], np.float32)
        labels = np.ones(len(boxes), np.int64)
        examples.append(Example(f"picture-{number}", f"patient-{number}", pixels, boxes, labels, 1.0))
    return examples


def measure(
    image_size: int = 160, batch_size: int = 4, steps: int = 6, turns: int = 6, detector: str = "faster-rcnn"
) -> Speed:
    """Let both loops take turns; the first one of each warms up and does not count."""
    examples = pictures(64, image_size)
    recipe = Recipe(batch_size=batch_size)
    ours, bare = (Trainer(detector, 1, image_size, recipe, examples, seed=0) for _ in range(2))
    total = (turns + 1) * steps
    times: list[tuple[float, float, float, float]] = []
    for turn in range(turns + 1):
        budget = StepBudget(steps, turn * steps, total)
        # the very batches that the trainer will draw: what a loop has to compute depends on its boxes
        rng = np.random.default_rng([bare.seed, budget.first_step])
        seed = int(rng.integers(2**63))
        batches = [bare._batch(budget.first_step + step, rng) for step in range(steps)]
        a, b = _clocks(), ours.run(budget)
        c = _clocks()
        torch.manual_seed(seed)
        _bare_loop(bare, batches)
        d = _clocks()
        assert len(b) == steps
        times.append((c[0] - a[0], d[0] - c[0], c[1] - a[1], d[1] - c[1]))
    ours_cpu, bare_cpu, ours_wall, bare_wall = zip(*times[1:], strict=True)
    device = str(ours.placement.device)
    return Speed(image_size, batch_size * steps, device, ours_cpu, bare_cpu, ours_wall, bare_wall)


def _bare_loop(bare: Trainer, batches: list[Batch]) -> None:
    model, optimizer = bare.model, bare.optimizer
    model.train()
    for images, targets in batches:
        optimizer.zero_grad()
        with bare.placement.precision():
            loss = sum(model(images, targets).values())
        loss.backward()
        optimizer.step()
    if bare.placement.device.type == "cuda":
        torch.cuda.synchronize()


def _clocks() -> tuple[float, float]:
    return time.process_time(), time.perf_counter()


def print_report(console: Console, speed: Speed) -> None:
    """The figures in words."""
    ours, bare = (
        speed.images_a_turn / median(seconds) for seconds in (speed.ours_cpu_seconds, speed.bare_cpu_seconds)
    )
    console.print(
        f"Training at {speed.image_size} px on {speed.device}: {ours:.2f} images a CPU second, a bare torchvision loop "
        f"{bare:.2f}; ratio {speed.ratio:.3f} by CPU (goal {GOAL}), {speed.wall_ratio:.3f} by the clock"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--turns", type=int, default=6)
    parser.add_argument("--detector", default="faster-rcnn")
    options = parser.parse_args()
    torch.set_num_threads(1)
    speed = measure(options.image_size, options.batch_size, turns=options.turns, detector=options.detector)
    print_report(Console(width=160), speed)


if __name__ == "__main__":
    main()
