"""Who gets which images in a demo: phantom CT made for each hospital, or a real data set split by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from consilia.cli.demo.layout import HospitalData
from consilia.cli.demo.plan import Plan
from consilia.cli.demo.workers import two_workers
from consilia.cli.report.report import HospitalData as ReportedData
from consilia.cli.report.report import SkippedStudy
from consilia.errors import DatasetError
from consilia.imaging.cases import BRAIN, Dataset, WindowHU, numbered
from consilia.imaging.phantom import SITES, write_phantom_hospital
from consilia.imaging.readers import read_dataset
from consilia.imaging.split import check_no_leak, check_no_shared_pixels, split_by_patient

SLICES_PER_PATIENT = 6
HELD_OUT = "held-out"


@dataclass(frozen=True)
class Shares:
    """The data of a run: each hospital's, what is held out (by hospital), and what the task says of it."""

    hospitals: tuple[HospitalData, ...]
    held_out: tuple[tuple[str, HospitalData], ...]
    categories: tuple[str, ...]
    format: str
    window: WindowHU | None
    reported: tuple[ReportedData, ...]
    held_out_images: tuple[int, int, int]
    """(patients, images, lesions)"""


def phantom_shares(home: Path, plan: Plan) -> Shares:
    """Make every hospital's phantom patients, and as many thirds of them again to hold out, two hospitals at a time."""
    jobs = []
    for index in range(plan.hospitals):
        held_out = max(2, plan.phantom_patients // 3)
        jobs.append(
            (home / f"hospital-{index + 1}" / "data", index, plan.phantom_patients, plan.seed * 1000 + index)
        )
        jobs.append(
            (home / HELD_OUT / f"hospital-{index + 1}", index, held_out, plan.seed * 1000 + 500 + index)
        )
    todo = [job for job in jobs if not (job[0] / "annotations.json").exists()]
    with two_workers() as pool:
        pool.map(_write_phantom, todo, chunksize=1)
    own = [read_dataset(job[0], window=BRAIN) for job in jobs[::2]]
    rest = [read_dataset(job[0], window=BRAIN) for job in jobs[1::2]]
    scanners = [SITES[index % len(SITES)].scanner for index in range(plan.hospitals)]
    return Shares(
        hospitals=tuple(HospitalData(job[0]) for job in jobs[::2]),
        held_out=tuple((f"hospital-{i}", HospitalData(job[0])) for i, job in enumerate(jobs[1::2], start=1)),
        categories=own[0].categories,
        format="dicom",
        window=BRAIN,
        reported=tuple(
            _reported(f"hospital-{i}", dataset, scanner.model, scanner.manufacturer)
            for i, (dataset, scanner) in enumerate(zip(own, scanners, strict=True), start=1)
        ),
        held_out_images=_counts(rest),
    )


def _write_phantom(job: tuple[Path, int, int, int]) -> None:
    path, index, patients, seed = job
    site = SITES[index % len(SITES)]
    write_phantom_hospital(
        path,
        scanner=site.scanner,
        lesions=site.lesions,
        patients=patients,
        slices_per_patient=SLICES_PER_PATIENT,
        seed=seed,
    )


def real_shares(home: Path, plan: Plan, data: Path) -> Shares:
    """Split a data set by patient, or by its hospitals.json; nothing is copied, each hospital reads its own patients.

    Raises:
        DatasetError: it cannot be read or split.
    """
    dataset = read_dataset(data)
    parts, held_out = split_by_patient(dataset, plan.hospitals, plan.seed)
    check_no_leak([*parts, held_out])
    check_no_shared_pixels([*parts, held_out])
    if not any(len(image.labels) for image in held_out.images):
        raise DatasetError(
            "the held-out patients have no lesion, so nothing could be measured; try another --seed"
        )
    ct = any(image.window is not None for image in dataset.images)
    return Shares(
        hospitals=tuple(_share(home, data, part.name, part.patients()) for part in parts),
        held_out=tuple(
            (name, _share(home, data, f"{HELD_OUT}-{name}", patients))
            for name, patients in _by_hospital(held_out, parts)
        ),
        categories=dataset.categories,
        format="dicom" if ct else "image",
        window=next((image.window for image in dataset.images if image.window), None),
        reported=tuple(_reported(part.name, part) for part in parts),
        held_out_images=_counts([held_out]),
    )


def _share(home: Path, data: Path, name: str, patients: Sequence[str]) -> HospitalData:
    file = home / "splits" / f"{name}.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(patients) + "\n")
    return HospitalData(data, file)


def _by_hospital(held_out: Dataset, parts: list[Dataset]) -> list[tuple[str, tuple[str, ...]]]:
    """The held-out patients by the hospital whose scanner they come from, where the data set says so."""
    names = {image.hospital: part.name for part in parts for image in part.images if image.hospital}
    groups: dict[str, set[str]] = {}
    for image in held_out.images:
        groups.setdefault(names.get(image.hospital, HELD_OUT), set()).add(image.patient)
    return [(name, tuple(sorted(patients))) for name, patients in sorted(groups.items())]


def _reported(name: str, dataset: Dataset, scanner: str = "", manufacturer: str = "") -> ReportedData:
    return ReportedData(
        hospital=name,
        scanner=scanner,
        manufacturer=manufacturer,
        patients=len(dataset.patients()),
        images=len(dataset.images),
        lesions=sum(len(image.labels) for image in dataset.images),
        studies_used=dataset.studies_used,
        studies_skipped=dataset.studies_skipped,
        skipped=tuple(SkippedStudy(name=item.name, reason=item.reason) for item in numbered(dataset.skipped)),
    )


def _counts(datasets: list[Dataset]) -> tuple[int, int, int]:
    images = [image for dataset in datasets for image in dataset.images]
    patients = sum(len(dataset.patients()) for dataset in datasets)
    return patients, len(images), sum(len(image.labels) for image in images)
