"""A model put to use: named by task or file, measured on pictures that no training of it saw, asked for findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from consilia.detection.examples import Example, prepare
from consilia.detection.inference import Prediction, load_detector, predict
from consilia.errors import DatasetError, InputError, SpecError
from consilia.imaging.cases import Dataset, LabelledImage, Skipped
from consilia.imaging.raster import read_raster
from consilia.imaging.readers import ANNOTATIONS, read_dataset, read_dicom
from consilia.imaging.split import check_no_leak, check_no_shared_pixels
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.artifacts import file_digest
from consilia.roles.local_training import own_norm_in, read_training_data, window_of, with_channels
from consilia.roles.models import NamedModel, open_model
from consilia.settings import DataSection

RASTERS = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class ModelName:
    """How a person names a model: a task in a home (and after how many rounds), or a file with its TaskSpec."""

    home: Path | None = None
    task: int | None = None
    rounds_done: int | None = None
    file: Path | None = None
    spec: Path | None = None


@contextmanager
def named_model(name: ModelName) -> Iterator[NamedModel]:
    """The model of this name, whole: with a hospital's own normalisation layers where the task leaves them there.

    Raises:
        InputError: the name is neither of the two kinds, there is no such task or round, or layers are not at hand.
        SpecError: the TaskSpec's file is none.
        VerificationError: the store's file is not the registered one, or this party holds no key to it.
    """
    if name.home is not None and name.file is None and name.spec is None:
        with open_model(name.home, 1 if name.task is None else name.task, name.rounds_done) as model:
            yield _whole(model, name.home)
        return
    if name.home is None and name.file is not None and name.spec is not None:
        yield _whole(NamedModel(name.file, file_digest(name.file), _read_spec(name.spec), None), None)
        return
    raise InputError("expected --home DIR --task N, or --model FILE --spec TASK.toml: one of the two")


def _whole(model: NamedModel, home: Path | None) -> NamedModel:
    """The model with the layers that this home has of it, if it needs any; the initial one has those that it needs."""
    own_norm = own_norm_in(home, model.spec) if home and model.spec.training.local_norm else None
    is_initial = model.registered is not None and model.registered.rounds_done == 0
    if own_norm is not None and own_norm.exists() and not is_initial:
        model = replace(model, own_norm=own_norm)
    model.require_whole()
    return model


def _read_spec(path: Path) -> TaskSpec:
    try:
        return parse_toml(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"expected a TaskSpec in {path.name}: {error}") from error


@dataclass(frozen=True)
class HeldOut:
    """Pictures to measure on, with what had to be left out."""

    dataset: Dataset
    examples: tuple[Example, ...]
    skipped: tuple[Skipped, ...]


def read_held_out(spec: TaskSpec, data: DataSection, trained_on: Sequence[DataSection]) -> HeldOut:
    """Labelled pictures for a model's evaluation, which share no patient and no picture with its training data.

    Args:
        spec: the model's task.
        data: where they lie.
        trained_on: what the model was trained on, as far as it is at hand.

    Raises:
        DatasetError: nothing is usable, the classes differ, or a patient or picture is on both sides.
    """
    dataset = read_training_data(spec, data)
    for other in trained_on:
        training = read_training_data(spec, other)
        sides = [
            Dataset("the training data", training.categories, training.images),
            Dataset("the held-out data", dataset.categories, dataset.images),
        ]
        check_no_leak(sides)
        check_no_shared_pixels(sides)
    examples, unusable = prepare(dataset.images, spec.model.image_size)
    if not examples:
        raise DatasetError(
            f"none of the images can be used: {unusable[0].reason if unusable else 'no image'}"
        )
    return HeldOut(dataset, tuple(examples), (*dataset.skipped, *unusable))


def find_on(model: NamedModel, held_out: HeldOut) -> list[Prediction]:
    """The model's findings on the held-out pictures.

    Raises:
        InputError: the model is not whole: a hospital's own layers belong to another one.
    """
    model.require_whole()
    return predict(load_detector(model.spec, model.path, model.own_norm).model, held_out.examples)


def matching(predictions: Sequence[Prediction], held_out: HeldOut) -> list[Prediction]:
    """Kept findings in the order of the pictures.

    Raises:
        DatasetError: a picture has none.
    """
    by_name = {found.image_id: found for found in predictions}
    missing = [example.image_id for example in held_out.examples if example.image_id not in by_name]
    if missing:
        raise DatasetError(f"expected findings on every picture, there are none on {len(missing)} of them")
    return [by_name[example.image_id] for example in held_out.examples]


def read_pictures(spec: TaskSpec, path: Path) -> Dataset:
    """Pictures to find something on, with or without annotations; DICOM in the task's HU windows and channels.

    Raises:
        DatasetError: there is no usable picture.
    """
    window = window_of(spec)
    if (path / ANNOTATIONS).is_file() or (path / "Annotations").is_dir():
        return with_channels(spec, read_dataset(path, window=window))
    if spec.data.format == "dicom":
        return with_channels(spec, read_dicom(path, window=window))
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in RASTERS)
    images = tuple(_unlabelled(file, file.relative_to(path).as_posix()) for file in files)
    if not images:
        raise DatasetError(f"expected PNG or JPEG images in {path.name}, found none")
    return Dataset(path.name, tuple(spec.data.categories), images)


def _unlabelled(file: Path, name: str) -> LabelledImage:
    height, width = read_raster(file).shape[:2]
    no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return LabelledImage(name, name, name, width, height, no_boxes, no_labels, None, file)
