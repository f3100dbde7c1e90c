"""From what a hospital's home and the ledger know of a query to the report that a person reads."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from consilia.cli.report.consultation import (
    CaseShown,
    ConsultationReport,
    FoundBox,
    Hiding,
    ModelShown,
    Outcome,
    Record,
    Transaction,
)
from consilia.cli.report.report import png_base64
from consilia.protocols.assurance import ASSURANCES, AuditOutcome, Certificate, accuracy_interval, certify
from consilia.protocols.diagnosis import QueryState

NO_SCORE = "no score"
"""What the contract says of a server that saw the audit opened and let the time pass; not of one that was suspended."""

if TYPE_CHECKING:
    from consilia.protocols.code_book import CodeBook
    from consilia.protocols.consultation import Query
    from consilia.protocols.diagnosis import QueryImage
    from consilia.protocols.findings import Finding
    from consilia.roles.diagnosis.consultation import Consultation
    from consilia.roles.diagnosis.query_log import DiagnosisLog
    from consilia.values import Digest


def certificate_of(log: DiagnosisLog, model_digest: Digest) -> Certificate:
    """The rolling certificate of a model: every query that was scored, and every one whose audits met silence.

    A match that a challenge took away is a miss.
    """
    outcomes = []
    for query_id, query in log.queries.items():
        if query.offer.model_digest != model_digest:
            continue
        silent = query.state is QueryState.STOPPED and query.reason == NO_SCORE
        if query.answers or silent:
            number = int.from_bytes(query_id[:8], "big")
            outcomes.append(AuditOutcome(number, query.hospital, query.audits, query.matches, silent=silent))
    return certify(outcomes)


def record_of(certificate: Certificate) -> Record:
    """The certificate as a report shows it."""
    low, high = certificate.interval
    return Record(
        standing=certificate.standing.value,
        queries=len(certificate.outcomes),
        audits=certificate.audits,
        matches=certificate.matches,
        low=low,
        high=high,
    )


def consultation_report(consultation: Consultation, query: Query, book: CodeBook) -> ConsultationReport:
    """All that this hospital knows of one of its queries.

    Raises:
        InputError: this home did not ask it.
    """
    log = consultation.log()
    opinion, own = consultation.opinion(query, log), consultation.own(query)
    scored = query.matches if query.answers else None
    low, high = accuracy_interval(scored, query.audits) if scored is not None else (0.0, 1.0)
    found = {diagnosis.position: diagnosis.findings for _, diagnosis in opinion.diagnoses}
    hiding = json.loads(consultation.party.state.fact(f"consult/hiding/{query.query_id}") or "[]")
    certificate = certificate_of(log, query.offer.model_digest)
    return ConsultationReport(
        query=str(query.query_id),
        outcome="spoilt" if opinion.spoilt and not found else _outcome(query),
        asked_at=datetime.fromtimestamp(_asked_at(consultation, query), UTC),
        hospital=consultation.party.name,
        server=query.server,
        assurance=_assurance_name(query),
        images=query.images,
        audits=query.audits,
        required=query.threshold,
        hidden=query.images - query.audits,
        matches=scored,
        boxes_apart=query.scored_matches - query.matches,
        low=low,
        high=high,
        ended_in=query.ended_in.name.lower() if query.ended_in else "",
        reason="; ".join(filter(None, (query.reason, *opinion.spoilt))),
        price_wei=query.offer.price_wei,
        hospital_wei=query.hospital_wei,
        server_wei=query.server_wei,
        model=ModelShown(
            digest=str(query.offer.model_digest),
            title=query.offer.described.title,
            remarks=query.offer.described.remarks,
            record=record_of(certificate) if certificate.outcomes else None,
        ),
        hiding=tuple(Hiding.model_validate(item) for item in hiding),
        transactions=tuple(
            Transaction(step=step, hash=f"0x{digest}") for step, digest in opinion.transactions.items()
        ),
        cases=tuple(
            _case(query, own.images[position], found.get(position), bool(opinion.spoilt), book)
            for position in own.real
        ),
    )


def _outcome(query: Query) -> Outcome:
    if query.state is QueryState.RELEASED:
        return "answer"
    if query.state is QueryState.FAILED:
        return "failed"
    return "stopped" if query.state.over else "waiting"


def _asked_at(consultation: Consultation, query: Query) -> float:
    """When the question's package was written here."""
    file: Path = consultation.folder(query.query_id) / "query.bin"
    return file.stat().st_mtime


def _assurance_name(query: Query) -> str:
    for name, preset in ASSURANCES.items():
        if (preset.audits, preset.required) == (query.audits, query.threshold):
            return name
    return f"{query.threshold} of {query.audits}"


def _case(
    query: Query, image: QueryImage, found: tuple[Finding, ...] | None, some_spoilt: bool, book: CodeBook
) -> CaseShown:
    size = query.offer.described.image_format
    pixels = np.frombuffer(image.pixels, np.uint8).reshape(size.height, size.width)
    return CaseShown(
        name=image.name,
        width=size.width,
        height=size.height,
        image_png_base64=png_base64(pixels),
        findings=tuple(_box(item, book) for item in found or ()),
        readable=found is not None or not some_spoilt,
    )


def _box(item: Finding, book: CodeBook) -> FoundBox:
    named = book.finding(item.code)
    box = tuple(float(edge) for edge in item.box_xyxy) if any(item.box_xyxy) else None
    return FoundBox(code=item.code, en=named.name("en"), zh=named.name("zh"), score=item.score, xyxy=box)
