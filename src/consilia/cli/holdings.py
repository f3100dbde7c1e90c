"""`consilia data ls|check|split|preview`: what a hospital holds, what cannot be used and why, and how it looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.images import FORMAT, HOME
from consilia.cli.output import Format, Output, make_room

if TYPE_CHECKING:
    from consilia.imaging.cases import Dataset, Skipped
    from consilia.imaging.holdings import Holdings, Quarantined


def _open(home: Path) -> tuple[Path, Holdings]:
    from consilia.imaging.holdings import Holdings
    from consilia.settings import HospitalSettings, load

    path = load(HospitalSettings, home).data.path
    return path, Holdings(path)


def ls(home: Path = HOME, output: Format = FORMAT) -> None:
    """List the cases: patients, studies, series, images, boxes, and what waits in quarantine."""
    from consilia.imaging.inventory import take_inventory

    path, holdings = _open(home)
    say = Output("data", output)
    inventory = take_inventory(path, holdings)
    for number, case in enumerate(inventory.cases, start=1):
        say(
            f"case {number}",
            patient=case.patient,
            series=case.series,
            images=case.images,
            annotated=case.annotated,
            boxes=case.boxes,
            quarantined=case.quarantined,
        )
    say(
        "total",
        patients=inventory.patients,
        series=inventory.series,
        images=sum(case.images for case in inventory.cases),
        annotated=sum(case.annotated for case in inventory.cases),
        **{f"boxes of {name}": count for name, count in inventory.boxes_by_category},
        quarantined=sum(case.quarantined for case in inventory.cases),
    )


def check(
    home: Path = HOME,
    accept: list[str] = typer.Option(
        [], help="You saw this slice of the quarantine: let it in. May be repeated."
    ),
    blank: list[str] = typer.Option([], help="Let it in with the suspected places blanked. May be repeated."),
    discard: list[str] = typer.Option([], help="It goes, and no import brings it back. May be repeated."),
    names: Path | None = typer.Option(
        None, help="Write which file each number is; holds names of files: keep it private."
    ),
    output: Format = FORMAT,
) -> None:
    """Say what cannot be used or waits in quarantine, and why; decide about the quarantine (exit code 1: not clean)."""
    _, holdings = _open(home)
    make_room(names)
    say = Output("data", output)
    waiting = {item.sop_instance_uid: item for item in holdings.quarantined()}
    decisions: tuple[tuple[list[str], str, Callable[[Quarantined], None]], ...] = (
        (accept, "accepted", lambda item: holdings.release(item, blanked=False)),
        (blank, "blanked", lambda item: holdings.release(item, blanked=True)),
        (discard, "discarded", holdings.discard),
    )
    _check_decisions([uid for uids, _, _ in decisions for uid in uids], waiting)
    for uids, word, act in decisions:
        for uid in uids:
            act(waiting.pop(uid))
            say(word, image=uid)
    clean = _say_skipped(holdings, names, say)
    for item in waiting.values():
        say(
            "quarantined",
            image=item.sop_instance_uid,
            reasons=list(item.reasons),
            reason="; ".join(item.reasons),
        )
    if waiting or not clean:
        raise typer.Exit(1)


def _check_decisions(uids: list[str], waiting: dict[str, Quarantined]) -> None:
    from consilia.errors import InputError

    if len(set(uids)) < len(uids):
        raise InputError("expected one decision an image, one is named twice")
    unknown = [uid for uid in uids if uid not in waiting]
    if unknown:
        raise InputError(f"expected images that wait in quarantine, {len(unknown)} do not")


def _say_skipped(holdings: Holdings, names: Path | None, say: Output) -> bool:
    """Whether all of it can be used; what no annotation speaks of is only counted."""
    from consilia.errors import DatasetError
    from consilia.imaging.readers import NOT_ANNOTATED

    try:
        dataset = _without_waiting(_read(holdings.root), holdings)
    except DatasetError as error:
        say("unusable", reason=str(error))
        return False
    unusable = [item for item in dataset.skipped if item.reason != NOT_ANNOTATED]
    not_annotated = [item for item in dataset.skipped if item.reason == NOT_ANNOTATED]
    if names is not None:
        _write_names([*unusable, *not_annotated], names)
    numbers: dict[str, list[int]] = {}
    for number, item in enumerate(unusable, start=1):
        numbers.setdefault(item.reason, []).append(number)
    for reason, files in numbers.items():
        say("unusable", files=len(files), numbers=_ranges(files), reason=reason)
    if not_annotated:
        say(
            "not annotated",
            files=len(not_annotated),
            reason="no annotation speaks of them; training skips them",
        )
    _say_windows(dataset, say)
    say(
        "usable",
        images=len(dataset),
        patients=len(dataset.patients()),
        studies=dataset.studies_used,
        unusable=len(unusable),
        not_annotated=len(not_annotated),
    )
    return not unusable


def _ranges(numbers: list[int]) -> str:
    """Ascending numbers in short: `1-3, 7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return ", ".join("-".join(map(str, run)) for run in runs)


def _say_windows(dataset: Dataset, say: Output) -> None:
    """How body parts window CT where a task names no window: two in one data set are two kinds of picture."""
    windows = Counter(image.window for image in dataset.images if image.window is not None)
    for window, images in windows.most_common():
        low, high = (window.center_hu + side * window.width_hu / 2 for side in (-1, 1))
        say("window of the body part", images=images, hu=f"{low:g} to {high:g}")
    if len(windows) > 1:
        say("several windows", reason="a task that names no window would show these images differently")


def _without_waiting(dataset: Dataset, holdings: Holdings) -> Dataset:
    """Without the annotated slices whose files are missing because they wait in quarantine."""
    waiting = {f"{item.sop_instance_uid}.dcm" for item in holdings.quarantined()}
    return replace(dataset, skipped=tuple(item for item in dataset.skipped if item.name not in waiting))


def _read(path: Path) -> Dataset:
    """The annotated images, or all slices where there are no annotations."""
    from consilia.errors import DatasetError
    from consilia.imaging.annotation_files import has_annotations
    from consilia.imaging.holdings import REPORT
    from consilia.imaging.readers import read_dataset, read_dicom

    if has_annotations(path):
        return read_dataset(path)
    if (path / "dicom").is_dir():
        return read_dicom(path / "dicom")
    if (path / REPORT).is_file():
        raise DatasetError("expected images, of what was imported none is out of quarantine: decide about it")
    return read_dicom(path)


def _write_names(skipped: list[Skipped], path: Path) -> None:
    path.touch(mode=0o600)
    path.write_text("".join(f"{number}\t{item.name}\n" for number, item in enumerate(skipped, start=1)))


def split(
    home: Path = HOME,
    held_out: float = typer.Option(0.2, help="The part of the patients that is held out."),
    seed: int = typer.Option(0, help="Another seed, another division."),
    to: Path | None = typer.Option(None, help="Where the two files go; default: `split` in the home."),
    output: Format = FORMAT,
) -> None:
    """Divide the patients into training and held-out; nobody and no image is on both sides, that is an error."""
    from consilia.imaging.split import check_no_shared_pixels, split_by_patient

    path, _ = _open(home)
    folder = to or home / "split"
    make_room(folder, folder=True)
    files = {name: folder / f"{name}.txt" for name in ("training", "held-out")}
    for file in files.values():
        make_room(file)
    dataset = _read(path)
    [training], test = split_by_patient(dataset, 1, seed, held_out)
    check_no_shared_pixels([training, test])
    say = Output("data", output)
    for name, part in (("training", training), ("held-out", test)):
        file = files[name]
        file.write_text("".join(f"{patient}\n" for patient in part.patients()))
        boxes = sum(len(image.labels) for image in part.images)
        say(name, patients=len(part.patients()), images=len(part), boxes=boxes, file=file.name)
    trains_on = folder.relative_to(home) if to is None else folder.resolve()
    say("to train on the first alone", set=f'[data] patients = "{trains_on / "training.txt"}"')


def preview(
    home: Path = HOME,
    to: Path | None = typer.Option(None, help="The page; default: preview.html in the home."),
    limit: int = typer.Option(120, min=1, max=2000, help="At most so many images, spread over the patients."),
    quarantine: bool = typer.Option(
        False, "--quarantine", help="What waits for a decision, in place of the images."
    ),
    output: Format = FORMAT,
) -> None:
    """Write a contact sheet: one HTML page with the images and their boxes, to look at before training."""
    from consilia.cli.preview.sheet import of_dataset, of_quarantine, write_sheet

    path, holdings = _open(home)
    page = to or home / ("quarantine.html" if quarantine else "preview.html")
    make_room(page)
    sheet = of_quarantine(holdings, limit) if quarantine else of_dataset(_read(path), limit)
    write_sheet(sheet, page)
    Output("data", output)("written", file=page.name, images=sheet.shown, of=sheet.images)
