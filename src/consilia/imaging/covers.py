"""Choosing what a real case hides among: audit and cover images from the hospital's own archive, matched to it.

Audits and covers are one draw, dealt by chance: nothing about an image says which of the two it is. No diagnosis may
be that of more than half of the audits: a server that answers "no finding" to everything would pass otherwise.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from consilia.errors import ArchiveError
from consilia.imaging.cases import Acquisition, LabelledImage

THICKNESS_TOLERANCE = 0.25
"""Slices a quarter thicker or thinner still look alike: noise goes with the square root."""

AGE_TOLERANCE_YEARS = 10.0
"""Brains shrink and bones thin over decades, and a child is no cover for an adult."""

Diagnosis = tuple[int, ...]
"""The labels that an image shows, ascending, each once; empty for no finding."""


@dataclass(frozen=True)
class Draw:
    """What was chosen, in no order that means anything."""

    audits: tuple[LabelledImage, ...]
    covers: tuple[LabelledImage, ...]


def diagnosis_of(image: LabelledImage) -> Diagnosis:
    """The known diagnosis of an archive image."""
    return tuple(sorted({int(label) for label in image.labels}))


def mismatch(case: Acquisition, other: Acquisition) -> str:
    """What tells an image from the case, or empty: the first of modality, body part, scanner, plane, thickness, age.

    What neither header tells is no difference. What one tells and the other does not is one, but for the age.
    """
    for name in ("modality", "body_part", "manufacturer", "model", "plane"):
        if getattr(case, name) != getattr(other, name):
            return {"model": "scanner", "manufacturer": "scanner"}.get(name, name.replace("_", " "))
    thin, thick = sorted((case.slice_thickness_mm or 0.0, other.slice_thickness_mm or 0.0))
    if thick - thin > THICKNESS_TOLERANCE * thick:
        return "slice thickness"
    ages = (case.patient_age_years, other.patient_age_years)
    if ages[0] is not None and ages[1] is not None and abs(ages[0] - ages[1]) > AGE_TOLERANCE_YEARS:
        return "age"
    return ""


def matched(
    cases: Sequence[LabelledImage], archive: Sequence[LabelledImage], left_out: Mapping[str, str]
) -> tuple[list[LabelledImage], Counter[str]]:
    """The archive's images that can hide all of these cases, and why the others cannot, counted.

    Args:
        cases: the real images.
        archive: labelled images, the cases possibly among them.
        left_out: `image_id`s that are of no use otherwise, and why; such as "used before".
    """
    patients = {case.patient for case in cases}
    fitting: list[LabelledImage] = []
    reasons: Counter[str] = Counter()
    for image in archive:
        against = [mismatch(case.acquisition, image.acquisition) for case in cases]
        reason = next(filter(None, against), "")
        if image.patient in patients:
            reason = "of the case's patient"
        elif not reason and image.image_id in left_out:
            reason = left_out[image.image_id]
        elif not reason and any(_shape(case) != _shape(image) for case in cases):
            reason = "another shape"
        if reason:
            reasons[reason] += 1
        else:
            fitting.append(image)
    return fitting, reasons


def _shape(image: LabelledImage) -> float:
    """Width by height: canonical pixels are filled with black where it is not 1."""
    return round(image.width / image.height, 2)


def draw(
    cases: Sequence[LabelledImage],
    archive: Sequence[LabelledImage],
    left_out: Mapping[str, str],
    audits: int,
    covers: int,
    chance: random.Random,
) -> Draw:
    """Draw audits and covers for these cases: matched, none of those left out, one image a patient.

    `covers` counts what hides beside one case; further cases take covers' places, since they cover one another.

    Raises:
        ArchiveError: there are too few; the message says how many are missing, with what matching.
    """
    fitting, reasons = matched(cases, archive, left_out)
    groups: dict[Diagnosis, list[LabelledImage]] = {}
    for image in fitting:
        groups.setdefault(diagnosis_of(image), []).append(image)
    for images in groups.values():
        chance.shuffle(images)
    wanted = audits + max(0, covers + 1 - len(cases))
    chosen = _round_robin(groups, wanted)
    if len(chosen) < wanted:
        raise ArchiveError(_too_small(cases[0].acquisition, wanted, wanted - len(chosen), reasons))
    diagnosis, count = Counter(map(diagnosis_of, chosen)).most_common(1)[0]
    if 2 * count > wanted + 1:  # of an odd number the larger half
        kind = "without a finding" if not diagnosis else "with the same findings"
        raise ArchiveError(
            f"{count} of {wanted} archive images would be {kind}, so that a server which always says so could pass; "
            f"expected at most half: add {count - (wanted + 1) // 2} or more matched images with other findings"
        )
    while True:  # a few turns: at most half of all of them share a diagnosis
        chance.shuffle(chosen)
        if 2 * max(Counter(map(diagnosis_of, chosen[:audits])).values()) <= audits + 1:
            return Draw(tuple(chosen[:audits]), tuple(chosen[audits:]))


def _round_robin(groups: Mapping[Diagnosis, list[LabelledImage]], count: int) -> list[LabelledImage]:
    """Up to `count` images, one a patient, one diagnosis after the other, the rarest first."""
    chosen: list[LabelledImage] = []
    taken: set[str] = set()
    while len(chosen) < count:
        before = len(chosen)
        for images in sorted(groups.values(), key=len):
            while images and len(chosen) < count:
                image = images.pop()
                if image.patient not in taken:
                    taken.add(image.patient)
                    chosen.append(image)
                    break
        if len(chosen) == before:
            break
    return chosen


def _too_small(case: Acquisition, wanted: int, short: int, reasons: Counter[str]) -> str:
    left_out = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return (
        f"the archive is too small: {wanted} matched images of different patients are needed, {short} are missing. "
        f"Matching means {describe(case)}" + (f". Left out: {left_out}" if left_out else "")
    )


def describe(case: Acquisition) -> str:
    """What an image must have in common with the case, for the hospital's own eyes."""
    known = [case.modality, case.body_part, f"{case.manufacturer} {case.model}".strip(), case.plane]
    if case.slice_thickness_mm:
        known.append(f"{case.slice_thickness_mm:g} mm slices (within {THICKNESS_TOLERANCE:.0%})")
    if case.patient_age_years is not None:
        known.append(f"age {case.patient_age_years:.0f} (within {AGE_TOLERANCE_YEARS:.0f} years)")
    return ", ".join(word for word in known if word) or "nothing that the files tell: they have no header"
