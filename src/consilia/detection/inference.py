"""From pixels to findings: the one path that evaluation, prediction and diagnosis share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.examples import Example, prepare, resized
from consilia.detection.placement import CPU, Placement
from consilia.detection.proposals import find, ready_for
from consilia.detection.training import as_input
from consilia.imaging.cases import LabelledImage, Skipped
from consilia.protocols.task_spec import TaskSpec

BATCH_SIZE = 4
"""More at once is no faster on a core, and each picture's features are held until the batch is done."""


@dataclass(frozen=True)
class Prediction:
    """A detector's findings on one picture, best first.

    `boxes_xyxy` is float32 (n, 4) in pixels of the original picture, `scores` float32 (n,), `labels` int64
    (n,), from 1.
    """

    image_id: str
    boxes_xyxy: npt.NDArray[np.float32]
    scores: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]

    def above(self, score: float) -> Prediction:
        """The findings with at least this score."""
        kept = self.scores >= score
        return Prediction(self.image_id, self.boxes_xyxy[kept], self.scores[kept], self.labels[kept])


@dataclass(frozen=True)
class Detector:
    """A trained detector and what its input looks like; `load_detector` makes one."""

    model: nn.Module
    image_size: int
    categories: tuple[str, ...]

    def find(
        self, images: Sequence[LabelledImage], proposals: Path | None = None
    ) -> tuple[list[Prediction], list[Skipped]]:
        """The findings on each picture that can be read, in order, and those that cannot be read, by name.

        Args:
            proposals: where regions are kept, for the detectors that judge such.
        """
        predictions: list[Prediction] = []
        skipped: list[Skipped] = []
        for first in range(0, len(images), BATCH_SIZE):
            examples, unusable = prepare(images[first : first + BATCH_SIZE], self.image_size)
            predictions += predict(self.model, ready_for(self.model, examples, proposals))
            skipped += unusable
        return predictions, skipped

    def find_in(
        self, pictures: Sequence[npt.NDArray[np.uint8]], batch_size: int = BATCH_SIZE
    ) -> list[Prediction]:
        """The findings on pictures at hand: uint8 (H, W) or (H, W, 3), of any size, CT windowed as in training.

        Args:
            batch_size: so many pictures go through the detector at once.

        Raises:
            UnusableImageError: a picture has another type or shape.
        """
        examples = []
        for number, pixels in enumerate(pictures):
            fitted = resized(pixels, self.image_size)
            none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
            examples.append(Example(str(number), "", fitted, *none, (pixels.shape[1], pixels.shape[0])))
        return predict(self.model, examples, batch_size)


def load_detector(spec: TaskSpec, path: Path, own_norm: Path | None = None) -> Detector:
    """The detector of a TaskSpec with the weights in a file.

    Args:
        own_norm: a hospital's own normalisation layers, where the task leaves them with it (FedBN).

    Raises:
        WeightsError: the file is damaged, of another detector, or not finite.
        SpecError: no detector has the spec's name.
    """
    model = build(
        spec.model.detector,
        num_classes=len(spec.data.categories),
        image_size=spec.model.image_size,
        seed=spec.model.seed,
        backbone=spec.model.backbone,
    )
    if own_norm is None:
        weights.load_into(model, path)
    else:
        weights.load_with_own_norm(model, path, own_norm)
    model.to(Placement.here().device).eval()
    return Detector(model, spec.model.image_size, tuple(spec.data.categories))


def predict(model: nn.Module, examples: Sequence[Example], batch_size: int = BATCH_SIZE) -> list[Prediction]:
    """The findings of `model` on each picture, in the order of `examples`.

    Pictures of one shape go through it together: the black that evens out others would count in normalisation, and a
    picture's findings would depend on its neighbours.
    """
    model.eval()
    device = next((weight.device for weight in model.parameters()), CPU)
    predictions: dict[int, Prediction] = {}
    with torch.inference_mode():
        for numbers in _of_one_shape(examples, batch_size):
            batch = [examples[number] for number in numbers]
            images = [as_input(example.pixels.astype(np.float32) / np.float32(255)) for example in batch]
            found = find(model, [image.to(device) for image in images], batch)
            for number, example, result in zip(numbers, batch, found, strict=True):
                boxes, scores, labels = (result[name].cpu().numpy() for name in ("boxes", "scores", "labels"))
                predictions[number] = Prediction(example.image_id, example.in_original(boxes), scores, labels)
    return [predictions[number] for number in range(len(examples))]


def _of_one_shape(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """The places of the examples in batches, each of pictures of one shape."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for number, example in enumerate(examples):
        by_shape.setdefault(example.pixels.shape[:2], []).append(number)
    for numbers in by_shape.values():
        for first in range(0, len(numbers), batch_size):
            yield numbers[first : first + batch_size]
