"""Fixtures of the roles' tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.consortium import Consortium, consortium


@pytest.fixture
def three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """A server and three hospitals."""
    with consortium(tmp_path, monkeypatch, 3) as made:
        yield made


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """A server and four hospitals."""
    with consortium(tmp_path, monkeypatch, 4) as made:
        yield made
