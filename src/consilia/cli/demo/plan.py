"""What a demo run is asked to do, kept in its home so that a second run resumes this one or refuses."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from consilia.errors import HomeError

PLAN_FILE = "demo.json"
LOCK_FILE = "demo.lock"
REPORT_FILE = "report.json"


class Plan(BaseModel):
    """The options of a run that decide its result."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hospitals: int
    rounds: int
    local_epochs: float
    image_size: int
    learning_rate: float
    batch_size: int
    detector: str
    backbone: str = ""
    seed: int
    data: Path | None
    application: str
    phantom_patients: int
    ports: tuple[int, ...] = ()
    started_at: int = 0


def next_home(folder: Path) -> Path:
    """The first free `run-NNN` in a folder."""
    number = 1
    while (folder / f"run-{number:03d}").exists():
        number += 1
    return folder / f"run-{number:03d}"


def settle_plan(home: Path, wanted: Plan) -> Plan:
    """Keep the plan of a new home; hand back the kept one where the same run began here earlier.

    Raises:
        HomeError: the home holds something else, another run, or a finished one.
    """
    file = home / PLAN_FILE
    if not file.exists():
        if any(path.name != LOCK_FILE for path in home.iterdir()):
            raise HomeError(f"{home.name} is not empty and holds no demo; choose another --home")
        partial = file.with_suffix(".partial")
        partial.write_text(wanted.model_dump_json(indent=1) + "\n")
        partial.replace(file)
        return wanted
    try:
        kept = Plan.model_validate_json(file.read_bytes())
    except ValidationError as error:
        raise HomeError(f"{PLAN_FILE} of {home.name} is damaged: {error}; choose another --home") from error
    if (home / REPORT_FILE).exists():
        raise HomeError(f"{home.name} holds a finished run; read its report.html, or choose another --home")
    same = kept.model_copy(update={"ports": wanted.ports, "started_at": wanted.started_at})
    if same != wanted:
        differing = [name for name in Plan.model_fields if getattr(same, name) != getattr(wanted, name)]
        raise HomeError(
            f"{home.name} holds an unfinished run with other options ({', '.join(differing)}); "
            "give the same options to resume it, or choose another --home"
        )
    return kept


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Hold a home for one run at a time; the lock ends with the process, however that ends.

    Raises:
        HomeError: another run holds it.
    """
    descriptor = os.open(home / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HomeError(
                f"another demo is running in {home.name}; wait for it or choose another --home"
            ) from error
        yield
    finally:
        os.close(descriptor)
