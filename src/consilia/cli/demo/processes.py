"""The processes of a demo: started with pipes for what they report, watched, and stopped together."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilia.cli.lifetime import PARENT_VARIABLE
from consilia.errors import ConsiliaError

STOP_SECONDS = 15.0


@dataclass(frozen=True)
class Step:
    """One line that a party reported."""

    time: float
    name: str
    step: str
    facts: Mapping[str, Any]


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[str]
    log: Path
    expected_to_end: bool
    reader: threading.Thread = field(init=False)


class Processes:
    """Starts the parties, each as a session of its own, and hands on what they report."""

    def __init__(self) -> None:
        self._children: list[_Child] = []
        self._steps: queue.Queue[Step | None] = queue.Queue()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, command: Sequence[str], log: Path, *, ends: bool = False) -> None:
        """Start a party; `ends` says that it may end by itself, with code 0."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", PARENT_VARIABLE: str(os.getpid())}
        with log.open("ab") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", *command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
                start_new_session=True,  # Ctrl-C reaches this process alone, which then stops them in order
            )
        child = _Child(name, process, log, ends)
        child.reader = threading.Thread(target=self._read, args=(child,), daemon=True)
        self._children.append(child)
        child.reader.start()

    def steps(self) -> Iterator[Step]:
        """What the parties report, as it comes.

        Raises:
            ConsiliaError: a party ended that should not have.
        """
        while True:
            step = self._steps.get()
            if step is not None:
                yield step
            for child in self._children:
                code = child.process.poll()
                if code is not None and not (child.expected_to_end and code == 0) and self._steps.empty():
                    raise ConsiliaError(f"{child.name} ended with code {code}: {_last_lines(child.log)}")

    def stop(self) -> None:
        """End all parties: politely, then by force, with every process that they started."""
        for child in self._children:
            _signal(child, signal.SIGTERM)
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(STOP_SECONDS)
            _signal(child, signal.SIGKILL)
            child.process.wait()
        self._children.clear()

    def _read(self, child: _Child) -> None:
        assert child.process.stdout is not None
        for line in child.process.stdout:
            try:
                facts = json.loads(line)
                step = Step(facts.pop("time"), facts.pop("name"), facts.pop("step"), facts)
            except (ValueError, KeyError, AttributeError):
                continue  # a library's own chatter
            self._steps.put(step)
        child.process.wait()
        self._steps.put(None)  # wakes the reader of steps(), which looks at how it ended


def _signal(child: _Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child.process.pid, number)


def _last_lines(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return " | ".join(lines[-3:]) or f"see {log.name}"
