"""What a reader hands over: images with boxes, what was skipped and why, and the data set around them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from consilia.errors import DatasetError


@dataclass(frozen=True)
class WindowHU:
    """The range of Hounsfield units that is spread over 8 bits; the same at every hospital.

    The header's own window (0028,1050) is never used: vendors and radiographers set it as they like, and a
    detector would learn the vendor.
    """

    center_hu: float
    width_hu: float

    def to_uint8(self, hu: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Map HU of shape (H, W) to 0..255, linear and clipped (DICOM PS3.3 C.11.2.1.3.2, LINEAR_EXACT)."""
        unit = (hu - self.center_hu) / self.width_hu + 0.5
        grey: NDArray[np.uint8] = np.rint(np.clip(unit, 0.0, 1.0) * 255.0).astype(np.uint8)
        return grey


LUNG = WindowHU(-600.0, 1500.0)
"""Air to soft tissue, -1350..150 HU: vessels and nodules against aerated lung."""

SOFT_TISSUE = WindowHU(40.0, 400.0)
"""-160..240 HU: fat, organs and contrast medium; the choice where nothing is known of the body part."""

BRAIN = WindowHU(40.0, 80.0)
"""0..80 HU: grey against white matter (8 HU apart) and fresh blood (50-80 HU); bone saturates."""


def window_for(body_part: str) -> WindowHU:
    """The window for a Body Part Examined (0018,0015), used where the task names none."""
    return {"HEAD": BRAIN, "BRAIN": BRAIN, "CHEST": LUNG, "LUNG": LUNG}.get(body_part.upper(), SOFT_TISSUE)


def patient_key(identifier: str) -> str:
    """A pseudonym that groups the images of one patient, so that a split cannot cut through a patient.

    A plain hash, hence the same in every run; who can guess an identifier can confirm it. Keys therefore stay
    in the hospital's process: they group, and no report or log carries them.
    """
    return "patient-" + hashlib.sha256(b"consilia/patient/v1\0" + identifier.encode()).hexdigest()[:16]


def study_key(identifier: str) -> str:
    """The same pseudonym for a study."""
    return "study-" + hashlib.sha256(b"consilia/study/v1\0" + identifier.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Acquisition:
    """How an image was made, as far as its header tells; empty or None where it does not.

    It decides which images look alike enough to hide one another, and never leaves the hospital.
    """

    modality: str = ""
    body_part: str = ""
    manufacturer: str = ""
    model: str = ""
    plane: str = ""
    """`axial`, `coronal`, `sagittal` or `oblique`; for projections the View Position (0018,5101)."""
    slice_thickness_mm: float | None = None
    patient_age_years: float | None = None


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image and its boxes. The pixels stay on disk until they are asked for."""

    image_id: str
    """Stable and unique in its data set: the name in the annotations, or the SOPInstanceUID (0008,0018)."""
    patient: str
    """A `patient_key`."""
    study: str
    """A `study_key`; an image outside any study is a study of its own."""
    width: int
    height: int
    boxes_xyxy: NDArray[np.float32]
    """(n, 4), pixels, x1 <= x < x2 from the left edge, y from the top edge."""
    labels: NDArray[np.int64]
    """(n,), 1-based index into `Dataset.categories`; 0 is background."""
    spacing_mm: tuple[float, float] | None
    """Between rows, between columns (0028,0030); None where it is unknown."""
    path: Path
    window: WindowHU | None = None
    """Set for CT, None for images that are 8-bit already."""
    hospital: str = ""
    """The hospital that `hospitals.json` proposes, or empty."""
    official_split: str = ""
    """`train`, `val` or `test` where the data set's authors fixed it, or empty."""
    acquisition: Acquisition = Acquisition()
    series: str = ""
    """A `study_key` of the series, where it is CT in DICOM."""
    level_mm: float = 0.0
    """Where a CT slice lies along the normal of its plane."""
    more_windows: tuple[WindowHU, ...] = ()
    """After `window`, for the second and third channel (`imaging/channels.py`)."""
    neighbours: tuple[Path, Path] | None = None
    """The slices for the first and third channel."""
    patient_known: bool = True
    """False where neither annotations nor header tell one: then the image is a patient of its own."""

    def pixels(self) -> NDArray[np.uint8]:
        """Read the image: (H, W) grey or (H, W, 3); CT is rescaled to HU and windowed first.

        Raises:
            UnusableImageError: the file changed since it was imported.
        """
        if self.window is not None:
            from consilia.imaging.dicom import read_ct

            hu = read_ct(self.path).hu
            if self.more_windows:
                seen = [window.to_uint8(hu) for window in (self.window, *self.more_windows)]
                return np.stack(seen, axis=2)
            if self.neighbours is not None:
                below, above = (hu if path == self.path else read_ct(path).hu for path in self.neighbours)
                return np.stack([self.window.to_uint8(part) for part in (below, hu, above)], axis=2)
            return self.window.to_uint8(hu)
        from consilia.imaging.raster import read_raster

        return read_raster(self.path)


@dataclass(frozen=True)
class Skipped:
    """A file that was left out. `name` is its own name, without folders; the reason names no person."""

    name: str
    reason: str
    patient: str = ""
    study: str = ""
    """A `study_key`; empty where the file does not tell."""
    path: Path | None = field(default=None, repr=False, compare=False)
    """Where it lies, to tell it from others of its name; no report says so. None where no file was found."""


def numbered(skipped: Iterable[Skipped]) -> tuple[Skipped, ...]:
    """The same with a number in place of each name: a file can be named after a patient, and reports travel."""
    return tuple(
        replace(item, name=f"file {number}", path=None) for number, item in enumerate(skipped, start=1)
    )


@dataclass(frozen=True)
class ImportReport:
    """What a hospital says about its data: at import, and in every round."""

    dataset: str
    images: int
    images_with_boxes: int
    patients: int
    studies_used: int
    studies_skipped: int
    boxes_by_category: tuple[tuple[str, int], ...]
    files_skipped_by_reason: tuple[tuple[str, int], ...]
    """Reason and number of files, the most frequent first."""
    skipped: tuple[Skipped, ...]
    """Keep it at home: it holds patient keys."""

    @property
    def files_skipped(self) -> int:
        """How many files were left out."""
        return len(self.skipped)

    def text(self) -> str:
        """The report for a person, one fact a line, and at most ten of the skipped files by name."""
        boxes = ", ".join(f"{count} {category}" for category, count in self.boxes_by_category)
        lines = [
            f"{self.images} images of {self.patients} patients, "
            f"{self.images_with_boxes} with boxes ({boxes or 'none'})",
            f"studies: {self.studies_used} used, {self.studies_skipped} skipped; "
            f"files skipped: {self.files_skipped}",
        ]
        lines += [f"  {count} x {reason}" for reason, count in self.files_skipped_by_reason]
        lines += [f"  {skipped.name}: {skipped.reason}" for skipped in numbered(self.skipped)[:10]]
        if len(self.skipped) > 10:
            lines.append(f"  and {len(self.skipped) - 10} more")
        return "\n".join(lines)


@dataclass(frozen=True, eq=False)
class Dataset:
    """The usable images of one hospital, and an account of the others."""

    name: str
    categories: tuple[str, ...]
    images: tuple[LabelledImage, ...]
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    @property
    def studies_used(self) -> int:
        """How many studies gave at least one image."""
        return len({image.study for image in self.images})

    @property
    def studies_skipped(self) -> int:
        """How many known studies gave none."""
        used = {image.study for image in self.images}
        return len({skipped.study for skipped in self.skipped if skipped.study} - used)

    def patients(self) -> tuple[str, ...]:
        """The keys of the patients, sorted."""
        return tuple(sorted({image.patient for image in self.images}))

    def subset(self, patients: Collection[str], name: str = "") -> Dataset:
        """The images of these patients, with the files that were skipped of theirs.

        Raises:
            DatasetError: a patient is not in this data set.
        """
        wanted = frozenset(patients)
        unknown = wanted - set(self.patients())
        if unknown:
            raise DatasetError(
                f"expected patients of the data set, {len(unknown)} of {len(wanted)} are not in it"
            )
        return replace(
            self,
            name=name or self.name,
            images=tuple(image for image in self.images if image.patient in wanted),
            skipped=tuple(skipped for skipped in self.skipped if skipped.patient in wanted),
        )

    def summary(self) -> ImportReport:
        """Count what is here."""
        boxes = Counter(int(label) for image in self.images for label in image.labels)
        reasons = Counter(skipped.reason for skipped in self.skipped)
        return ImportReport(
            dataset=self.name,
            images=len(self.images),
            images_with_boxes=sum(len(image.labels) > 0 for image in self.images),
            patients=len(self.patients()),
            studies_used=self.studies_used,
            studies_skipped=self.studies_skipped,
            boxes_by_category=tuple((name, boxes[i]) for i, name in enumerate(self.categories, start=1)),
            files_skipped_by_reason=tuple(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
            skipped=self.skipped,
        )
