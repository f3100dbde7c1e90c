"""A hospital's trainer: its own images, read once, and the task's detector trained on them round after round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from consilia.detection import weights as weights_file
from consilia.detection.detectors import build
from consilia.detection.examples import prepare
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.errors import DatasetError
from consilia.imaging.cases import Dataset, Skipped, WindowHU
from consilia.imaging.readers import read_dataset
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import SkippedStudy
from consilia.roles.progress import Report
from consilia.settings import DataSection


class DetectorTrainer:
    """Trains the TaskSpec's detector on one hospital's data, on one core."""

    def __init__(self, spec: TaskSpec, data: DataSection, seed: int, report: Report) -> None:
        torch.set_num_threads(
            1
        )  # several hospitals share a machine; a second thread would win little and cost the others
        dataset = read_training_data(spec, data)
        examples, unusable = prepare(dataset.images, spec.model.image_size)
        skipped = [SkippedStudy(item.name, item.reason) for item in dataset.skipped]
        self.studies_skipped = (*skipped, *(SkippedStudy(item.name, item.reason) for item in unusable))
        self.studies_used = dataset.studies_used
        self.num_examples = len(examples)
        self._spec = spec
        recipe = recipe_of(spec)
        self._trainer = Trainer(
            spec.model.detector, len(spec.data.categories), spec.model.image_size, recipe, examples, seed
        )
        report(
            "data imported",
            images=self.num_examples,
            patients=len(dataset.patients()),
            lesions=sum(len(example.labels) for example in examples),
            studies_used=self.studies_used,
            skipped=[{"name": item.name, "reason": item.reason} for item in self.studies_skipped],
        )

    def train(self, weights: Path, round_index: int) -> tuple[float, int]:
        """Load the global model and take the round's steps; return their mean loss and number."""
        training = self._spec.training
        steps = training.local_steps(self.num_examples)
        weights_file.load_into(self._trainer.model, weights)
        losses = self._trainer.run(StepBudget(steps, round_index * steps, training.rounds * steps))
        finite = [loss for loss in losses if loss == loss and abs(loss) != float("inf")]
        return (sum(finite) / len(finite) if finite else -1.0), len(losses)

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the local weights as safetensors."""
        weights_file.save(self._trainer.model, path, metadata)


def write_initial_model(spec: TaskSpec, path: Path) -> None:
    """Write w_0: the spec's detector with the weights that its seed draws."""
    model = build(
        spec.model.detector,
        num_classes=len(spec.data.categories),
        image_size=spec.model.image_size,
        seed=spec.model.seed,
    )
    weights_file.save(model, path)


def recipe_of(spec: TaskSpec) -> Recipe:
    """The training recipe with what the TaskSpec sets."""
    return Recipe(learning_rate=spec.training.learning_rate, batch_size=spec.training.batch_size)


def read_training_data(spec: TaskSpec, data: DataSection) -> Dataset:
    """Read a hospital's data in the task's HU window, and check that its classes are the task's.

    Raises:
        DatasetError: nothing is usable, or the classes differ.
    """
    window = None
    if spec.data.window_center_hu is not None and spec.data.window_width_hu is not None:
        window = WindowHU(spec.data.window_center_hu, spec.data.window_width_hu)
    dataset = read_dataset(data.path, window=window)
    if tuple(dataset.categories) != tuple(spec.data.categories):
        raise DatasetError(
            f"the task's classes are {', '.join(spec.data.categories)}, the data has {', '.join(dataset.categories)}"
        )
    own = dataset if data.patients is None else dataset.subset(data.patients.read_text().split())
    return with_exchanged(own, data.exchanged, window)


def with_exchanged(own: Dataset, folder: Path, window: WindowHU | None) -> Dataset:
    """The hospital's own data and, after it, what it got from others; one with other classes is left out by name."""
    images, skipped = list(own.images), list(own.skipped)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not (path / "annotations.json").is_file():
            continue
        other = read_dataset(path, window=window)
        if other.categories != own.categories:
            reason = "expected the task's classes in an exchanged data set, it has others"
            skipped.append(Skipped(path.name, reason))
            continue
        # the same file name in two data sets is not the same image
        images += [replace(image, image_id=f"{path.name}/{image.image_id}") for image in other.images]
        skipped += other.skipped
    return replace(own, images=tuple(images), skipped=tuple(skipped))


def train_from_update(spec: TaskSpec, data: DataSection, update: Path, out: Path, report: Report) -> float:
    """Start this hospital's own model from an exchanged update: one round on its data. Returns the mean loss.

    Raises:
        WeightsError: the update is of another detector than the spec's, or not finite.
        DatasetError: there are no usable data.
    """
    trainer = DetectorTrainer(spec, data, spec.model.seed, report)
    loss, _ = trainer.train(update, 0)
    trainer.save(out, {})
    return loss
