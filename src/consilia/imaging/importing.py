"""Files come in one by one, from wherever; what can be used is de-identified and kept, boxes find their image.

Original names and identifiers stay in this process's memory: what is written and reported has new names and counts.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from pydantic import BaseModel, ValidationError

from consilia.errors import UnusableImageError
from consilia.imaging.annotation_objects import (
    REPORTS,
    SEGMENTATION,
    ObjectBoxes,
    by_image,
    object_class,
    read_object,
)
from consilia.imaging.annotations import AnnotatedImage, AnnotationSet, annotated, check_name
from consilia.imaging.coco_file import CocoEntry
from consilia.imaging.deidentification import Pseudonymiser
from consilia.imaging.holdings import REPORT, Holdings, KeptSlice, Standing, kept_slice, write_whole
from consilia.imaging.intake import Place, clean_slices, frame_name, identify
from consilia.imaging.raster import read_raster

RASTER_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


_FRAME_NAME = re.compile(r"[0-9]+(\.[0-9]+)*(#[0-9]+)?")
"""An original SOPInstanceUID, and a frame where it has several."""
_TWICE = "expected one entry an image, another entry is of the same image"


class Outcome(StrEnum):
    """What became of one file."""

    HELD = "imported"
    KNOWN = "known"
    QUARANTINED = "quarantined"
    DISCARDED = "discarded"
    ANNOTATION = "annotation"
    REFUSED = "refused"


class _Earlier(BaseModel):
    removed_attributes: dict[str, int] = {}


@dataclass
class ImportSummary:
    """What an import did; numbers, names of attributes and reasons, nothing of anybody."""

    files: Counter[str] = field(default_factory=Counter)
    """By outcome."""
    slices: Counter[str] = field(default_factory=Counter)
    """Frames by where they are now."""
    refused: Counter[str] = field(default_factory=Counter)
    """Reason and number of files."""
    quarantined: Counter[str] = field(default_factory=Counter)
    annotated_images: int = 0
    boxes: int = 0
    annotations_left_out: Counter[str] = field(default_factory=Counter)
    not_delivered: int = 0
    """Instances that a PACS has and did not send."""
    removed_attributes: Counter[str] = field(default_factory=Counter)

    def with_earlier(self, path: Path) -> ImportSummary:
        """With what earlier imports removed, as their report says; a damaged report adds nothing."""
        try:
            earlier = _Earlier.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return self
        return replace(self, removed_attributes=self.removed_attributes + Counter(earlier.removed_attributes))

    def to_bytes(self) -> bytes:
        """As JSON, the most frequent first."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        plain = {
            name: dict(value.most_common()) if isinstance(value, Counter) else value
            for name, value in values.items()
        }
        return json.dumps(plain, indent=1, ensure_ascii=False).encode() + b"\n"


class Importer:
    """Takes files into a hospital's folder; called again with the same files it changes nothing."""

    def __init__(self, holdings: Holdings, pseudonyms: Pseudonymiser, category: str = "") -> None:
        self.holdings = holdings
        self.summary = ImportSummary()
        self._pseudonyms = pseudonyms
        self._category = category
        self._known: dict[str, KeptSlice | None] = {}
        self._objects: list[ObjectBoxes] = []
        self._contents: dict[str, bytes] = {}

    def take(self, path: Path, name: str = "") -> Outcome:
        """Take one DICOM file in.

        Args:
            name: what annotations may call it besides its SOPInstanceUID: a path below the source.
        """
        try:
            kind = object_class(path)
            if kind in REPORTS or kind == SEGMENTATION:
                found = read_object(path, self._category)
                self._objects.append(found)
                self.summary.annotations_left_out.update(found.left_out)
                outcome = Outcome.ANNOTATION
            else:
                outcome = self._take_image(path, name)
        except UnusableImageError as error:
            return self.refuse(str(error))
        self.summary.files[outcome] += 1
        return outcome

    def refuse(self, reason: str) -> Outcome:
        """Count what cannot be taken in, also what is not worth a file."""
        self.summary.refused[reason] += 1
        self.summary.files[Outcome.REFUSED] += 1
        return Outcome.REFUSED

    def recognise(self, series_uid: str, sop_instance_uid: str) -> bool:
        """Whether an image of one frame, by its original names, is here and need not be fetched; count it if so."""
        series, name = self._pseudonyms.uid(series_uid), self._pseudonyms.uid(sop_instance_uid)
        found = self.holdings.find(series, name)
        if found is None:
            return False
        self._remember(sop_instance_uid, KeptSlice(found.place, found.width, found.height))
        self.summary.files[Outcome.KNOWN] += 1
        self.summary.slices[self.holdings.standing(found.place)] += 1
        return True

    def _take_image(self, path: Path, name: str) -> Outcome:
        source = identify(path, self._pseudonyms)
        self._check_once(path, source.sop_instance_uid)
        for index, place in enumerate(source.places):
            known = KeptSlice(place, source.width, source.height)
            self._remember(frame_name(source.sop_instance_uid, index, source.frames), known)
            if name and source.frames == 1:
                for alias in dict.fromkeys((name, PurePosixPath(name).name, PurePosixPath(name).stem)):
                    self._remember(alias, known)
        standings = [self.holdings.standing(place) for place in source.places]
        if Standing.ABSENT not in standings:
            self.summary.slices.update(standings)
            only = set(standings)
            return Outcome.DISCARDED if only == {Standing.DISCARDED} else Outcome.KNOWN
        return self._clean(path, standings)

    def _check_once(self, path: Path, sop_instance_uid: str) -> None:
        """Refuse a second file of an import that has the name of another image: nobody knows which it is."""
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if self._contents.setdefault(sop_instance_uid, digest) != digest:
            raise UnusableImageError(
                "expected every SOPInstanceUID (0008,0018) once, another file of this import has it with other content"
            )

    def _clean(self, path: Path, standings: list[Standing]) -> Outcome:
        """De-identify all frames before the first is kept: a file is taken whole or refused."""
        items = list(clean_slices(path, self._pseudonyms))
        for item, before in zip(items, standings, strict=True):
            after = self.holdings.add(item) if before is Standing.ABSENT else before
            self.summary.slices[after] += 1
            if after is Standing.QUARANTINED:
                self.summary.quarantined.update(item.suspicion.reasons)
            self.summary.removed_attributes += item.removed
        waits = any(item.suspicion for item in items)
        return Outcome.QUARANTINED if waits else Outcome.HELD

    def _remember(self, name: str, known: KeptSlice) -> None:
        """Under a name that two files share, nobody can be found."""
        before = self._known.get(name, known)
        self._known[name] = known if before == known else None

    def size_of(self, name: str) -> tuple[int, int] | None:
        """Width and height of a slice by a name that annotations may use."""
        known = self._find(name)
        return None if known is None else (known.width, known.height)

    def _find(self, name: str) -> KeptSlice | None:
        """A slice that came by, or, by its original SOPInstanceUID, one that an earlier import took in."""
        last = PurePosixPath(name).name
        found = self._known.get(name) or self._known.get(last)
        if found is not None or name in self._known or last in self._known:
            return found
        uid = last.removesuffix(".dcm")
        if not _FRAME_NAME.fullmatch(uid):
            return None
        new = self._pseudonyms.uid(uid)
        path = self._paths.get(new)
        return self.holdings.noted(new) or (kept_slice(path) if path is not None else None)

    @cached_property
    def _paths(self) -> dict[str, Path | None]:
        """What is held when the first annotation names a slice that did not come by: one walk for all."""
        return self.holdings.paths()

    def annotate(self, given: AnnotationSet | None, pictures: Path | None, *, complete: bool) -> None:
        """Write the boxes to the images that came by: of DICOM objects, and of the given annotations.

        Args:
            pictures: the folder where PNG or JPEG files lie that the annotations name.
            complete: the annotations speak for every slice of a series that they touch.
        """
        objects = self._from_objects()
        for source in (objects, given):
            if source is None:
                continue
            entries = self._entries(source, pictures)
            if not entries:
                continue
            if complete:
                entries += self._rest_of_series(entries)
            self.holdings.annotate(source.categories, entries)
            self.summary.annotated_images += len(entries)
            self.summary.boxes += sum(len(entry.labels) for entry in entries)

    def finish(self) -> ImportSummary:
        """Write the report, where what was removed adds up over imports; the summary is of this import alone."""
        path = self.holdings.root / REPORT
        write_whole(path, self.summary.with_earlier(path).to_bytes())
        return self.summary

    def _from_objects(self) -> AnnotationSet | None:
        names = sorted({name for item in self._objects for _, _, name, _ in item.boxes})
        if self._objects and self._category:
            names = [self._category]  # also where all images are free of it
        if not names:
            return None
        images = by_image(self._objects, tuple(names))
        sizes = {image: item.size for item in self._objects if item.size for image in item.images}
        entries = []
        for (uid, frame), boxes in images.items():
            many = f"{uid}#{frame}"
            width, height = sizes.get((uid, frame), (None, None))
            name = many if self._find(many) is not None else uid
            entries.append(annotated(name, boxes, width=width, height=height))
        return AnnotationSet(tuple(names), tuple(entries))

    def _entries(self, source: AnnotationSet, pictures: Path | None) -> list[CocoEntry]:
        """Of two entries that mean the same image, under whatever names, the first counts."""
        entries: dict[str, CocoEntry] = {}
        for image in source.images:
            entry = self._entry(image, pictures)
            if entry is not None and entries.setdefault(entry.name, entry) is not entry:
                self.summary.annotations_left_out[_TWICE] += 1
        return list(entries.values())

    def _entry(self, image: AnnotatedImage, pictures: Path | None) -> CocoEntry | None:
        try:
            if image.problem:
                raise UnusableImageError(image.problem)
            known = self._find(image.name)
            if known is not None:
                if self.holdings.standing(known.place) is Standing.DISCARDED:
                    raise UnusableImageError("expected an image that is kept, a person has discarded it")
                return _entry(image, known, Holdings.name_of(known.place))
            return self._picture(image, pictures)
        except UnusableImageError as error:
            self.summary.annotations_left_out[str(error)] += 1
            return None

    def _picture(self, image: AnnotatedImage, folder: Path | None) -> CocoEntry:
        """A PNG or JPEG that the annotations name, kept as a PNG without metadata under a new name."""
        from PIL import Image

        path = find_picture(image.name, folder)
        if path is None:
            raise UnusableImageError("expected the image that the annotations name, it was not imported")
        pixels = read_raster(path)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        digest = hashlib.sha256(out.getvalue()).hexdigest()
        name = f"images/{self._pseudonyms.name('picture', digest)}.png"
        if not (self.holdings.root / name).is_file():
            write_whole(self.holdings.root / name, out.getvalue())
        person = self._pseudonyms.patient(image.patient) if image.patient else ""
        study = self._pseudonyms.uid(image.study) if image.study else ""
        known = KeptSlice(Place(person, study, "", ""), pixels.shape[1], pixels.shape[0])
        return _entry(image, known, name)

    def _rest_of_series(self, entries: list[CocoEntry]) -> list[CocoEntry]:
        """The slices of these entries' series of which nobody speaks, and nobody spoke in an earlier import."""
        spoken_of = {entry.name for entry in entries} | self.holdings.annotated()
        series = {entry.name.rsplit("/", 1)[0] for entry in entries}
        rest = {Holdings.name_of(known.place): known for known in self._known.values() if known is not None}
        rest |= {Holdings.name_of(known.place): known for known in self.holdings.slices_in(series)}
        return [
            _entry(annotated(name, []), known, name)
            for name, known in sorted(rest.items())
            if name not in spoken_of
            and name.rsplit("/", 1)[0] in series
            and self.holdings.standing(known.place) is not Standing.DISCARDED
        ]


def _entry(image: AnnotatedImage, known: KeptSlice, name: str) -> CocoEntry:
    size = (known.width, known.height)
    if (image.width or size[0], image.height or size[1]) != size:
        raise UnusableImageError(
            f"expected {image.width} x {image.height} pixels as annotated, the image has others"
        )
    limit = np.array([*size, *size], dtype=np.float32)
    boxes = image.boxes_xyxy
    if len(boxes) and ((boxes < -2.0) | (boxes > limit + 2.0)).any():
        raise UnusableImageError("expected boxes inside the image, one lies outside")
    place = known.place
    return CocoEntry(
        name,
        *size,
        place.patient,
        place.study_uid,
        np.clip(boxes, 0, limit),
        image.labels,
        image.official_split,
    )


def find_picture(name: str, folder: Path | None) -> Path | None:
    """A PNG or JPEG by its path below a folder, with or without its ending.

    Raises:
        UnusableImageError: the name leads out of the folder.
    """
    if folder is None:
        return None
    relative = check_name(name)
    candidates: Iterable[Path] = (folder / below / relative for below in ("", "images", "JPEGImages"))
    for candidate in candidates:
        if candidate.is_file() and candidate.suffix.lower() in RASTER_SUFFIXES:
            return candidate
        for suffix in sorted(RASTER_SUFFIXES):
            other = candidate.with_name(candidate.name + suffix)
            if other.is_file():
                return other
    return None
