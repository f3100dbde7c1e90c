"""Fixtures of the embedded chain's tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.ledger.embedded.members import NOTES_SOURCE, Consortium, genesis


@dataclass(frozen=True)
class Contract:
    """A compiled contract."""

    abi: list[dict[str, Any]]
    bytecode: str


@pytest.fixture(scope="session")
def notes() -> Contract:
    """A contract with a view, an event and a revert reason."""
    from vyper import compile_code

    compiled = compile_code(NOTES_SOURCE, output_formats=["abi", "bytecode"])
    return Contract(compiled["abi"], compiled["bytecode"])


@pytest.fixture
def consortium(tmp_path: Path) -> Iterator[Consortium]:
    """Chains of one genesis, closed at the end."""
    opened = Consortium(tmp_path, genesis())
    yield opened
    opened.close()
