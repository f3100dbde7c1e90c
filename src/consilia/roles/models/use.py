"""A model put to use: named by task or file, measured on pictures that no training of it saw, asked for findings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from consilia.detection.examples import Example, prepare
from consilia.detection.inference import Prediction, load_detector, predict
from consilia.detection.proposals import judges_proposals, with_proposals
from consilia.errors import DatasetError, InputError, SpecError
from consilia.imaging.cases import Dataset, Skipped
from consilia.imaging.split import check_no_leak, check_no_shared_pixels
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.artifacts import file_digest
from consilia.roles.models.catalogue import NamedModel, open_model
from consilia.roles.training.local_training import own_norm_in, read_training_data
from consilia.settings import HospitalSettings, load_party
from consilia.settings.sections import DataSection


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
    by_file = name.task is None and name.rounds_done is None
    if name.home is None and name.file is not None and name.spec is not None and by_file:
        yield _whole(NamedModel(name.file, file_digest(name.file), _read_spec(name.spec), None), None)
        return
    raise InputError(
        "expected --home DIR --task N --round T, or --model FILE --spec TASK.toml: one of the two"
    )


@dataclass(frozen=True)
class Other:
    """The second model of a comparison: a file, of the same TaskSpec or its own, or another round of the same task."""

    file: Path | None
    spec: Path | None
    rounds_done: int | None

    def check(self, first: ModelName) -> None:
        """Raise an InputError if this names no second model."""
        if (self.file is None) == (self.rounds_done is None) or (self.spec is not None and self.file is None):
            raise InputError(
                "expected --other FILE [--other-spec TASK.toml] or --other-round N: one of the two"
            )
        if self.rounds_done is not None and first.home is None:
            raise InputError(
                "expected --home with --other-round: a model that is named by its file has no rounds"
            )


@contextmanager
def other_model(name: ModelName, first: NamedModel, other: Other) -> Iterator[NamedModel]:
    """The second model of a comparison; raises what `named_model` does.

    Raises:
        InputError: it detects other classes than the first.
    """
    second: AbstractContextManager[NamedModel]
    if other.file is None:
        second = named_model(replace(name, rounds_done=other.rounds_done))
    elif other.spec is not None:
        second = named_model(ModelName(file=other.file, spec=other.spec))
    else:
        second = nullcontext(_whole(NamedModel(other.file, file_digest(other.file), first.spec, None), None))
    with second as model:
        if model.spec.data.categories != first.spec.data.categories:
            raise InputError("expected two detectors of the same classes, the second has others")
        yield model


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
    leak_checked: bool = False
    """Whether there was training data to compare them with."""
    proposals: Path | None = None

    @cached_property
    def with_regions(self) -> Sequence[Example]:
        """The examples with regions to judge, which are searched once for all models."""
        return with_proposals(self.examples, self.proposals)


def data_of(home: Path | None) -> DataSection | None:
    """What the hospital of a home trains on, with what it got from others; None for a server, and without a home.

    Raises:
        SettingsError: the home has no settings.
    """
    settings = load_party(home) if home is not None else None
    return settings.data if isinstance(settings, HospitalSettings) else None


def read_held_out(
    spec: TaskSpec, data: DataSection, trained_on: Sequence[DataSection], proposals: Path | None = None
) -> HeldOut:
    """Labelled pictures for a model's evaluation, which share no patient and no picture with its training data.

    Args:
        spec: the model's task.
        data: where they lie.
        trained_on: what the model was trained on, as far as it is at hand.
        proposals: where regions are kept, for the detectors that judge such.

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
    skipped = (*dataset.skipped, *unusable)
    return HeldOut(dataset, tuple(examples), skipped, bool(trained_on), proposals)


def find_on(model: NamedModel, held_out: HeldOut) -> list[Prediction]:
    """The model's findings on the held-out pictures.

    Raises:
        InputError: the model is not whole: a hospital's own layers belong to another one.
    """
    model.require_whole()
    detector = load_detector(model.spec, model.path, model.own_norm).model
    return predict(detector, held_out.with_regions if judges_proposals(detector) else held_out.examples)


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
