"""Divide a data set over hospitals by patient: nobody is on two sides."""

from __future__ import annotations

import hashlib
import random
from collections import Counter, defaultdict
from collections.abc import Sequence

from consilia.errors import DatasetError, UnusableImageError
from consilia.imaging.cases import Dataset, LabelledImage
from consilia.imaging.dicom import read_ct


def split_by_patient(
    dataset: Dataset, hospitals: int, seed: int, held_out_fraction: float = 0.2
) -> tuple[list[Dataset], Dataset]:
    """Divide `dataset` over `hospitals` and a held-out rest by whole patients, the same for the same seed.

    An official split is honoured: its `test` images, and they alone, are held out. So is `hospitals.json`:
    its hospitals are kept, and where fewer are wanted the smallest are joined.

    Raises:
        DatasetError: too few patients, more hospitals than proposed, or a patient on two sides (a leak).
    """
    if hospitals < 1 or not 0.0 < held_out_fraction < 1.0:
        raise DatasetError(
            f"expected 1 hospital or more and a fraction in 0..1, got {hospitals}, {held_out_fraction}"
        )
    shuffler = random.Random(seed)
    groups = _group_patients(dataset)
    for patients in groups.values():
        shuffler.shuffle(patients)
    held_out = _official_test(dataset) or _take_fraction(groups, held_out_fraction)
    remaining = {name: [p for p in patients if p not in held_out] for name, patients in groups.items()}
    shares = (
        _join(remaining, hospitals, dataset) if "" not in groups else _deal(remaining[""], hospitals, dataset)
    )
    parts = [dataset.subset(patients, name=f"hospital-{i}") for i, patients in enumerate(shares, start=1)]
    rest = dataset.subset(held_out, name="held-out")
    check_no_leak([*parts, rest])
    return parts, rest


def check_no_leak(parts: Sequence[Dataset]) -> None:
    """Refuse parts that share a patient: a detector tested on a patient it was trained on tests its memory.

    Of an image whose patient nobody knows, equal names say nothing: only its pixels do (`check_no_shared_pixels`).

    Raises:
        DatasetError: two parts share a patient.
    """
    owner: dict[str, str] = {}
    for part in parts:
        for patient in {image.patient for image in part.images if image.patient_known}:
            other = owner.setdefault(patient, part.name)
            if other != part.name:
                raise DatasetError(f"expected every patient on one side, {other} and {part.name} share one")


def check_no_shared_pixels(parts: Sequence[Dataset]) -> None:
    """Refuse parts that hold the same picture under whatever name: names and patient keys can be wrong.

    Every picture is read, CT as Hounsfield units: in a window, different slices can look alike. One of a single value,
    such as an empty slice, shows nobody and may be on both sides; one that cannot be read is nowhere.

    Raises:
        DatasetError: two parts share pictures; the message counts them, because a file's name can be a patient's.
    """
    owner: dict[bytes, str] = {}
    shared: Counter[tuple[str, str]] = Counter()
    for part in parts:
        for image in part.images:
            digest = _pixel_digest(image)
            if digest is None:
                continue
            other = owner.setdefault(digest, part.name)
            if other != part.name:
                shared[other, part.name] += 1
    if shared:
        (one, two), count = shared.most_common(1)[0]
        raise DatasetError(
            f"expected every picture on one side, {count} of {two} have the same pixels as pictures of {one}: "
            "the same person may have two identifiers; give these pictures one patient, or take one of each two out"
        )


def _pixel_digest(image: LabelledImage) -> bytes | None:
    try:
        pixels = read_ct(image.path).hu if image.window is not None else image.pixels()
    except (UnusableImageError, OSError):
        return None
    if pixels.min() == pixels.max():
        return None
    return hashlib.sha256(str(pixels.shape).encode() + pixels.tobytes()).digest()


def _group_patients(dataset: Dataset) -> dict[str, list[str]]:
    """Patients by proposed hospital; all under the empty name where none is proposed."""
    proposed: dict[str, set[str]] = defaultdict(set)
    for image in dataset.images:
        proposed[image.patient].add(image.hospital)
    if not any(image.hospital for image in dataset.images):
        return {"": sorted(proposed)}
    groups: dict[str, list[str]] = defaultdict(list)
    for patient, names in sorted(proposed.items()):
        if len(names) > 1:
            raise DatasetError(
                "expected every patient in one hospital of hospitals.json, one is in several or in none"
            )
        groups[next(iter(names))].append(patient)
    if "" in groups:
        raise DatasetError(
            f"expected every image in hospitals.json, {len(groups[''])} patients have no hospital there"
        )
    return dict(sorted(groups.items()))


def _official_test(dataset: Dataset) -> set[str]:
    test = {image.patient for image in dataset.images if image.official_split == "test"}
    if any(image.patient in test and image.official_split != "test" for image in dataset.images):
        raise DatasetError(
            "expected the official split to keep patients together, one is in test and in training"
        )
    return test


def _take_fraction(groups: dict[str, list[str]], fraction: float) -> set[str]:
    """The first patients of every group, so that each scanner is tested on; at least one patient in all."""
    taken = {p for patients in groups.values() for p in patients[: round(fraction * len(patients))]}
    return taken or {max(groups.values(), key=len)[0]}


def _deal(patients: list[str], hospitals: int, dataset: Dataset) -> list[list[str]]:
    """Give each patient, in the shuffled order, to the hospital with the fewest images so far."""
    if len(patients) < hospitals:
        raise DatasetError(
            f"expected a patient or more for each of {hospitals} hospitals, {len(patients)} are left"
        )
    images = Counter(image.patient for image in dataset.images)
    shares: list[list[str]] = [[] for _ in range(hospitals)]
    for patient in patients:
        min(shares, key=lambda share: (sum(images[p] for p in share), len(share))).append(patient)
    return shares


def _join(groups: dict[str, list[str]], hospitals: int, dataset: Dataset) -> list[list[str]]:
    """Join the two smallest proposed hospitals until there are as many as wanted."""
    shares = [patients for patients in groups.values() if patients]
    if len(shares) < hospitals:
        raise DatasetError(
            f"expected at most the {len(shares)} hospitals of hospitals.json, {hospitals} were wanted"
        )
    images = Counter(image.patient for image in dataset.images)
    while len(shares) > hospitals:
        shares.sort(key=lambda share: -sum(images[p] for p in share))
        last = shares.pop()
        shares[-1] = shares[-1] + last
    return shares
