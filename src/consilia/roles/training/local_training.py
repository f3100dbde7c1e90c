"""A hospital's trainer: its own images, read once, and the task's detector trained on them round after round.

Where normalisation stays local (FedBN) it lies in a file of the hospital's home, which no other file repeats.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from consilia.detection import weights as weights_file
from consilia.detection.augment import Augment
from consilia.detection.detectors import build
from consilia.detection.examples import prepare
from consilia.detection.pretrained import take
from consilia.detection.training import Recipe, StepBudget, Trainer
from consilia.errors import DatasetError, SpecError
from consilia.federation.tensors import LOCAL_KEY, local_names
from consilia.imaging.cases import Dataset, LabelledImage, Skipped, WindowHU, numbered
from consilia.imaging.channels import with_neighbours, with_windows
from consilia.imaging.readers import read_dataset
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import SkippedStudy
from consilia.roles.progress import Report, silent
from consilia.roles.training.windows import window_of
from consilia.settings.sections import DataSection


class DetectorTrainer:
    """Trains the TaskSpec's detector on one hospital's data, on a GPU if there is one, otherwise on one core.

    Args:
        seed: the hospital's own.
        own_norm: where its normalisation layers lie between rounds, if the task leaves them here.
    """

    def __init__(
        self, spec: TaskSpec, data: DataSection, seed: int, report: Report, own_norm: Path | None = None
    ) -> None:
        torch.set_num_threads(
            1
        )  # several hospitals share a machine; a second thread would win little and cost the others
        dataset = read_training_data(spec, data)
        examples, unusable = prepare(dataset.images, spec.model.image_size)
        left_out = numbered((*dataset.skipped, *unusable))  # names of files stay at home
        self.studies_skipped = tuple(SkippedStudy(item.name, item.reason) for item in left_out)
        self.studies_used = dataset.studies_used
        self.num_examples = len(examples)
        self._spec = spec
        self._own_norm = own_norm
        recipe = recipe_of(spec)
        self._trainer = Trainer(
            spec.model.detector,
            len(spec.data.categories),
            spec.model.image_size,
            recipe,
            examples,
            seed,
            backbone=spec.model.backbone,
            proposals=data.proposals,
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
        self._load(weights, round_index)
        losses = self._trainer.run(StepBudget(steps, round_index * steps, training.rounds * steps))
        finite = [loss for loss in losses if loss == loss and abs(loss) != float("inf")]
        return (sum(finite) / len(finite) if finite else -1.0), len(losses)

    def _load(self, weights: Path, round_index: int) -> None:
        model = self._trainer.model
        if not self._spec.training.local_norm:
            weights_file.load_into(model, weights)
            return
        # round 0 begins with the drawn layers: those on disk could be of an earlier task with the same spec
        weights_file.load_with_own_norm(model, weights, self._own_norm if round_index else None)

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the local weights as safetensors; normalisation that stays here into the hospital's own file."""
        model = self._trainer.model
        if not self._spec.training.local_norm:
            weights_file.save(model, path, metadata)
            return
        own = weights_file.norm_tensors(model)
        weights_file.save(model, path, metadata, model.state_dict().keys() - own)
        if self._own_norm is not None:
            self._own_norm.parent.mkdir(parents=True, exist_ok=True)
            weights_file.save(model, self._own_norm, names=own)


def own_norm_in(home: Path, spec: TaskSpec) -> Path:
    """Where a hospital's home has its own normalisation layers of a task, once it has trained in one of its rounds."""
    return home / "local-norm" / f"{str(spec.digest)[:16]}.safetensors"


def write_initial_model(
    spec: TaskSpec,
    path: Path,
    weights: Path | None = None,
    pretrained: bytes | None = None,
    report: Report = silent,
) -> None:
    """Write w_0: the spec's detector with the weights that its seed draws, or with those of a file.

    Args:
        weights: a whole model of this detector.
        pretrained: a safetensors file that has some of its tensors; the others are drawn.

    Raises:
        SpecError: normalisation should stay local, and the detector has none.
        WeightsError: the file is not of this detector.
    """
    model = detector_of(spec)
    if weights is not None:
        weights_file.load_into(model, weights)
    if pretrained is not None:
        what = take(model, pretrained)
        report("pretrained weights", taken=len(what.taken), drawn=len(what.missing) + len(what.other_shape))
    own = weights_file.norm_tensors(model) if spec.training.local_norm else frozenset()
    if spec.training.local_norm and not own:
        raise SpecError(
            f"training.local_norm: {spec.model.detector} has no normalisation layers that could stay local"
        )
    weights_file.save(model, path, {LOCAL_KEY: local_names(own)} if own else None)


def detector_of(spec: TaskSpec) -> nn.Module:
    """The spec's detector with the weights that its seed draws."""
    return build(
        spec.model.detector,
        num_classes=len(spec.data.categories),
        image_size=spec.model.image_size,
        seed=spec.model.seed,
        backbone=spec.model.backbone,
    )


def recipe_of(spec: TaskSpec) -> Recipe:
    """The training recipe with what the TaskSpec sets."""
    training = spec.training
    return Recipe(
        learning_rate=training.learning_rate,
        batch_size=training.batch_size,
        negatives_per_positive=training.negatives_per_positive,
        augment=_augment_of(spec),
        proximal_mu=training.proximal_mu,
        ema_decay=training.ema_decay,
    )


def _augment_of(spec: TaskSpec) -> Augment:
    if spec.training.augmentation == "none":
        return Augment(mirror=False, zoom=0, shift=0, gain=0, offset=0)
    windows_hu = spec.data.windows if spec.training.augmentation == "hu" else ()
    return Augment(mirror=not spec.data.laterality_matters, windows_hu=windows_hu)


def read_training_data(spec: TaskSpec, data: DataSection) -> Dataset:
    """Read a hospital's data in the task's HU window, and check that classes and kind are the task's.

    Raises:
        DatasetError: nothing is usable, the classes differ, or no picture is of the task's `data.format`.
    """
    window = window_of(spec)
    dataset = read_dataset(data.path, window=window)
    if tuple(dataset.categories) != tuple(spec.data.categories):
        raise DatasetError(
            f"the task's classes are {', '.join(spec.data.categories)}, the data has {', '.join(dataset.categories)}"
        )
    own = dataset if data.patients is None else dataset.subset(_patient_keys(data.patients))
    if own.images and not any(is_of_format(spec, image) for image in own.images):
        raise DatasetError(f"expected {kind_of(spec)}, all {len(own.images)} pictures are of the other kind")
    return with_channels(spec, _of_format(spec, with_exchanged(own, data.exchanged, window)))


KINDS = {"dicom": "CT in DICOM", "image": "PNG or JPEG"}
"""What a TaskSpec's `data.format` means."""


def kind_of(spec: TaskSpec) -> str:
    """The pictures that a task is of, in words."""
    return f"{KINDS[spec.data.format]} (the task's data.format is {spec.data.format!r})"


def is_of_format(spec: TaskSpec, image: LabelledImage) -> bool:
    """Whether an image is of the kind that a task is of: Hounsfield units, or 8 bits as they are."""
    return (image.window is not None) == (spec.data.format == "dicom")


def other_kind(spec: TaskSpec) -> str:
    """Why a picture of the other kind is left out."""
    return f"expected {kind_of(spec)}, this is the other kind"


def _of_format(spec: TaskSpec, dataset: Dataset) -> Dataset:
    """The images that are of the task's kind; the others are left out by name."""
    others = [image for image in dataset.images if not is_of_format(spec, image)]
    skipped = [Skipped(i.path.name, other_kind(spec), i.patient, i.study, i.path) for i in others]
    kept = tuple(image for image in dataset.images if is_of_format(spec, image))
    return replace(dataset, images=kept, skipped=(*dataset.skipped, *skipped))


def _patient_keys(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            f"expected patient keys, one a line, in {path.name}: `consilia data split` writes such files"
        ) from error


def with_channels(spec: TaskSpec, dataset: Dataset) -> Dataset:
    """The images with the three channels that a task asks for: three windows, or neighbouring slices.

    Raises:
        DatasetError: an image is no CT in DICOM.
    """
    if spec.data.windows_hu:
        return with_windows(dataset, [WindowHU(*window) for window in spec.data.windows_hu])
    return with_neighbours(dataset) if spec.data.neighbouring_slices else dataset


def with_exchanged(own: Dataset, folder: Path, window: WindowHU | None) -> Dataset:
    """The hospital's own data and, after it, what it got from others; one with other classes is left out by name."""
    images, skipped = list(own.images), list(own.skipped)
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.name.startswith(".") or not (path / "annotations.json").is_file():  # one that is being copied
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


def train_local_model(
    spec: TaskSpec, data: DataSection, start: Path, out: Path, round_index: int, report: Report
) -> float:
    """Train this hospital's own model for one round on its data. Returns the mean loss.

    Args:
        start: an exchanged update in round 0, and then what the round before wrote to `out`.

    Raises:
        WeightsError: the weights are of another detector than the spec's, or not finite.
        DatasetError: there are no usable data.
    """
    trainer = DetectorTrainer(spec, data, spec.model.seed, report)
    loss, _ = trainer.train(start, min(round_index, spec.training.rounds - 1))
    trainer.save(out, {})
    return loss
