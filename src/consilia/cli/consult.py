"""`consilia consult`: a second opinion on a study, without showing whose it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format, Output, to_json

if TYPE_CHECKING:
    from consilia.protocols.consultation import Offer, Query
    from consilia.roles.diagnosis.consultation import Consultation
    from consilia.settings import HospitalSettings

app = typer.Typer(help="Ask for a second opinion that hides the patient.", no_args_is_help=True)

HOME = typer.Option(..., help="The hospital's home, with its consilia.toml.")
PACS = typer.Option("", help="Send an answer to this DICOMweb root as DICOM SR and Secondary Capture.")
FORMAT = typer.Option(Format.TEXT, "--format", help="How to report.")
QUERY = typer.Argument(..., help="The query's id, or its first digits.")


@app.callback()
def _group() -> None:
    """Ask for a second opinion that hides the patient."""


@app.command()
def ask(
    study: Path = typer.Argument(..., exists=True, help="A CT slice (DICOM), a folder of them, or a PNG."),
    home: Path = HOME,
    assurance: str = typer.Option("standard", help="standard (20 audits) or high (41)."),
    offer: int | None = typer.Option(None, help="The offer's number; default: the only one."),
    model: str = typer.Option("", help="Or the model's digest, or its first digits."),
    archive: Path | None = typer.Option(
        None,
        exists=True,
        file_okay=False,
        help="Labelled images that no training used; default: the own data.",
    ),
    spec: Path | None = typer.Option(
        None,
        exists=True,
        dir_okay=False,
        help="The model's TaskSpec (TOML), from its server, where no task of the ledger registered the model.",
    ),
    text_is_harmless: bool = typer.Option(
        False, help="A person looked: what looks like text in the study's images names nobody."
    ),
    wait_seconds: float = typer.Option(600.0, min=0, help="Wait so long for the answer."),
    pacs: str = PACS,
    output: Format = FORMAT,
) -> None:
    """Hide the study's case among images of the archive, ask, and show what comes of it.

    Exit code 1 is ERROR, no diagnosis; 4 is an archive that cannot hide the case, or a case that may show a name.
    """
    from consilia.errors import InputError
    from consilia.protocols.assurance import ASSURANCES
    from consilia.protocols.task_spec import parse_toml
    from consilia.roles.diagnosis.asking import ask as ask_once
    from consilia.roles.diagnosis.asking import missing_wei, prepare_query, read_study, spec_of
    from consilia.roles.training.local_training import read_training_data
    from consilia.settings.sections import DataSection
    from consilia.values import Role

    if assurance not in ASSURANCES:
        raise InputError(f"--assurance: expected {' or '.join(ASSURANCES)}, got {assurance}")
    consultation, settings = open_consultation(home, output)
    party = consultation.party
    if not party.ledger.registry.is_active(party.address, Role.HOSPITAL):
        raise InputError(
            "this hospital is not in good standing, its query would be refused; nothing was spent"
        )
    preset, chosen = ASSURANCES[assurance], _choose(consultation.offers(), offer, model)
    own_spec = None if spec is None else parse_toml(spec.read_bytes())
    task_spec = spec_of(chosen, party.tasks(), party.state, own_spec)
    cases = read_study(study, task_spec)
    data = settings.data if archive is None else DataSection(path=archive)
    known = read_training_data(task_spec, data).images
    prepared = prepare_query(
        cases,
        known,
        task_spec,
        preset,
        party.state,
        text_is_harmless=text_is_harmless,
        missing_wei=missing_wei(consultation, chosen),
    )
    for item in prepared.hiding:
        step = "case stands out" if item.verdict.value == "warn" else "case is hidden"
        party.report(step, auc=item.auc, best_guess=item.guess, feature=item.feature)
    for case in prepared.asked_before:
        party.report("patient was in a query before", case=case, risk="the server may link the two")
    query_id = ask_once(consultation, chosen, prepared, preset, task_spec)
    _await(consultation, str(query_id), wait_seconds)
    _show(consultation, str(query_id), output, pacs)


@app.command()
def show(query: str = QUERY, home: Path = HOME, pacs: str = PACS, output: Format = FORMAT) -> None:
    """What came of a query: the answer and what it is worth, or ERROR and what to do. Writes the page too."""
    _show(open_consultation(home, output)[0], query, output, pacs)


@app.command()
def inbox(home: Path = HOME, output: Format = FORMAT) -> None:
    """Queries that still wait for a step, this hospital's or the server's."""
    consultation, _ = open_consultation(home, output)
    waiting = [query for query in _own(consultation) if not query.state.over]
    for query in waiting:
        consultation.party.report("waits", **_facts(query), deadline=query.deadline)
    if not waiting and output is Format.TEXT:
        consultation.party.report("nothing waits")


@app.command("ls")
def list_queries(home: Path = HOME, output: Format = FORMAT) -> None:
    """All queries of this hospital."""
    consultation, _ = open_consultation(home, output)
    queries = _own(consultation)
    for query in queries:
        consultation.party.report("query", **_facts(query))
    if not queries and output is Format.TEXT:
        consultation.party.report("no queries yet")


def open_consultation(home: Path, output: Format) -> tuple[Consultation, HospitalSettings]:
    """A hospital's part in queries, on its home; its `hospital run` may be at work beside it."""
    from consilia.roles.diagnosis.consultation import Consultation
    from consilia.roles.party import Party
    from consilia.settings import HospitalSettings, load

    settings = load(HospitalSettings, home)
    return Consultation(Party(home, settings, Output(settings.name, output))), settings


def _own(consultation: Consultation) -> list[Query]:
    return [q for q in consultation.log().queries.values() if q.hospital == consultation.party.address]


def _facts(query: Query) -> dict[str, str | int]:
    return {
        "query": str(query.query_id),
        "state": query.state.name.lower(),
        "model": str(query.offer.model_digest),
        "matches": f"{query.matches}/{query.audits}" if query.answers else "",
        "price_wei": str(query.offer.price_wei),
    }


def _choose(offers: list[Offer], number: int | None, model: str) -> Offer:
    from consilia.errors import InputError

    found = [
        offer
        for offer in offers
        if number in (None, offer.offer_id) and str(offer.model_digest).startswith(model.lower())
    ]
    if len(found) != 1:
        known = "; ".join(f"{o.offer_id}: {o.described.title}, {o.price_wei} wei" for o in offers) or "none"
        raise InputError(f"expected one offer, {len(found)} fit; give --offer or --model. On offer: {known}")
    return found[0]


def _await(consultation: Consultation, query_id: str, wait_seconds: float) -> None:
    """Take the hospital's steps until the query is over or the time is up."""
    import time

    until = time.monotonic() + wait_seconds
    for _ in consultation.party.follow():
        log = consultation.advance()
        if log.find(query_id).state.over or time.monotonic() > until:
            return


def _show(consultation: Consultation, query_id: str, output: Format, pacs: str) -> None:
    from consilia.cli.report.consulted import consultation_report
    from consilia.cli.report.page import write_consultation
    from consilia.cli.report.terminal import print_consultation
    from consilia.roles.diagnosis.asking import spec_of

    party = consultation.party
    query = consultation.log().find(query_id)
    spec = spec_of(query.offer, party.tasks(), party.state)
    shown = consultation_report(consultation, query, spec.code_book)
    paths = write_consultation(shown, consultation.folder(query.query_id))
    if output is Format.JSON:
        typer.echo(to_json(shown.model_dump(mode="json")))
    else:
        print_consultation(shown, Output(party.name, output).console)
        party.report("second opinion", html=str(paths.html), json=str(paths.json))
    if pacs and shown.outcome == "answer":
        from consilia.roles.diagnosis.results import results_of
        from consilia.roles.dicomweb import DicomWeb, send

        opinion = consultation.opinion(query)
        made = results_of(opinion, spec, party.state)
        send(DicomWeb(pacs), made)
        without = len(opinion.diagnoses) - len(made) // 2  # a picture, or a slice that names no study
        party.report("sent to the PACS", instances=len(made), cases_left_out=without)
    if shown.outcome in ("failed", "stopped", "spoilt"):
        raise typer.Exit(1)
