"""The command line in the test's own process, on the homes of a consortium."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from consilia.cli import main
from tests.consortium import Consortium


class Cli:
    """Runs `consilia ... --format json` and collects what it says."""

    def __init__(self, town: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
        self._town, self._patch, self._capsys = town, monkeypatch, capsys

    def __call__(self, *words: str, home: str | None = "hospital-1", code: int = 0) -> list[dict[str, Any]]:
        out = self.text(*words, "--format", "json", home=home, code=code)
        return [json.loads(line) for line in out.splitlines()]

    def text(self, *words: str, home: str | None = "hospital-1", code: int = 0) -> str:
        """What a person reads; what went to the error stream is in `errors`."""
        where = [] if home is None else ["--home", str(self._town.home / home)]
        self._patch.setattr(sys, "argv", ["consilia", *words, *where])
        with pytest.raises(SystemExit) as end:
            main()
        out, self.errors = self._capsys.readouterr()
        assert (end.value.code or 0) == code, self.errors
        return out


def step(said: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """The first line that reports a step."""
    return next(line for line in said if line["step"] == name)
