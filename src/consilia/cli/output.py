"""What a command prints: rich text on a terminal, one line an event elsewhere, or one JSON object a line.

Titles, descriptions and reasons are written by others. None of them may steer the terminal, or pass for a line or a
fact that this program printed.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryFile

from rich.console import Console
from rich.text import Text

from consilia.errors import InputError
from consilia.values import Json

INDENT = "    "
"""Before every line that goes on with the one above; no line of our own begins so."""


def make_room(path: Path | None, *, folder: bool = False) -> None:
    """Make the folder of a file that a command will write, or a folder for its files, before its work and not after it.

    Raises:
        InputError: there can be no such folder, nothing can be written there, or the name is taken by another kind.
    """
    if path is None:
        return
    place = path if folder else path.parent
    try:
        if path.exists() and path.is_dir() != folder:
            taken, wanted = ("file", "folder") if folder else ("folder", "file")
            raise InputError(f"expected a {wanted} to write, {path.name} is a {taken}: choose another name")
        place.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=place):  # permissions do not tell: root has them also where nobody can write
            pass
    except OSError as error:
        raise InputError(
            f"expected a folder for {path.name}, it cannot be made or written to: {error.strerror}"
        ) from error


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
        """Print one step with its facts, uncut; a text of several lines as a block of its own."""
        if self.format is Format.JSON:
            line = {"time": round(time.time(), 3), "name": self.name, "step": step, **facts}
            sys.stdout.write(to_json(line) + "\n")
            sys.stdout.flush()
            return
        blocks = {key: value for key, value in facts.items() if isinstance(value, str) and is_block(value)}
        short = [f"{printable(key)}={_value(value)}" for key, value in facts.items() if key not in blocks]
        text = Text.assemble(
            (time.strftime("%H:%M:%S "), "dim"),
            (f"{printable(self.name):12} ", "cyan"),
            (printable(step), "bold"),
            "".join(f"  {fact}" for fact in short),
        )
        self._print(text, "")
        for key, value in blocks.items():
            self._print(Text(f"{INDENT}{printable(key)}:"), "")
            for row in value.splitlines():
                self._print(Text(printable(row)), 2 * INDENT)
        self.console.file.flush()

    def _print(self, text: Text, indent: str) -> None:
        """Print a line; on a terminal it is broken here, or its end could look like a line by somebody else."""
        rows = [text]
        if self.console.is_terminal:
            rows = list(text.wrap(self.console, max(self.console.width - 2 * len(INDENT), 20)))
        for number, row in enumerate(rows):
            self.console.print(Text.assemble(indent, INDENT if number else "", row))


def is_block(text: str) -> bool:
    """Whether a text has several lines."""
    return len(text.splitlines()) > 1


def printable(text: str) -> str:
    """Text by somebody else without what would steer a terminal: controls, escapes, marks that turn its direction."""
    return "".join(char if char.isprintable() else "�" for char in text)


def error_lines(message: str) -> Iterator[str]:
    """An error as lines for a terminal; only the first begins where our own lines begin."""
    for number, row in enumerate(f"consilia: {message}".splitlines()):
        yield INDENT * bool(number) + printable(row)


def to_json(value: Mapping[str, Json]) -> str:
    """One line of JSON that no terminal takes for commands: what cannot be printed is escaped."""
    written = json.dumps(value, ensure_ascii=False)
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in written)


def _value(value: Json) -> str:
    if isinstance(value, str):
        shown = printable(value)
        # quoted, where it could pass for further facts
        return json.dumps(shown, ensure_ascii=False) if re.search(r'=|"|  ', shown) else shown
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return f"{len(value)} item{'s' if len(value) != 1 else ''}"
    return printable(json.dumps(value, ensure_ascii=False))
