"""Memory and processor time of a process and of all below it, sampled from /proc by a thread of its own."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

INTERVAL_SECONDS = 0.2
_TICKS = os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


@dataclass(frozen=True)
class Sample:
    """All processes of the tree at one moment; processor seconds include those of processes that have ended."""

    time: float
    processes: int
    rss_mb: float
    pss_mb: float
    cpu_seconds: float


class TreeSampler:
    """Samples until closed. Between two samples it sees nothing: a shorter peak, or life, may escape it."""

    def __init__(self, pid: int) -> None:
        self._root = pid
        self._cpu: dict[tuple[int, int], float] = {}
        self.names: dict[tuple[int, int], str] = {}
        self.samples: list[Sample] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop sampling."""
        self._stop.set()
        self._thread.join()

    def cpu_by_name(self) -> dict[str, float]:
        """Processor seconds by kind of process."""
        seconds: dict[str, float] = {}
        for key, used in self._cpu.items():
            seconds[self.names[key]] = seconds.get(self.names[key], 0.0) + used
        return seconds

    def cpu_between(self, begin: float, end: float) -> float:
        """Processor seconds between two moments, interpolated between samples."""
        return self._cpu_at(end) - self._cpu_at(begin)

    def _cpu_at(self, moment: float) -> float:
        before = self.samples[0]
        for sample in self.samples:
            if sample.time >= moment:
                share = (moment - before.time) / (sample.time - before.time) if sample is not before else 0.0
                return before.cpu_seconds + share * (sample.cpu_seconds - before.cpu_seconds)
            before = sample
        return before.cpu_seconds

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_SECONDS):
            self.samples.append(self._sample())

    def _sample(self) -> Sample:
        pids = _tree(self._root)
        rss = pss = 0.0
        for pid, start, cpu_seconds in pids:
            key = (pid, start)
            if key not in self.names or cpu_seconds < 2:  # a forked child takes another name when it executes
                self.names[key] = _kind(pid) or self.names.get(key, "other")
            self._cpu[key] = cpu_seconds
            memory = _memory_mb(pid)
            rss, pss = rss + memory[0], pss + memory[1]
        return Sample(time.time(), len(pids), rss, pss, sum(self._cpu.values()))


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


def _memory_mb(pid: int) -> tuple[float, float]:
    """Resident and proportional set size."""
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0, 0.0
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("Rss:", "Pss:"))}
    return kib.get("Rss", 0) / 1024, kib.get("Pss", 0) / 1024


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
