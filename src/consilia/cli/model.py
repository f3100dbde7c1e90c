"""`consilia model`: what a detector is worth, what it finds, and where the ledger has it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from consilia.cli.output import Format, Output, make_room, printable, to_json

if TYPE_CHECKING:
    from consilia.protocols.task_spec import TaskSpec
    from consilia.roles.models.findings import Findings
    from consilia.roles.models.use import HeldOut
    from consilia.settings.sections import DataSection

app = typer.Typer(help="Measure, use and check a detector.", no_args_is_help=True)

LEDGER_HOME = typer.Option(None, help="The home of a consortium or of a party; its chain file is read.")
LEDGER_URL = typer.Option(None, help="Or a node's JSON-RPC address.")
HOME = typer.Option(None, help="The home of the server, or of a hospital that took part.")
TASK = typer.Option(None, help="With --home: the task's place in the order of publication, or its id.")
ROUND = typer.Option(None, "--round", min=0, help="With --home: after so many rounds; default: the newest.")
MODEL = typer.Option(None, "--model", exists=True, dir_okay=False, help="Or a safetensors file, with --spec.")
SPEC = typer.Option(
    None, exists=True, dir_okay=False, help="With --model: the TaskSpec (TOML) of what it was trained for."
)
DATA = typer.Option(..., exists=True, file_okay=False, help="A folder of images with COCO or VOC boxes.")
PATIENTS = typer.Option(
    None, exists=True, dir_okay=False, help="A file of patient keys: only these patients of --data."
)
TRAINED_ON = typer.Option(
    [], help="Training data: a patient or picture in both is an error. FOLDER, or FOLDER=PATIENTS_FILE."
)
SEED = typer.Option(0, min=0, help="Of the bootstrap; equal seeds give equal intervals.")
DEPLOYMENT = typer.Option(None, help="With --url: the deployment file.")
FORMAT = typer.Option(Format.TEXT, "--format", help="Text, or one JSON object a line.")


@app.callback()
def _group() -> None:
    """Measure, use and check a detector."""


@app.command()
def verify(
    model: str = typer.Argument(..., help="A safetensors file, or a digest of 64 hex digits."),
    home: Path | None = LEDGER_HOME,
    url: str | None = LEDGER_URL,
    deployment: Path | None = DEPLOYMENT,
    form: Format = FORMAT,
) -> None:
    """Say which task and round registered a model. Exit code 5 if none did: then it is not from here."""
    from consilia.roles.audit.view import open_view
    from consilia.roles.models.catalogue import digest_of, find_registrations

    digest, say = digest_of(model), Output("model", form)
    with open_view(home, url, deployment) as view:
        for found in find_registrations(view, digest):
            say(
                "registered",
                digest=str(digest),
                task=found.number,
                title=found.title,
                after_rounds=found.rounds_done,
                root=str(found.artifact.root),
                by=found.deed.by.name or found.deed.by.address,
                block=found.deed.block_number,
                timestamp=found.deed.timestamp,
                transaction=f"0x{found.deed.transaction}",
            )


@app.command()
def certificate(
    model: str = typer.Argument(..., help="The model's digest, 64 hex digits, or its file."),
    home: Path | None = LEDGER_HOME,
    url: str | None = LEDGER_URL,
    deployment: Path | None = DEPLOYMENT,
    form: Format = FORMAT,
) -> None:
    """A model's record over the audits of all its queries, computed from the ledger; no key is needed."""
    from consilia.cli.report.consulted import certificate_of
    from consilia.roles.audit.view import open_view
    from consilia.roles.diagnosis.query_log import fold_diagnosis
    from consilia.roles.models.catalogue import digest_of

    digest, say = digest_of(model), Output("model", form)
    with open_view(home, url, deployment) as view:
        logged = view.history.events(0, view.history.head())
        log = fold_diagnosis([event for item in logged if (event := item.typed()) is not None])
        found = certificate_of(log, digest)
        low, high = found.interval
        say(
            "certificate",
            digest=str(digest),
            standing=found.standing.value,
            queries=len(found.outcomes),
            audits=found.audits,
            matches=found.matches,
            silent=found.silent,
            accuracy_at_least=low,
            accuracy_at_most=high,
            points=found.points,
        )
        for account, (matches, audits) in found.by_hospital().items():
            say("asked by", hospital=view.account(account).name or account, matches=matches, audits=audits)


@app.command("eval")
def evaluate(
    data: Path = DATA,
    home: Path | None = HOME,
    task: int | None = TASK,
    rounds: int | None = ROUND,
    model: Path | None = MODEL,
    spec: Path | None = SPEC,
    patients: Path | None = PATIENTS,
    trained_on: list[str] = TRAINED_ON,
    predictions: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="Kept findings (COCO JSON) in place of the model's own."
    ),
    to: Path | None = typer.Option(
        None, help="Write everything as JSON; a name that ends in .html: as a page."
    ),
    seed: int = SEED,
    form: Format = FORMAT,
) -> None:
    """Measure a model on held-out images: mAP, FROC, sizes, patients, hospitals, calibration, with intervals."""
    from consilia.cli.model_record import assessment_lines, assessment_record, model_record
    from consilia.detection.assessment import assess
    from consilia.detection.predictions import read_predictions
    from consilia.roles.models.use import ModelName, find_on, matching, named_model

    make_room(to)
    with named_model(ModelName(home, task, rounds, model, spec)) as named:
        held_out = _held_out(named.spec, home, _section(data, patients), trained_on)
        if predictions is None:
            found = find_on(named, held_out)
        else:
            found = matching(read_predictions(predictions, named.spec.data.categories), held_out)
        measured = assess(found, held_out.examples, seed=seed)
        record = assessment_record(measured, model_record(named), seed)
        record["leak_checked"] = held_out.leak_checked
    if to is not None:
        _write(to, record)
    _show(form, record, (*_unchecked(held_out), *assessment_lines(measured)))


@app.command()
def compare(
    data: Path = DATA,
    home: Path | None = HOME,
    task: int | None = TASK,
    rounds: int | None = ROUND,
    model: Path | None = MODEL,
    spec: Path | None = SPEC,
    patients: Path | None = PATIENTS,
    trained_on: list[str] = TRAINED_ON,
    other: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="The other model's file, of the same task unless --other-spec.",
    ),
    other_spec: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="With --other: the TaskSpec of another detector; same classes.",
    ),
    other_round: int | None = typer.Option(
        None, min=0, help="Or, with --home, the same task's model after so many rounds."
    ),
    to: Path | None = typer.Option(None, help="Write the comparison as JSON."),
    seed: int = SEED,
    form: Format = FORMAT,
) -> None:
    """Compare two models on the same images; the difference is drawn in pairs, the same patients for both."""
    from consilia.cli.model_record import comparison_lines, comparison_record, model_record, write_json
    from consilia.detection.comparison import compare as compare_findings
    from consilia.roles.models.use import ModelName, Other, find_on, named_model, other_model

    name = ModelName(home, task, rounds, model, spec)
    second_name = Other(other, other_spec, other_round)
    second_name.check(name)
    make_room(to)
    with named_model(name) as first:
        held_out = _held_out(first.spec, home, _section(data, patients), trained_on)
        found, record = find_on(first, held_out), model_record(first)
        with other_model(name, first, second_name) as second:
            same = second.spec == first.spec
            seen = held_out if same else _held_out(second.spec, home, _section(data, patients), trained_on)
            others, other_record = find_on(second, seen), model_record(second)
    compared = compare_findings(found, others, held_out.examples, seed=seed)
    document = comparison_record(compared, record, other_record, seed)
    document["leak_checked"] = held_out.leak_checked
    if to is not None:
        write_json(to, document)
    _show(form, document, (*_unchecked(held_out), *comparison_lines(compared)))


@app.command()
def predict(
    images: Path = typer.Argument(..., exists=True, file_okay=False, help="A folder of DICOM, PNG or JPEG."),
    to: Path = typer.Option(..., help="A folder for what is written."),
    home: Path | None = HOME,
    task: int | None = TASK,
    rounds: int | None = ROUND,
    model: Path | None = MODEL,
    spec: Path | None = SPEC,
    wanted: list[str] = typer.Option(
        ["coco", "report"], "--as", help="coco, overlays, sr or report; repeat it."
    ),
    min_score: float = typer.Option(0.3, min=0, max=1, help="Lowest score that is drawn and reported."),
    form: Format = FORMAT,
) -> None:
    """Find lesions: COCO JSON, drawn PNGs, DICOM SR (TID 1500), a report. Research use only, verified by nobody."""
    from consilia.errors import InputError
    from consilia.imaging.cases import numbered
    from consilia.roles.models.findings import find_everything, require_dicom, write_wanted
    from consilia.roles.models.pictures import read_pictures
    from consilia.roles.models.use import ModelName, data_of, named_model

    if unknown := set(wanted) - {"coco", "overlays", "sr", "report"}:
        raise InputError(f"--as: expected coco, overlays, sr or report, got {', '.join(sorted(unknown))}")
    _make_room_for(to, wanted)
    with named_model(ModelName(home, task, rounds, model, spec)) as named:
        pictures = read_pictures(named.spec, images)
        if "sr" in wanted:
            require_dicom(pictures)
        own = data_of(home)
        findings = find_everything(named, pictures, own.proposals if own else None)
    written, unreported = write_wanted(findings, to, wanted, min_score)
    findings = replace(findings, skipped=(*findings.skipped, *unreported))
    if "report" in wanted:
        written += _write_report(findings, to, min_score)
    Output("model", form)(
        "found",
        images=len(findings.images),
        findings=sum(len(found.above(min_score).scores) for found in findings.predictions),
        skipped=[item.name for item in numbered(findings.skipped)],
        files=[path.relative_to(to).as_posix() for path in written],
    )


def _make_room_for(to: Path, wanted: list[str]) -> None:
    make_room(to, folder=True)
    for kind in wanted:
        if kind in ("overlays", "sr"):
            make_room(to / kind, folder=True)
    for kind, name in (("coco", "findings.json"), ("report", "report.json"), ("report", "report.html")):
        if kind in wanted:
            make_room(to / name)


def _write_report(findings: Findings, to: Path, min_score: float) -> list[Path]:
    from consilia.cli.model_record import write_json
    from consilia.cli.report.model_page import write_findings_page
    from consilia.cli.report.report import png_base64
    from consilia.imaging.structured_report import draw_findings
    from consilia.roles.models.findings import findings_record

    record = findings_record(findings, min_score)
    pictures = [
        png_base64(draw_findings(image.pixels(), findings.reported(index, min_score)))
        for index, image in enumerate(findings.images)
    ]
    write_json(to / "report.json", record)
    write_findings_page(to / "report.html", record, pictures)
    return [to / "report.json", to / "report.html"]


@app.command()
def export(
    to: Path = typer.Argument(..., help="The ONNX file to write."),
    home: Path | None = HOME,
    task: int | None = TASK,
    rounds: int | None = ROUND,
    model: Path | None = MODEL,
    spec: Path | None = SPEC,
    images: Path | None = typer.Option(
        None, exists=True, file_okay=False, help="Compare on these pictures; default: five drawn ones."
    ),
    form: Format = FORMAT,
) -> None:
    """Write a model as ONNX, for square images of its size, and compare it with torch. Exit code 5 if they differ."""
    from consilia.roles.models.findings import export_model
    from consilia.roles.models.pictures import read_pictures
    from consilia.roles.models.use import ModelName, named_model

    make_room(to)
    with named_model(ModelName(home, task, rounds, model, spec)) as named:
        pictures = read_pictures(named.spec, images) if images else None
        agreed = export_model(named, to, pictures)
        Output("model", form)(
            "exported",
            file=to.name,
            digest=str(named.digest),
            findings_compared=agreed.findings,
            largest_deviation_px=agreed.largest_deviation_px,
        )


@app.command()
def card(
    home: Path = typer.Option(..., help="The home of a consortium or of a party; its chain file is read."),
    task: int = typer.Option(1, help="The task's place in the order of publication, or its id."),
    rounds: int | None = ROUND,
    measured: Path | None = typer.Option(
        None, exists=True, dir_okay=False, help="What `model eval --to FILE.json` wrote about this model."
    ),
    to: Path | None = typer.Option(
        None, help="Write FILE.md, and FILE.json beside it; default: print the text."
    ),
    form: Format = FORMAT,
) -> None:
    """Write a model card from the ledger: purpose, hospitals, examples, rounds, digests, measurements, limits."""
    from consilia.cli.model_record import write_json
    from consilia.roles.audit.view import open_view
    from consilia.roles.models.card import card_markdown, model_card
    from consilia.roles.models.catalogue import choose_model

    if to is not None:
        make_room(to.with_suffix(".md"))
        make_room(to.with_suffix(".json"))
    with open_view(home, None, None) as view:
        made = model_card(view, choose_model(view, task, rounds), _read_measured(measured))
    if to is None:
        lines = [to_json(made)] if form is Format.JSON else card_markdown(made).splitlines()
        typer.echo("\n".join(map(printable, lines)))
        return
    to.with_suffix(".md").write_text(card_markdown(made), encoding="utf-8")
    write_json(to.with_suffix(".json"), made)
    Output("model", form)("card written", file=to.with_suffix(".md").name, digest=made["digest"])


def _read_measured(path: Path | None) -> dict[str, Any] | None:
    from consilia.errors import InputError

    if path is None:
        return None
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"expected the JSON of `model eval` in {path.name}: {error}") from error
    if not isinstance(read, dict) or not {"map50", "patients", "images", "lesions"} <= read.keys():
        raise InputError(f"expected the JSON of `model eval` in {path.name}, it is something else")
    return read


def _section(data: Path, patients: Path | None) -> DataSection:
    from consilia.settings.sections import DataSection

    # no data of others: those are for training
    return DataSection(path=data, patients=patients, exchanged=data / ".exchanged")


def _held_out(spec: TaskSpec, home: Path | None, data: DataSection, trained_on: list[str]) -> HeldOut:
    """The held-out pictures, held against what is named and what the hospital of the home trains on."""
    from consilia.roles.models.use import data_of, read_held_out

    own, named = data_of(home), [_trained(item) for item in trained_on]
    return read_held_out(spec, data, [*named, *([own] if own else [])], own.proposals if own else None)


def _unchecked(held_out: HeldOut) -> tuple[str, ...]:
    if held_out.leak_checked:
        return ()
    return ("leak not checked: name what the model was trained on by --trained-on",)


def _trained(text: str) -> DataSection:
    folder, _, patients = text.partition("=")
    return _section(Path(folder), Path(patients) if patients else None)


def _write(path: Path, record: dict[str, Any]) -> None:
    from consilia.cli.model_record import write_json

    if path.suffix == ".html":
        from consilia.cli.report.model_page import write_page

        return write_page(path, record)
    write_json(path, record)


def _show(form: Format, record: dict[str, Any], lines: Iterable[str]) -> None:
    if form is Format.JSON:
        typer.echo(to_json(record))
        return
    for line in lines:
        typer.echo(printable(line))
