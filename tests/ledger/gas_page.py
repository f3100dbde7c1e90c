"""The gas that the pages name, to be compared with what a run measures: figures that nobody measures grow old."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"
TOLERANCE = 0.04
"""Zero bytes in digests cost less, and a round that opens in the second of the one before saves 2,800 gas."""


def table_after(page: str, words: str) -> dict[str, list[int | None]]:
    """The rows of the first table after some words of a page: the numbers of each cell, by the first one's text."""
    text = (DOCS / page).read_text()
    table = re.search(r"(?:^\|.*\n)+", text[text.index(words) :], re.MULTILINE)
    assert table is not None
    rows = [[cell.strip(" *") for cell in line.split("|")[1:-1]] for line in table[0].splitlines()[2:]]
    return {name: [int(cell.replace(",", "")) if cell else None for cell in cells] for name, *cells in rows}


def assert_as_told(
    told: Mapping[str, Sequence[int | None]], measured: Mapping[str, Sequence[int | None]]
) -> None:
    """Whether a page's rows are those that were measured; a cell that is None is not compared."""
    assert told.keys() == measured.keys()
    wrong = {
        name: (told[name], cells)
        for name, cells in measured.items()
        for page, now in zip(told[name], cells, strict=True)
        if page is not None and now is not None and abs(page - now) > TOLERANCE * now
    }
    assert not wrong, f"expected the page to tell what was measured (row: page, measured): {wrong}"
