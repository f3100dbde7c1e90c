"""What a hospital repeats: load the global model, take some steps on its own pictures, hand it back."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from consilia.detection import weights
from consilia.detection.augment import Augment, augmented
from consilia.detection.detectors import build
from consilia.detection.examples import Example
from consilia.errors import DatasetError

Target = dict[str, Tensor]


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained. A TaskSpec sets `learning_rate` and `batch_size`; the rest is fixed."""

    learning_rate: float = 1e-3
    """The highest, after the warm-up; AdamW's usual scale for a detector from scratch."""
    batch_size: int = 4
    weight_decay: float = 0.01
    warmup_steps: int = 30
    """Steps of the whole schedule over which the rate rises from 0: Adam's first moments are noise."""
    final_rate: float = 0.02
    """The last step's part of `learning_rate`; the cosine ends there."""
    clip_norm: float = 5.0
    """Longest gradient: a rare bad batch must not throw a hospital's model away from the others'."""
    negatives_per_positive: float = 1.0
    """Pictures without a lesion that are drawn per picture with one, anew in every pass."""
    augment: Augment = field(default_factory=Augment)


@dataclass(frozen=True)
class StepBudget:
    """Which part of the schedule to train: `steps` from `first_step` on, out of the task's `total_steps`."""

    steps: int
    first_step: int
    total_steps: int


@dataclass(frozen=True)
class TrainingMetrics:
    """What a round says of itself: `loss` is the mean over its steps; `skipped` steps were not finite."""

    loss: float
    steps: int
    num_examples: int
    seconds: float
    skipped: int


class Trainer:
    """Trains one detector on one hospital's examples, round after round.

    The detector and AdamW's moments stay in memory between rounds; the weights are replaced by the global
    model's each time. The moments are never written down: a trainer that crashed begins with fresh ones,
    which costs it a few slower steps and nobody else anything. All else (order of the pictures,
    augmentation, sampling of proposals) depends on the seed and the position in the schedule alone, so a
    resumed hospital sees the pictures that it would have seen.
    """

    def __init__(
        self,
        detector_name: str,
        num_classes: int,
        image_size: int,
        recipe: Recipe,
        examples: Sequence[Example],
        seed: int,
    ) -> None:
        if not examples:
            raise DatasetError(
                "expected at least one picture to train on, got none; see which were skipped and why"
            )
        self.recipe = recipe
        self.examples = examples
        self.seed = seed
        self.model = build(detector_name, num_classes=num_classes, image_size=image_size, seed=seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
        )

    def train(self, weights_path: Path, budget: StepBudget, out: Path) -> TrainingMetrics:
        """Load a global model, train it for `budget`, write the result as safetensors.

        Args:
            weights_path: the global model.
            budget: which part of the schedule.
            out: where the trained weights go.

        Raises:
            WeightsError: the global model does not fit the detector or is not finite.
        """
        began = time.perf_counter()
        weights.load_into(self.model, weights_path)
        losses = self.run(budget)
        weights.save(self.model, out)
        good = [loss for loss in losses if math.isfinite(loss)]
        return TrainingMetrics(
            loss=float(np.mean(good)) if good else math.nan,
            steps=len(losses),
            num_examples=len(self.examples),
            seconds=time.perf_counter() - began,
            skipped=len(losses) - len(good),
        )

    def run(self, budget: StepBudget) -> list[float]:
        """Take the steps of `budget` from the weights at hand; the loss of each, NaN where it was skipped."""
        self.model.train()
        rng = np.random.default_rng([self.seed, budget.first_step])
        losses = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**63)))
            for step in range(budget.first_step, budget.first_step + budget.steps):
                rate = learning_rate(self.recipe, step, budget.total_steps)
                losses.append(self._step(self._batch(step, rng), rate))
        return losses

    def _step(self, batch: tuple[list[Tensor], list[Target]], rate: float) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss: Tensor = sum(self.model(*batch).values())
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        if not math.isfinite(norm.item()):
            return math.nan
        self.optimizer.step()
        return loss.item()

    def _batch(self, step: int, rng: np.random.Generator) -> tuple[list[Tensor], list[Target]]:
        images, targets = [], []
        for index in batch_indices(self.examples, self.recipe, self.seed, step):
            pixels, boxes, labels = augmented(self.examples[index], self.recipe.augment, rng)
            images.append(as_input(pixels))
            targets.append({"boxes": torch.from_numpy(boxes), "labels": torch.from_numpy(labels)})
        return images, targets


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine down to `final_rate` (Loshchilov and Hutter 2017), over the whole task.

    One schedule for all rounds: a rate that started anew each round would undo what the average has settled.
    """
    progress = min(1.0, step / max(1, total_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    return recipe.learning_rate * warm * (recipe.final_rate + (1 - recipe.final_rate) * cosine)


def batch_indices(examples: Sequence[Example], recipe: Recipe, seed: int, step: int) -> list[int]:
    """Which examples step `step` sees.

    Pass after pass over all pictures with a lesion and a fresh draw of those without; each pass in an order
    of its own, by `seed` and the number of the pass, so that any step can be found without those before it.
    """
    positive = np.flatnonzero([len(example.labels) > 0 for example in examples])
    negative = np.flatnonzero([len(example.labels) == 0 for example in examples])
    if len(positive):
        num_negative = min(len(negative), round(len(positive) * recipe.negatives_per_positive))
    else:
        num_negative = len(negative)
    length = len(positive) + num_negative
    indices = []
    for position in range(step * recipe.batch_size, (step + 1) * recipe.batch_size):
        order = np.random.default_rng([seed, 1 + position // length])
        drawn = order.choice(negative, num_negative, replace=False) if num_negative else negative[:0]
        indices.append(int(order.permutation(np.concatenate([positive, drawn]))[position % length]))
    return indices


def as_input(pixels: npt.NDArray[np.float32]) -> Tensor:
    """Pixels float32 (H, W) or (H, W, 3) in [0, 1] as the detector's (3, H, W); grey is not copied."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))
    return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)
