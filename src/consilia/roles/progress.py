"""What a role says while it works: one named step at a time, with facts that a person or a program can read."""

from __future__ import annotations

from typing import Protocol

from consilia.values import Json


class Report(Protocol):
    """Takes a step and its facts; `cli` turns them into rich text, plain lines or JSON."""

    def __call__(self, step: str, **facts: Json) -> None:
        """Report one step."""


def silent(step: str, **facts: Json) -> None:
    """Report to nobody."""
