"""The models that a server answers for, out of its settings; torch is imported when the first query comes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consilia.errors import SettingsError, UnusableImageError
from consilia.protocols.consultation import OfferCard
from consilia.protocols.diagnosis import ImageFormat
from consilia.protocols.findings import MAX_FINDINGS, Finding
from consilia.protocols.task_spec import TaskSpec, parse_toml
from consilia.roles.artifacts import file_digest
from consilia.roles.diagnosis.answering import Diagnoser, OfferedModel, model_file
from consilia.roles.state import State
from consilia.roles.training.task_log import TaskLog
from consilia.settings.sections import OfferSection

if TYPE_CHECKING:
    from consilia.detection.inference import Detector, Prediction


BATCH_PIXELS = 64 * 512 * 512
"""A query goes through the detector as one batch up to this size, 64 images of 512 pixels; a larger one would take
more memory than servers have, and is split evenly."""


class DetectorDiagnoser:
    """A trained detector as a server's model: the best eight findings above a score, in whole pixels."""

    def __init__(self, detector: Detector, codes: Sequence[int], score_threshold: float) -> None:
        self._detector = detector
        self._codes = tuple(codes)
        self._score_threshold = score_threshold
        self.image_format = ImageFormat(detector.image_size, detector.image_size)

    def diagnose(self, images: Sequence[bytes]) -> list[tuple[Finding, ...]]:
        """All images in one batch, where they are no more than BATCH_PIXELS.

        Raises:
            UnusableImageError: one of them has another size.
        """
        shape = (self.image_format.height, self.image_format.width)
        if any(len(image) != self.image_format.image_bytes for image in images):
            raise UnusableImageError(
                f"expected images of {shape[0]} x {shape[1]} bytes, one has another size"
            )
        pictures = [np.frombuffer(image, np.uint8).reshape(shape) for image in images]
        batches = -(-len(images) * self.image_format.image_bytes // BATCH_PIXELS)
        found = self._detector.find_in(pictures, batch_size=-(-len(images) // max(1, batches)))
        return [self._findings(item.above(self._score_threshold)) for item in found]

    def _findings(self, prediction: Prediction) -> tuple[Finding, ...]:
        """Boxes outwards to whole pixels: what shrinks to nothing would be no box."""
        low = np.floor(np.clip(prediction.boxes_xyxy, 0, None)[:, :2]).astype(int)
        limits = (self.image_format.width, self.image_format.height)
        high = np.minimum(np.ceil(prediction.boxes_xyxy[:, 2:]).astype(int), limits)
        rows = zip(low, high, prediction.labels, prediction.scores, strict=True)
        found = [
            Finding(self._codes[int(label) - 1], (int(a[0]), int(a[1]), int(b[0]), int(b[1])), float(score))
            for a, b, label, score in rows
            if b[0] > a[0] and b[1] > a[1]
        ]
        return tuple(sorted(found, key=lambda item: -item.score)[:MAX_FINDINGS])


def offered_models(
    offers: Sequence[OfferSection],
    home: Path,
    state: State,
    tasks: Mapping[int, TaskLog],
    awaiting: bool = False,
) -> list[OfferedModel]:
    """The models of a server's settings; `awaiting` passes over those of tasks that have not ended.

    Raises:
        SettingsError: a task that this server has not run to its end, or a file that is not there.
        SpecError: the TaskSpec beside a model file is none.
    """
    found = []
    for offer in offers:
        try:
            found.append(_offered(offer, home, state, tasks))
        except SettingsError:
            if not awaiting or offer.task is None:
                raise
    return found


def task_id_of(number: int, tasks: Mapping[int, TaskLog]) -> int | None:
    """The task of a number in the settings, the n-th of the ledger or its id; None: the ledger does not tell of it."""
    ordered = sorted(tasks, key=lambda task_id: tasks[task_id].published.block_number)
    found = ordered[number - 1] if number <= len(ordered) else number
    return found if found in tasks else None


def _offered(offer: OfferSection, home: Path, state: State, tasks: Mapping[int, TaskLog]) -> OfferedModel:
    spec, path = _model_of(offer, home, state, tasks)
    _check_served_alike(spec, offer)
    if not path.exists():
        raise SettingsError(f"diagnosis.offers: expected the weights in {path.name}, there is no such file")
    size = spec.model.image_size
    card = OfferCard(offer.title or spec.title, ImageFormat(size, size), spec.purpose.application)

    def load() -> Diagnoser:
        from consilia.detection.inference import load_detector

        codes = [spec.code_book.code_of(category) for category in spec.data.categories]
        return DetectorDiagnoser(load_detector(spec, path), codes, offer.score_threshold)

    digest = file_digest(path)
    return OfferedModel(digest, spec.code_book.digest, card, offer.price_wei, offer.bond_wei, load)


def _check_served_alike(spec: TaskSpec, offer: OfferSection) -> None:
    """Queries hold grey squares: what the model learnt to see otherwise it would answer worse than it was measured.

    Raises:
        SettingsError: colour, several channels, or normalisation layers that are at the hospitals.
    """
    if spec.data.windows_hu or spec.data.neighbouring_slices:
        raise SettingsError(
            "diagnosis.offers: expected a model of one grey channel; queries hold nothing else"
        )
    if spec.data.format == "image" and not offer.grey:
        raise SettingsError(
            "diagnosis.offers: expected a model of grey pictures, data.format 'image' may be colour, which queries "
            "do not hold; if all that it was trained and measured on is grey, say grey = true"
        )
    if spec.training.local_norm:
        raise SettingsError(
            "diagnosis.offers: expected a whole model; with training.local_norm its normalisation layers "
            "are at the hospitals, and without them it finds nothing"
        )


def _model_of(
    offer: OfferSection, home: Path, state: State, tasks: Mapping[int, TaskLog]
) -> tuple[TaskSpec, Path]:
    if offer.task is None:
        assert offer.model is not None and offer.spec is not None, "checked in the settings"
        try:
            return parse_toml((home / offer.spec).read_bytes()), home / offer.model
        except OSError as error:
            raise SettingsError(
                f"diagnosis.offers: expected a TaskSpec in {offer.spec}; {error.strerror}"
            ) from error
    task_id = task_id_of(offer.task, tasks)
    folder = state.fact(f"models/{task_id}")
    if folder is None or task_id is None:
        raise SettingsError(f"diagnosis.offers: expected a task that this server has run, got {offer.task}")
    return tasks[task_id].spec, model_file(home, folder, tasks[task_id].published.rounds)
