"""What a hospital reads of a second opinion: the values behind the terminal's lines, the page and the JSON.

Amounts are wei, boxes pixels of the drawn image. It holds the image and what was found: for the hospital's eyes alone.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from consilia.cli.report.results import Count, Part, Unit, Wei
from consilia.errors import InputError

Outcome = Literal["answer", "failed", "stopped", "spoilt", "waiting"]
"""`failed`: too few audits matched. `stopped`: somebody was silent. `spoilt`: no report of a case could be read.
All three are ERROR: no diagnosis."""


class FoundBox(Part):
    """One finding of the model, in both languages; no box: it is of the image as a whole."""

    code: Annotated[int, Field(ge=1, le=65535)]
    en: str
    zh: str
    score: Unit
    xyxy: tuple[float, float, float, float] | None = None


class CaseShown(Part):
    """One real case as it was asked about, with what the model found on it."""

    name: str
    width: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0)]
    image_png_base64: Annotated[str, Field(pattern=r"^[A-Za-z0-9+/]+={0,2}$")]
    findings: tuple[FoundBox, ...] = ()
    readable: bool = True
    """False: the server's report of this case is garbled, and there is no diagnosis."""


class Record(Part):
    """The rolling certificate of the model: all audits of all queries."""

    standing: Literal["undecided", "certified", "revoked"]
    queries: Count
    audits: Count
    matches: Count
    low: Unit
    high: Unit


class ModelShown(Part):
    """Who answered: the model's digest on the ledger, and its card."""

    digest: str
    title: str = ""
    remarks: str = ""
    record: Record | None = None


class Transaction(Part):
    """A step of the query on the ledger."""

    step: str
    hash: str


class Hiding(Part):
    """The membership check: how well the covers hid the case."""

    verdict: Literal["admit", "warn", "refuse"]
    auc: Unit
    guess: Unit
    feature: str


class ConsultationReport(Part):
    """One second opinion, from question to end."""

    schema_version: Literal[1] = 1
    query: str
    outcome: Outcome
    asked_at: datetime
    hospital: str
    server: str
    assurance: str
    images: Count
    audits: Count
    required: Count
    hidden: Count
    """How many images are never opened, the real cases among them."""
    matches: int | None = None
    """m, after challenges; None where it never came to a score."""
    boxes_apart: Count = 0
    """Audits whose codes were right and whose boxes were shown to be elsewhere, which took their matches away."""
    low: Unit = 0.0
    high: Unit = 1.0
    """Clopper-Pearson bounds of the server's accuracy from this query, each with 95 %."""
    ended_in: str = ""
    """The step that somebody did not take, where it was stopped."""
    reason: str = ""
    price_wei: Wei
    hospital_wei: Wei = 0
    """What came back to the hospital: its fee, and a bond that the server lost."""
    server_wei: Wei = 0
    model: ModelShown
    hiding: tuple[Hiding, ...] = ()
    transactions: tuple[Transaction, ...] = ()
    cases: tuple[CaseShown, ...] = ()

    def to_json(self) -> str:
        """Indented JSON text."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ConsultationReport:
        """What `to_json` wrote.

        Raises:
            InputError: it is something else; the message names the first wrong key.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(step) for step in first["loc"]) or "the text"
            raise InputError(f"expected a consultation, but {where}: {first['msg']}") from error
