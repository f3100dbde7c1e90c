"""All pictures of a folder, to find something on: annotated or not, if they are of the kind that the task is of."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.cases import Dataset, LabelledImage, Skipped
from consilia.imaging.dicom_file import is_dicom
from consilia.imaging.holdings import QUARANTINE
from consilia.imaging.raster import read_raster
from consilia.imaging.readers import ANNOTATIONS, RASTER_SUFFIXES, files_below, read_dataset, read_slices
from consilia.protocols.task_spec import TaskSpec
from consilia.roles.training.local_training import is_of_format, kind_of, other_kind, with_channels
from consilia.roles.training.windows import window_of

DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
WAITING = "expected a decision about it, it waits in quarantine: `consilia data check`"


def read_pictures(spec: TaskSpec, path: Path) -> Dataset:
    """All pictures in a folder, to find something on; DICOM in the task's HU windows and channels.

    Annotations only name them: also those that nobody has annotated are read. What waits in the quarantine of an
    import, and what is of another kind than the task's `data.format`, is left out by name; files that are no
    pictures are nothing.

    Raises:
        DatasetError: there is no usable picture.
    """
    is_ct = spec.data.format == "dicom"
    files = [file for file in files_below(path) if _may_be_picture(file, is_ct)]
    waiting = {file for file in files if _waits(file, path)}
    unlike = {file for file in files if _seems_dicom(file) != is_ct} - waiting
    listed = tuple(image for image in _annotated(spec, path) if image.path not in waiting)
    known = {image.path for image in listed}
    left_out = waiting | unlike
    found = _look_at(spec, path, [file for file in files if file not in left_out])
    images = (*listed, *(image for image in found.images if image.path not in known))
    skipped = (
        *(item for item in found.skipped if item.path not in known),
        *(Skipped(file.name, other_kind(spec), path=file) for file in sorted(unlike)),
        *(Skipped(file.name, WAITING, path=file) for file in sorted(waiting)),
    )
    if not images:
        first = f"; the first of {len(skipped)} that cannot be used: {skipped[0].reason}" if skipped else ""
        raise DatasetError(f"expected {kind_of(spec)} in the folder, found none{first}")
    return with_channels(spec, Dataset(path.name, tuple(spec.data.categories), images, skipped))


def _may_be_picture(file: Path, is_ct: bool) -> bool:
    ending = file.suffix.lower()
    if ending in RASTER_SUFFIXES | DICOM_SUFFIXES:
        return True
    by_number = not ending or ending[1:].isdigit()  # as a PACS names files, some without DICOM's mark
    return (is_ct and by_number) or is_dicom(file)


def _waits(file: Path, root: Path) -> bool:
    """Whether it lies as an import lays down what a person must decide about: in quarantine, a note beside it."""
    return QUARANTINE in file.relative_to(root).parts[:-1] and file.with_suffix(".json").is_file()


def _seems_dicom(file: Path) -> bool:
    return file.suffix.lower() not in RASTER_SUFFIXES or is_dicom(file)


def _annotated(spec: TaskSpec, path: Path) -> tuple[LabelledImage, ...]:
    """The pictures that annotations list: these may know a patient that no header does."""
    if not (path / ANNOTATIONS).is_file() and not (path / "Annotations").is_dir():
        return ()
    with suppress(DatasetError):  # an annotation that is wrong keeps nobody from looking at the picture
        return tuple(
            image for image in read_dataset(path, window=window_of(spec)).images if is_of_format(spec, image)
        )
    return ()


def _look_at(spec: TaskSpec, path: Path, files: Iterable[Path]) -> Dataset:
    if spec.data.format == "dicom":
        return read_slices(path, files, window=window_of(spec))
    images, skipped = [], []
    for file in files:
        try:
            images.append(_unlabelled(file, file.relative_to(path).as_posix()))
        except UnusableImageError as error:
            skipped.append(Skipped(file.name, str(error), path=file))
    return Dataset(path.name, (), tuple(images), tuple(skipped))


def _unlabelled(file: Path, name: str) -> LabelledImage:
    height, width = read_raster(file).shape[:2]
    no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
    return LabelledImage(name, name, name, width, height, no_boxes, no_labels, None, file)
