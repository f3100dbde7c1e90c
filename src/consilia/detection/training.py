"""What a hospital repeats: load the global model, take some steps on its own pictures, hand it back."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from consilia.detection.placement import Placement
from consilia.detection.proposals import as_one, as_target, ready_for
from consilia.errors import DatasetError, SpecError

Target = dict[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


@dataclass(frozen=True)
class Recipe:
    """How a detector is trained; `roles.local_training.recipe_of` says what a TaskSpec sets."""

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
    proximal_mu: float = 0.0
    """FedProx: how hard a round's weights are pulled back to those that it began with."""
    ema_decay: float = 0.0
    """Of the moving average of a round's weights that takes their place at its end; 0 leaves the last ones."""


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
        *,
        placement: Placement | None = None,
        backbone: str = "",
        proposals: Path | None = None,
    ) -> None:
        if not examples:
            raise DatasetError(
                "expected at least one picture to train on, got none; see which were skipped and why"
            )
        self.recipe = recipe
        self.seed = seed
        self.placement = placement or Placement.here()
        if recipe.batch_size % self.placement.ranks:
            raise SpecError(
                f"training.batch_size: {recipe.batch_size} pictures cannot be shared out among "
                f"{self.placement.ranks} processes of torchrun; start as many as divide it"
            )
        model = build(
            detector_name, num_classes=num_classes, image_size=image_size, seed=seed, backbone=backbone
        )
        self.model = self.placement.put(model)
        self._parallel = self.placement.in_parallel(self.model)
        self.examples = ready_for(self.model, examples, proposals)
        self._order = BatchOrder(examples, recipe, seed)
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
        place, recipe = self.placement, self.recipe
        own = (place.rank,) if place.ranks > 1 else ()  # each rank draws for its own pictures
        rng = np.random.default_rng([self.seed, budget.first_step, *own])
        parameters = [weight for weight in self.model.parameters() if weight.requires_grad]
        start = [weight.detach().clone() for weight in parameters] if recipe.proximal_mu else []
        mean = WeightMean(parameters, recipe.ema_decay) if recipe.ema_decay else None
        losses = []
        with place.own_randomness():
            torch.manual_seed(int(rng.integers(2**63)))
            steps = range(budget.first_step, budget.first_step + budget.steps)
            for step, batch in zip(steps, self._batches(steps, rng), strict=True):
                rate = learning_rate(recipe, step, budget.total_steps)
                losses.append(self._step(batch, rate, parameters, start))
                if mean is not None:
                    mean.add(parameters)
        if mean is not None:
            mean.put_into(parameters)
        return losses

    def _step(self, batch: Batch, rate: float, parameters: list[nn.Parameter], start: list[Tensor]) -> float:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        with self.placement.precision():
            loss: Tensor = sum(self._parallel(*batch).values())
        loss.backward()  # type: ignore[no-untyped-call]
        for weight, before in zip(parameters, start, strict=False):  # none without FedProx
            if weight.grad is not None:
                weight.grad.add_(weight.detach() - before, alpha=self.recipe.proximal_mu)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        if not math.isfinite(norm.item()):
            return math.nan
        self.optimizer.step()
        return loss.item()

    def _batches(self, steps: Sequence[int], rng: np.random.Generator) -> Iterator[Batch]:
        """The batches of these steps, drawn in turn: by a thread some ahead of a GPU, else when asked for."""
        if not self.placement.ahead:
            for step in steps:
                yield self._batch(step, rng)
            return
        with ThreadPoolExecutor(1, "batches") as thread:
            waiting: deque[Future[Batch]] = deque()
            for step in steps:
                waiting.append(thread.submit(self._batch, step, rng))
                if len(waiting) > self.placement.ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _batch(self, step: int, rng: np.random.Generator) -> Batch:
        images, targets = [], []
        device = self.placement.device
        for index in self._order.indices(step)[self.placement.rank :: self.placement.ranks]:
            pixels, boxes, labels = augmented(as_one(self.examples[index]), self.recipe.augment, rng)
            images.append(as_input(pixels).to(device))
            target = as_target(boxes, labels)
            targets.append({name: tensor.to(device) for name, tensor in target.items()})
        return images, targets


class WeightMean:
    """The exponential moving average of weights over the steps of a round.

    It begins with the round's first weights, and early steps count for more (decay (1 + n) / (10 + n)): a round of
    few steps would otherwise hand back what it was given.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self.mean = [weight.detach().clone() for weight in parameters]
        self.decay, self.steps = decay, 0

    def add(self, parameters: Sequence[nn.Parameter]) -> None:
        """Take in the weights after one more step."""
        self.steps += 1
        kept = min(self.decay, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.mean, list(parameters), 1 - kept)

    def put_into(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the weights by their average."""
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), self.mean)


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """Linear warm-up, then a cosine down to `final_rate` (Loshchilov and Hutter 2017), over the whole task.

    One schedule for all rounds: a rate that started anew each round would undo what the average has settled.
    """
    progress = min(1.0, step / max(1, total_steps))
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    warm = min(1.0, (step + 1) / max(1, recipe.warmup_steps))
    return recipe.learning_rate * warm * (recipe.final_rate + (1 - recipe.final_rate) * cosine)


class BatchOrder:
    """Which examples a step sees.

    Pass after pass over all pictures with a lesion and a fresh draw of those without; each pass in an order
    of its own, by `seed` and the number of the pass, so that any step can be found without those before it.
    """

    def __init__(self, examples: Sequence[Example], recipe: Recipe, seed: int) -> None:
        self._positive = np.flatnonzero([len(example.labels) > 0 for example in examples])
        self._negative = np.flatnonzero([len(example.labels) == 0 for example in examples])
        if len(self._positive):
            wanted = round(len(self._positive) * recipe.negatives_per_positive)
            self._num_negative = min(len(self._negative), wanted)
        else:
            self._num_negative = len(self._negative)
        self._seed, self._batch_size = seed, recipe.batch_size
        self._last: tuple[int, npt.NDArray[np.int64]] = (-1, self._positive)

    def indices(self, step: int) -> list[int]:
        """The places of a step's examples in the list of all."""
        length = len(self._positive) + self._num_negative
        positions = range(step * self._batch_size, (step + 1) * self._batch_size)
        return [int(self._pass(position // length)[position % length]) for position in positions]

    def _pass(self, number: int) -> npt.NDArray[np.int64]:
        if self._last[0] != number:
            order = np.random.default_rng([self._seed, 1 + number])
            drawn = self._negative[:0]
            if self._num_negative:
                drawn = order.choice(self._negative, self._num_negative, replace=False)
            self._last = number, order.permutation(np.concatenate([self._positive, drawn]))
        return self._last[1]


def as_input(pixels: npt.NDArray[np.float32]) -> Tensor:
    """Pixels float32 (H, W) or (H, W, 3) in [0, 1] as the detector's (3, H, W); grey is not copied."""
    image = torch.from_numpy(np.ascontiguousarray(pixels))
    return image.expand(3, -1, -1) if image.ndim == 2 else image.permute(2, 0, 1)
