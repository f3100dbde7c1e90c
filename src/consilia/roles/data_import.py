"""A hospital imports from a folder or a PACS into its data folder, de-identified under a key that stays at home."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.annotation_files import has_annotations, masks_folder, parse_annotations
from consilia.imaging.annotations import AnnotationSet
from consilia.imaging.deidentification import KEY_BYTES, Pseudonymiser
from consilia.imaging.dicom_file import is_dicom
from consilia.imaging.holdings import Holdings
from consilia.imaging.importing import Importer, ImportSummary, find_picture
from consilia.imaging.raster import read_raster
from consilia.roles.progress import Report
from consilia.roles.state import State

_REPORT_EVERY = 200
_DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
"""A file that is called so and has not the mark is refused and counted, not passed over."""


@dataclass(frozen=True)
class Wishes:
    """How annotations are to be taken."""

    annotations: Path | None = None
    category: str = ""
    """For whatever reports and segmentations mark, in place of what their codes mean."""
    complete: bool = False
    """The annotations speak for every slice of a series that they touch."""


def pseudonymiser(home: Path) -> Pseudonymiser:
    """The hospital's own, with a key that is drawn once and kept in its state."""
    state = State(home / "state.sqlite")
    try:
        return Pseudonymiser(
            bytes.fromhex(state.remember_once("deidentification key", secrets.token_hex(KEY_BYTES)))
        )
    finally:
        state.close()


def import_folder(source: Path, importer: Importer, wishes: Wishes, report: Report) -> ImportSummary:
    """Import all DICOM below a folder, and the pictures that annotations name.

    Raises:
        DatasetError: nothing to import is there, or the annotations cannot be read.
    """
    annotations = wishes.annotations or (source if has_annotations(source) else None)
    files = [path for path in below(source) if is_dicom(path) or path.suffix.lower() in _DICOM_SUFFIXES]
    if not files and annotations is None:
        raise DatasetError("expected DICOM files or annotated pictures below the folder, there are none")
    for number, path in enumerate(files, start=1):
        importer.take(path, path.relative_to(source).as_posix())
        progress(importer, number, report)
    return finish(importer, wishes, annotations, source)


def finish(
    importer: Importer, wishes: Wishes, annotations: Path | None, pictures: Path | None = None
) -> ImportSummary:
    """Join the annotations to what came by, and write the report."""
    given: AnnotationSet | None = None
    if annotations is not None:
        given = parse_annotations(
            annotations, lambda stem: importer.size_of(stem) or _picture_size(pictures, stem)
        )
        if pictures is not None and masks_folder(annotations) == pictures:
            pictures = None  # a mask beside the slices is no picture of its own
    importer.annotate(given, pictures, complete=wishes.complete)
    return importer.finish()


def progress(importer: Importer, number: int, report: Report) -> None:
    """Say now and then how far it is; by numbers alone."""
    if number % _REPORT_EVERY == 0:
        report("importing", **dict(importer.summary.files))


def below(folder: Path) -> Iterator[Path]:
    """All files below a folder, in a fixed order; hidden ones are passed over, links out of it are not followed."""
    yield from sorted(
        path
        for path in folder.rglob("*")
        if not path.name.startswith(".") and path.is_file() and not path.is_symlink()
    )


def open_holdings(data: Path) -> Holdings:
    """The hospital's data folder, made where it is not there."""
    data.mkdir(parents=True, exist_ok=True)
    return Holdings(data)


def _picture_size(folder: Path | None, name: str) -> tuple[int, int] | None:
    try:
        path = find_picture(name, folder)
        if path is None:
            return None
        height, width = read_raster(path).shape[:2]
    except UnusableImageError:
        return None
    return width, height
