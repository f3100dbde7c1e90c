"""The answer of a query as DICOM objects of the study it was asked for, and their way back to the PACS."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from consilia.errors import InputError, UnusableImageError
from consilia.imaging.dicom_file import is_dicom
from consilia.imaging.structured_report import (
    OWN_SCHEME,
    CodedName,
    ReportedFinding,
    Reporter,
    annotated_capture,
    structured_report,
)
from consilia.protocols.code_book import CodeBook
from consilia.protocols.diagnosis import QueryState
from consilia.protocols.findings import Finding
from consilia.protocols.task_spec import TaskSpec
from consilia.roles.diagnosis.consultation import Opinion
from consilia.roles.state import State
from consilia.roles.training.windows import window_of


def results_of(opinion: Opinion, spec: TaskSpec, state: State) -> list[Any]:
    """A structured report and a Secondary Capture for each real case that came as DICOM and names its study.

    Raises:
        InputError: there is no answer, or the case's file is not where it was, or no case was DICOM.
    """
    query = opinion.query
    if query.state is not QueryState.RELEASED or not opinion.diagnoses:
        raise InputError("expected an answer to send to the PACS, there is none: ERROR is for people to read")
    kept = json.loads(state.fact(f"consult/sources/{query.query_id}") or "[]")
    sources = {name: (Path(path), (across, down)) for name, path, (across, down) in kept}
    reporter = Reporter(
        spec.model.detector,
        str(query.offer.model_digest),
        (f"The model matched {query.matches} of {query.audits} known cases, {query.threshold} were needed.",),
    )
    made: list[Any] = []
    for image, diagnosis in opinion.diagnoses:
        path, scale_xy = sources.get(image.name, (Path(image.name), (1.0, 1.0)))
        if not path.is_file():
            raise InputError(f"expected {image.name} where it was when it was asked: put it back")
        if is_dicom(path):
            found = [_reported(item, scale_xy, spec.code_book) for item in diagnosis.findings]
            with suppress(UnusableImageError):  # no study that an object could be of; the others have theirs
                report = structured_report(path, found, reporter)
                made += [report, annotated_capture(path, found, reporter, window_of(spec))]
    if not made:
        raise InputError("expected a study in DICOM with its UIDs: a PNG has no place in a PACS")
    return made


def _reported(item: Finding, scale_xy: tuple[float, float], book: CodeBook) -> ReportedFinding:
    named = book.finding(item.code)
    name = CodedName(str(item.code), OWN_SCHEME, named.name()[:64])
    if named.coding is not None:
        name = CodedName(named.coding.value, named.coding.scheme, named.coding.meaning)
    x1, y1, x2, y2 = (edge / scale for edge, scale in zip(item.box_xyxy, scale_xy * 2, strict=True))
    return ReportedFinding((x1, y1, x2, y2), name, item.score)
