"""What a command prints: rich text on a terminal, one line an event elsewhere, or one JSON object a line."""

from __future__ import annotations

import json
import sys
import time
from enum import StrEnum

from rich.console import Console
from rich.text import Text

from consilia.values import Json


class Format(StrEnum):
    """How a command speaks."""

    TEXT = "text"
    JSON = "json"


class Output:
    """Prints steps as they happen; one of these is the `report` of a role."""

    def __init__(self, name: str, form: Format) -> None:
        self.name = name
        self.format = form
        self.console = Console(highlight=False, soft_wrap=True)

    def __call__(self, step: str, **facts: Json) -> None:
        """Print one step with its facts."""
        if self.format is Format.JSON:
            line = {"time": round(time.time(), 3), "name": self.name, "step": step, **facts}
            sys.stdout.write(json.dumps(line, ensure_ascii=False) + "\n")
            sys.stdout.flush()
            return
        text = Text.assemble(
            (time.strftime("%H:%M:%S "), "dim"),
            (f"{self.name:12} ", "cyan"),
            (step, "bold"),
            ("  " + "  ".join(f"{key}={_short(value)}" for key, value in facts.items()) if facts else "", ""),
        )
        self.console.print(text)
        self.console.file.flush()


def _short(value: Json) -> str:
    if isinstance(value, str):
        return value if len(value) <= 80 else value[:77] + "…"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"{len(value)} item{'s' if len(value) != 1 else ''}"
    return json.dumps(value, ensure_ascii=False)
