"""Memory and processor time of a process and of all below it, sampled from /proc by a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

INTERVAL_SECONDS = 0.2
SAMPLES_A_PSS = 5
"""The kernel walks all pages of a process to tell its PSS, and the process waits meanwhile."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Sample:
    """All processes of the tree at one moment; processor seconds include those of processes that have ended."""

    time: float
    processes: int
    rss_mb: float
    pss_mb: float
    cpu_seconds: dict[str, float]
    """By kind of process."""


class TreeSampler:
    """Samples until closed. Between two samples it sees nothing: a shorter peak, or life, may escape it."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._cpu: dict[tuple[int, int], float] = {}
        self._kinds: dict[tuple[int, int], str] = {}
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def cpu_between(self, begin: float, end: float) -> dict[str, float]:
        """Processor seconds by kind of process between two moments, interpolated between samples."""
        before, after = self._cpu_at(begin), self._cpu_at(end)
        return {kind: seconds - before.get(kind, 0.0) for kind, seconds in after.items()}

    def _cpu_at(self, moment: float) -> dict[str, float]:
        earlier = self.samples[0]
        for later in self.samples[1:]:
            if later.time >= moment:
                share = (moment - earlier.time) / (later.time - earlier.time)
                return {
                    kind: seconds - (1 - share) * (seconds - earlier.cpu_seconds.get(kind, 0.0))
                    for kind, seconds in later.cpu_seconds.items()
                }
            earlier = later
        return earlier.cpu_seconds

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        processes = _tree(self._root)
        walk = len(self.samples) % SAMPLES_A_PSS == 0
        rss = pss = 0.0
        for pid, start, cpu_seconds in processes:
            key = (pid, start)
            if (
                key not in self._kinds or cpu_seconds < 2
            ):  # a forked child takes another name when it executes
                self._kinds[key] = _kind(pid) or self._kinds.get(key, "other")
            self._cpu[key] = cpu_seconds
            rss += _rss_mb(pid)
            pss += _pss_mb(pid) if walk else 0.0
        by_kind: dict[str, float] = {}
        for key, cpu_seconds in self._cpu.items():
            by_kind[self._kinds[key]] = by_kind.get(self._kinds[key], 0.0) + cpu_seconds
        if not walk:
            pss = self.samples[-1].pss_mb
        return Sample(time.time(), len(processes), rss, pss, by_kind)


def _tree(root: int) -> list[tuple[int, int, float]]:
    """Process number, start time and own processor seconds of the root and all below it."""
    children: dict[int, list[int]] = {}
    facts: dict[int, tuple[int, float]] = {}
    for folder in _PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has just ended
        pid = int(folder.name)
        children.setdefault(int(fields[1]), []).append(pid)
        facts[pid] = (int(fields[19]), (int(fields[11]) + int(fields[12])) / _TICKS)
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        todo += children.get(pid, [])
        if pid in facts:
            found.append((pid, *facts[pid]))
    return found


def _rss_mb(pid: int) -> float:
    """Resident set size."""
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE_BYTES / 2**20
    except OSError:
        return 0.0


def _pss_mb(pid: int) -> float:
    """Proportional set size: a page that several processes share counts once in all."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _kind(pid: int) -> str:
    try:
        command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
    kinds = {
        "ballast_hospital": "hospitals",
        "consilia server": "server",
        "embedded/seal.py": "proof of work",
        "consilia.ledger.embedded": "nodes",
        "consortium.py": "launcher",
        "plain_loop": "loop",
    }
    return next((kind for part, kind in kinds.items() if part in command), "other")
