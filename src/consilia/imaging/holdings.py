"""A hospital's folder of imported images: what is in it, what waits for a person, and how something gets in.

annotations.json                             COCO, for the images that annotations speak of
dicom/<patient>/<series>/<instance>.dcm      de-identified slices, by their new names
images/<name>.png                            pictures without metadata
quarantine/<instance>.dcm and .json          what may show text, and why; not read by training
import-report.json                           what the last import did
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from consilia.errors import DatasetError
from consilia.imaging.annotations import parse_coco
from consilia.imaging.burned_in import Box, blank
from consilia.imaging.coco_file import CocoEntry, drop_from_coco, merge_coco
from consilia.imaging.decoding import Frames
from consilia.imaging.dicom_file import parse, quiet_parser
from consilia.imaging.intake import CleanSlice, Place, write_slice

QUARANTINE, REPORT = "quarantine", "import-report.json"


class Standing(StrEnum):
    """Where a slice is."""

    ABSENT = "absent"
    HELD = "held"
    QUARANTINED = "quarantined"
    DISCARDED = "discarded"


class Quarantined(BaseModel):
    """Why a slice waits, and what belongs to it once it is released; no identifiers but new names."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    patient: str
    series_uid: str
    study_uid: str
    sop_instance_uid: str
    width: int
    height: int
    reasons: tuple[str, ...]
    boxes: tuple[Box, ...] = ()
    discarded: bool = False

    @property
    def place(self) -> Place:
        """The slice's new names."""
        return Place(self.patient, self.study_uid, self.series_uid, self.sop_instance_uid)


@dataclass(frozen=True)
class KeptSlice:
    """A slice in the folder, and its size in pixels."""

    place: Place
    width: int
    height: int


@dataclass(frozen=True)
class Holdings:
    """The folder; every change is whole or not there, so that a killed import goes on where it was."""

    root: Path

    def path_of(self, place: Place) -> Path:
        """Where a released slice lies."""
        return self.root / self.name_of(place)

    @staticmethod
    def name_of(place: Place) -> str:
        """The same, as annotations name it."""
        return f"dicom/{place.patient}/{place.series_uid}/{place.sop_instance_uid}.dcm"

    def standing(self, place: Place) -> Standing:
        """Whether a slice is here, and how."""
        if self.path_of(place).is_file():
            return Standing.HELD
        note = self._note(place.sop_instance_uid)
        if note.is_file():
            return Standing.DISCARDED if self._read(note).discarded else Standing.QUARANTINED
        return Standing.ABSENT

    def find(self, series_uid: str, sop_instance_uid: str) -> KeptSlice | None:
        """A slice by its new names where the patient is not known, released, waiting or discarded."""
        noted = self.noted(sop_instance_uid)
        if noted is not None:
            return noted
        for path in (self.root / "dicom").glob(f"*/{series_uid}/{sop_instance_uid}.dcm"):
            return kept_slice(path)
        return None

    def noted(self, sop_instance_uid: str) -> KeptSlice | None:
        """A slice by its new name that waits or was discarded."""
        note = self._note(sop_instance_uid)
        if not note.is_file():
            return None
        found = self._read(note)
        return KeptSlice(found.place, found.width, found.height)

    def paths(self) -> dict[str, Path | None]:
        """Where released slices lie, by new name alone; None where two patients' slices have it."""
        found: dict[str, Path | None] = {}
        for path in (self.root / "dicom").glob("*/*/*.dcm"):
            found[path.stem] = None if path.stem in found else path
        return found

    def slices_in(self, series: Iterable[str]) -> Iterator[KeptSlice]:
        """The released slices of series by their folders' names, such as `dicom/<patient>/<series>`."""
        for name in sorted(series):
            for path in sorted((self.root / name).glob("*.dcm")):
                yield kept_slice(path)

    def slices(self) -> Iterator[KeptSlice]:
        """All released slices, patient by patient and series by series."""
        for path in sorted((self.root / "dicom").glob("*/*/*.dcm")):
            yield kept_slice(path)

    def add(self, item: CleanSlice) -> Standing:
        """Take a slice in: among the others, or into quarantine where there is a suspicion."""
        if not item.suspicion:
            write_whole(self.path_of(item.place), item.data)
            return Standing.HELD
        place = item.place
        note = Quarantined(
            patient=place.patient,
            series_uid=place.series_uid,
            study_uid=place.study_uid,
            sop_instance_uid=place.sop_instance_uid,
            width=item.width,
            height=item.height,
            reasons=item.suspicion.reasons,
            boxes=item.suspicion.boxes,
        )
        write_whole(self._image(place.sop_instance_uid), item.data)
        write_whole(self._note(place.sop_instance_uid), note.model_dump_json().encode())
        return Standing.QUARANTINED

    def quarantined(self) -> Iterator[Quarantined]:
        """What waits for a person."""
        for note in sorted((self.root / QUARANTINE).glob("*.json")):
            found = self._read(note)
            if not found.discarded:
                yield found

    def quarantine_image(self, item: Quarantined) -> Path:
        """The file of a slice that waits."""
        return self._image(item.sop_instance_uid)

    def release(self, item: Quarantined, *, blanked: bool) -> None:
        """A person saw the slice: let it in as it is, or with the suspected places blanked (Clean Pixel Data).

        Raises:
            DatasetError: to be blanked, but nobody knows where.
        """
        source = self._image(item.sop_instance_uid)
        if blanked:
            if not item.boxes:
                raise DatasetError(
                    "expected places to blank, the suspicion names none: release or discard it"
                )
            with quiet_parser():
                header = parse(source)
                data = write_slice(header, blank(Frames(header).stored(0), item.boxes))
        else:
            data = source.read_bytes()
        write_whole(self.path_of(item.place), data)
        self._note(item.sop_instance_uid).unlink()
        source.unlink()

    def discard(self, item: Quarantined) -> None:
        """A person saw the slice: it goes, and no later import brings it back."""
        note = item.model_copy(update={"discarded": True})
        write_whole(self._note(item.sop_instance_uid), note.model_dump_json().encode())
        self._image(item.sop_instance_uid).unlink(missing_ok=True)
        drop_from_coco(self.root / "annotations.json", self.name_of(item.place))

    def annotated(self) -> set[str]:
        """The names of the images that annotations speak of."""
        path = self.root / "annotations.json"
        return {image.name for image in parse_coco(path).images} if path.is_file() else set()

    def annotate(self, categories: tuple[str, ...], entries: list[CocoEntry]) -> None:
        """Merge what annotations say into `annotations.json`; an image that is named again gets the new boxes."""
        merge_coco(self.root / "annotations.json", categories, entries)

    def _image(self, uid: str) -> Path:
        return self.root / QUARANTINE / f"{uid}.dcm"

    def _note(self, uid: str) -> Path:
        return self.root / QUARANTINE / f"{uid}.json"

    @staticmethod
    def _read(note: Path) -> Quarantined:
        try:
            return Quarantined.model_validate_json(note.read_bytes())
        except (ValidationError, OSError):
            raise DatasetError(
                f"expected a note of the quarantine in {note.name}, it is damaged: delete it"
            ) from None


def kept_slice(path: Path) -> KeptSlice:
    """The new names and the size of a slice that an import wrote.

    Raises:
        UnusableImageError: it is not such a file any more.
    """
    with quiet_parser():
        header = parse(path, pixels=False)
        place = Place(
            str(header.PatientID),
            str(header.StudyInstanceUID),
            str(header.SeriesInstanceUID),
            str(header.SOPInstanceUID),
        )
        return KeptSlice(place, int(header.Columns), int(header.Rows))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file that has its name only when it is whole and on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
