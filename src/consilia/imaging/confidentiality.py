"""What DICOM asks of a de-identifier: table E.1-1 of PS3.15 Annex E as data, and the codes of its options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources

EDITION = "PS3.15 2026c"


@dataclass(frozen=True)
class Confidential:
    """One row of the table."""

    tag: int
    keyword: str
    """Empty where pydicom's dictionary does not know the attribute."""
    basic: str
    """X, Z, D, U, or several with slashes: then the attribute's type in its IOD decides."""
    patient_characteristics: str
    """K or C where the option Retain Patient Characteristics differs, else empty."""

    @property
    def may_be_empty(self) -> bool:
        """Whether the attribute stays, without a value."""
        return "X" not in self.basic and "Z" in self.basic


@cache
def table() -> dict[int, Confidential]:
    """The rows by tag."""
    text = resources.files("consilia.imaging").joinpath("ps3_15_table_e1_1.tsv").read_text("ascii")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return {row.tag: row for row in map(_row, rows)}


def _row(fields: list[str]) -> Confidential:
    group, element = fields[0].split(",")
    keyword = "" if fields[1] == "-" else fields[1]
    return Confidential(int(group + element, 16), keyword, fields[2], fields[3] if len(fields) > 3 else "")


METHODS = (
    ("113100", "Basic Application Confidentiality Profile"),
    ("113101", "Clean Pixel Data Option"),
    ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    ("113108", "Retain Patient Characteristics Option"),
)
"""Code value and meaning of what is applied, for (0012,0064); PS3.16 CID 7050, scheme DCM."""
