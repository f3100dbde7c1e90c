"""`consilia data import`: a hospital's images from a folder or a PACS, de-identified, into its data folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format, Output

if TYPE_CHECKING:
    from consilia.errors import PacsError
    from consilia.imaging.importing import Importer
    from consilia.roles.data_import import Wishes
    from consilia.roles.pacs import Wanted
    from consilia.roles.progress import Report

HOME = typer.Option(..., help="The hospital's home, with its consilia.toml.")
FORMAT = typer.Option(Format.TEXT, "--format", help="How to report.")


def import_images(
    home: Path = HOME,
    source: str = typer.Option(
        "", "--from", help="A folder, a DICOMweb address (https://...), or AET@host:port of a PACS."
    ),
    listen: str = typer.Option(
        "",
        help="Our own AET@host:port: wait for C-STORE there; with --from a PACS, where it sends to (C-MOVE).",
    ),
    study: list[str] = typer.Option([], help="A StudyInstanceUID to ask the PACS for; may be repeated."),
    dates: str = typer.Option("", help="Studies of these days: YYYYMMDD or YYYYMMDD-YYYYMMDD."),
    annotations: Path | None = typer.Option(
        None, exists=True, help="COCO, Pascal VOC, YOLO or masks; default: what lies in the folder."
    ),
    category: str = typer.Option(
        "", help="The class of what DICOM SR and SEG mark; default: what their codes mean."
    ),
    complete: bool = typer.Option(
        False, help="A slice without a box, in a series that has boxes, is free of lesions."
    ),
    idle_seconds: float = typer.Option(
        60.0, min=0.1, help="With --listen alone: end when nothing came for so long."
    ),
    title: str = typer.Option("CONSILIA", help="Our AE title where we fetch by C-GET."),
    token_file: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="A bearer token for DICOMweb."
    ),
    output: Format = FORMAT,
) -> None:
    """Import images, de-identified, from a folder, DICOMweb, or a PACS by C-STORE, C-MOVE or C-GET."""
    from consilia.errors import InputError, PacsError
    from consilia.imaging.importing import Importer
    from consilia.roles.data_import import Wishes, open_holdings, pseudonymiser
    from consilia.settings import HospitalSettings, load

    if not source and not listen:
        raise InputError("expected --from or --listen: where the images come from")
    settings, say = load(HospitalSettings, home), Output("import", output)
    importer = Importer(open_holdings(settings.data.path), pseudonymiser(home), category)
    wishes = Wishes(annotations, category, complete)
    if (
        source
        and not source.startswith(("http://", "https://"))
        and ("@" not in source or Path(source).exists())
    ):
        _from_folder(Path(source), importer, wishes, say)
        return
    failure: PacsError | None = None
    try:
        if source.startswith(("http://", "https://")):
            _from_web(source, token_file, _wanted(study, dates), home, importer, say)
        elif source:
            _from_pacs(source, listen, title, _wanted(study, dates), home, importer)
        else:
            _by_listening(listen, idle_seconds, home, importer, say)
    except PacsError as error:
        failure = error
    _close(importer, wishes, failure, say)


def _close(importer: Importer, wishes: Wishes, failure: PacsError | None, say: Report) -> None:
    """Keep and tell what came, also where the PACS broke off, and only then say so."""
    from consilia.errors import PacsError
    from consilia.roles.data_import import finish

    lost = importer.summary.not_delivered
    if failure is None and lost:
        failure = PacsError(
            f"{lost} instances were not delivered by the PACS: the same command again fetches what is missing"
        )
    # findings that did not come could be on any slice
    finish(importer, replace(wishes, complete=wishes.complete and failure is None), wishes.annotations)
    _tell(importer, say)
    if failure is not None:
        raise failure


def _wanted(study: list[str], dates: str) -> Wanted:
    from consilia.roles.pacs import Wanted

    return Wanted(tuple(study), dates)


def _from_folder(folder: Path, importer: Importer, wishes: Wishes, say: Report) -> None:
    from consilia.errors import InputError
    from consilia.roles.data_import import import_folder

    if not folder.is_dir():
        raise InputError("expected --from with a folder that is there, an http address, or AET@host:port")
    import_folder(folder, importer, wishes, say)
    _tell(importer, say)


def _from_web(
    url: str, token_file: Path | None, wanted: Wanted, home: Path, importer: Importer, say: Report
) -> None:
    from consilia.roles.data_import import progress
    from consilia.roles.dicomweb import DicomWeb, fetch
    from consilia.roles.pacs import spool

    token = token_file.read_text(errors="replace").strip() if token_file is not None else ""
    server = DicomWeb(url, token)
    with spool(home) as folder:
        for number, path in enumerate(fetch(server, wanted, importer, folder), start=1):
            importer.take(path)
            path.unlink()
            progress(importer, number, say)


def _from_pacs(pacs: str, listen: str, title: str, wanted: Wanted, home: Path, importer: Importer) -> None:
    from consilia.roles.pacs import Entity, Listener, get, move, spool

    remote = Entity.parse(pacs)
    own = Entity.parse(listen) if listen else Entity(title, "127.0.0.1", 0)
    with spool(home) as folder:
        listener = Listener(own, folder, importer)
        if listen:
            with listener:
                lost = move(remote, own, wanted, importer)
        else:
            lost = get(remote, own.title, wanted, importer, listener.handle)
        listener.check()
        importer.summary.not_delivered += max(0, lost - listener.turned_away)


def _by_listening(listen: str, idle_seconds: float, home: Path, importer: Importer, say: Report) -> None:
    from consilia.roles.pacs import Entity, Listener, spool

    own = Entity.parse(listen)
    with spool(home) as folder, Listener(own, folder, importer) as listener:
        say("listening", title=own.title, host=own.host, port=own.port)
        listener.wait(idle_seconds)


def _tell(importer: Importer, say: Report) -> None:
    summary = importer.summary
    say("files", **dict(summary.files))
    say("slices", **dict(summary.slices))
    for reason, count in summary.refused.most_common():
        say("refused", files=count, reason=reason)
    for reason, count in summary.quarantined.most_common():
        say("quarantined", slices=count, reason=reason)
    for reason, count in summary.annotations_left_out.most_common():
        say("annotation left out", count=count, reason=reason)
    if summary.not_delivered:
        say("not delivered", instances=summary.not_delivered)
    say(
        "imported",
        images=summary.slices["held"],
        annotated_images=summary.annotated_images,
        boxes=summary.boxes,
        attributes_removed=sum(summary.removed_attributes.values()),
    )
