"""Second opinions as hospitals get them, for the tests to draw: no figure in them is a result."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from consilia.cli.report.consultation import (
    CaseShown,
    ConsultationReport,
    FoundBox,
    Hiding,
    ModelShown,
    Record,
    Transaction,
)
from consilia.cli.report.report import png_base64
from consilia.protocols.assurance import STANDARD, accuracy_interval

STEPS = ("Asked", "Answered", "AuditOpened", "Scored", "Accepted", "AnswersReleased", "QueryClosed")
FEE_WEI = 10**16


def sample_consultation(outcome: str = "answer", **changes: object) -> ConsultationReport:
    """One that ended so: answer, failed, stopped, spoilt or waiting."""
    matches = {"answer": 18, "failed": 11, "spoilt": 18}.get(outcome)
    low, high = accuracy_interval(matches, STANDARD.audits) if matches is not None else (0.0, 1.0)
    steps = {"answer": 7, "failed": 4, "stopped": 2, "spoilt": 7, "waiting": 1}[outcome]
    back_wei = {"answer": 0, "failed": FEE_WEI, "stopped": 2 * FEE_WEI, "spoilt": 0, "waiting": 0}[outcome]
    found = (
        FoundBox(code=1, en="intracranial haemorrhage", zh="颅内出血", score=0.93, xyxy=(40, 50, 72, 84)),
    )
    return ConsultationReport(
        query="5f" * 32,
        outcome=outcome,
        asked_at=datetime(2026, 11, 25, 4, 30, tzinfo=UTC),
        hospital="hospital-1",
        server="0x" + "Ab" * 20,
        assurance="standard",
        images=STANDARD.images,
        audits=STANDARD.audits,
        required=STANDARD.required,
        hidden=12,
        matches=matches,
        low=low,
        high=high,
        ended_in="opened" if outcome == "stopped" else "",
        reason="no score" if outcome == "stopped" else "",
        price_wei=FEE_WEI,
        hospital_wei=back_wei,
        server_wei=FEE_WEI if outcome in ("answer", "spoilt") else 0,
        model=ModelShown(
            digest="c4" * 32,
            title="haemorrhage, mass on CT, 4 hospitals",
            remarks="findings from score 0.35",
            record=Record(standing="certified", queries=6, audits=120, matches=111, low=0.874, high=0.96),
        ),
        hiding=(Hiding(verdict="admit", auc=0.58, guess=0.13, feature="noise"),),
        transactions=tuple(
            Transaction(step=step, hash="0x" + f"{number:02x}" * 32)
            for number, step in enumerate(STEPS[:steps])
        ),
        cases=(_case(found if outcome == "answer" else ()),),
    ).model_copy(update=changes)


def _case(found: tuple[FoundBox, ...]) -> CaseShown:
    y, x = np.mgrid[-1:1:160j, -1:1:160j]
    head = np.where(np.hypot(x / 0.7, y / 0.85) < 1, 110, 0) + np.where(
        np.hypot(x + 0.3, y + 0.15) < 0.2, 90, 0
    )
    return CaseShown(
        name="slice-07.dcm",
        width=160,
        height=160,
        image_png_base64=png_base64(head.astype(np.uint8)),
        findings=found,
    )
