"""Seconds, memory and processor time a round, beside a plain loop in one process that does the same sums.

    python benchmarks/run.py [--only rounds|gas|envelopes|training|answering] [--megabytes 1 160] [--rounds 5]
        [--hospitals 4] [--json FILE]

Fails when a final model is not, to the last bit, the average that must come out. Method: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import answering
import envelope
import training_speed
from gas import measure as measure_gas
from gas import print_gas
from opinion_gas import measure as measure_opinion
from opinion_gas import print_opinions
from rich.console import Console
from rich.table import Table
from sampling import TreeSampler

FOLDER = Path(__file__).resolve().parent
OPINIONS = ((20, 12), (41, 23))
"""Audit and hidden images of the two presets."""
PARTS = ("rounds", "gas", "envelopes", "training", "answering")


@dataclass(frozen=True)
class Measured:
    """One job: what it took, and how busy the machine was with other things meanwhile."""

    job: str
    megabytes: float
    set_up_seconds: float
    start_up_seconds: float
    round_seconds: tuple[float, ...]
    round_cpu_seconds: tuple[dict[str, float], ...]
    """By kind of process."""
    job_seconds: float
    peak_rss_mb: float
    peak_pss_mb: float
    processes: int
    cpu_seconds: dict[str, float]
    phase_seconds: dict[str, float]
    load_before: float
    others_share: float
    """Part of all cores' time that went to processes outside the job."""

    @property
    def typical_seconds(self) -> float:
        """The median round after the first."""
        return median(self.round_seconds[1:] or self.round_seconds)

    @property
    def typical_cpu_seconds(self) -> float:
        """The same of its processor time."""
        return median(sum(used.values()) for used in self.round_cpu_seconds[1:] or self.round_cpu_seconds)


def touch_memory(home: Path, needed_bytes: float) -> None:
    """Fill free memory with the pages of a file, as many as the jobs will write, and let go of them.

    On a virtual machine a page that nobody has used yet comes from the host, which costs ten times as much as
    writing it: without this the first job of the day pays for all that follow.
    """
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free_bytes = int(fields["MemFree"].split()[0]) * 1024
    block, path = bytes(1 << 20), home / "memory"
    with path.open("wb") as file:
        for _ in range(0, int(min(needed_bytes, free_bytes * 0.75)), len(block)):
            file.write(block)
    path.unlink()


def measure(job: str, megabytes: float, hospitals: int, rounds: int, home: Path) -> Measured:
    """Run one job in a process of its own and sample it from outside.

    Raises:
        SystemExit: the job failed, or its model was wrong.
    """
    home.mkdir()
    command = [
        sys.executable,
        str(FOLDER / f"{job}.py"),
        str(home),
        str(megabytes),
        str(hospitals),
        str(rounds),
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(FOLDER),
    }
    load, busy, began = os.getloadavg()[0], _busy_seconds(), time.monotonic()
    process = subprocess.Popen(command, env=environment)
    sampler = TreeSampler(process.pid)
    try:
        code = process.wait()
    finally:
        if process.poll() is None:  # interrupted: it ends its own children
            process.send_signal(signal.SIGTERM)
            process.wait()
        sampler.close()
    if code != 0:
        raise SystemExit(f"{job} at {megabytes:g} MB failed with code {code}; its logs are in {home}")
    seconds, busy = time.monotonic() - began, _busy_seconds() - busy
    result = json.loads((home / "rounds.json").read_text())
    times, samples = result["times"], sampler.samples
    rounds_between = list(pairwise(times))
    cpu_seconds = samples[-1].cpu_seconds
    return Measured(
        job=job,
        megabytes=megabytes,
        set_up_seconds=result.get("set_up_seconds", 0.0),
        start_up_seconds=result.get("start_up_seconds", 0.0),
        round_seconds=tuple(end - begin for begin, end in rounds_between),
        round_cpu_seconds=tuple(sampler.cpu_between(begin, end) for begin, end in rounds_between),
        job_seconds=seconds,
        peak_rss_mb=max(sample.rss_mb for sample in samples),
        peak_pss_mb=max(sample.pss_mb for sample in samples),
        processes=max(sample.processes for sample in samples),
        cpu_seconds=cpu_seconds,
        phase_seconds=phases(result.get("steps", [])),
        load_before=load,
        others_share=max(0.0, busy - sum(cpu_seconds.values())) / seconds / (os.cpu_count() or 1),
    )


def _busy_seconds() -> float:
    """Processor seconds that the whole machine has used."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def phases(steps: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The median seconds of each phase that the parties report, over all hospitals and all rounds after the first."""
    found: dict[str, list[float]] = {}
    for step in steps:
        who = "server" if step["name"] == "server" else "hospital"
        if step["facts"].get("round_index", 0) == 0:
            continue
        for name, value in step["facts"].items():
            if name.endswith("_seconds"):
                found.setdefault(f"{who}: {name.removesuffix('_seconds')}", []).append(value)
    return {name: median(values) for name, values in found.items()}


def print_report(console: Console, pairs: Sequence[tuple[Measured, Measured]]) -> None:
    """Tables of what was measured; each pair is the plain loop and the real thing."""
    table = Table(title="Federated averaging with trivial local work")
    for column in (
        "",
        "s a round",
        "each",
        "over the loop",
        "CPU s a round",
        "start-up s",
        "RSS / PSS MB",
        "others",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for plain, real in pairs:
        for item in (plain, real):
            table.add_row(*_row(item, plain))
    console.print(table)
    for _, real in pairs:
        where = Table(title=f"Where a round of {real.megabytes:g} MB goes (median seconds)")
        where.add_column("phase")
        where.add_column("s", justify="right")
        for name, seconds in real.phase_seconds.items():
            where.add_row(name, f"{seconds:.3f}")
        console.print(where)
        console.print(
            f"CPU seconds a round: {_by_kind(real.round_cpu_seconds[1:] or real.round_cpu_seconds)}"
        )
        console.print(f"CPU seconds of the whole job: {_by_kind([real.cpu_seconds])}")


def _by_kind(used: Sequence[dict[str, float]]) -> str:
    kinds = {kind: median(item.get(kind, 0.0) for item in used) for kind in used[-1]}
    return ", ".join(f"{kind} {seconds:.2f}" for kind, seconds in sorted(kinds.items()))


def _row(item: Measured, plain: Measured) -> tuple[str, ...]:
    extra = item.typical_seconds - plain.typical_seconds
    times = item.typical_seconds / plain.typical_seconds
    start_up = f"{item.start_up_seconds:.1f}" if item.start_up_seconds else "-"
    return (
        f"{'plain loop' if item is plain else 'consortium'}, {item.megabytes:g} MB",
        f"{item.typical_seconds:.3f}",
        " ".join(f"{seconds:.2f}" for seconds in item.round_seconds),
        "-" if item is plain else f"+{extra:.2f} s, {times:.1f}x",
        f"{item.typical_cpu_seconds:.2f}",
        start_up,
        f"{item.peak_rss_mb:.0f} / {item.peak_pss_mb:.0f}",
        f"load {item.load_before:.1f}, {item.others_share:.0%}",
    )


def main() -> None:
    """Measure, print, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=[1, 160], help="10^6 bytes of float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hospitals", type=int, default=4)
    parser.add_argument("--only", choices=PARTS, help="one of the benchmarks alone")
    parser.add_argument(
        "--gas-hospitals", type=int, nargs="+", default=[4, 50, 500], help="for how many the gas is measured"
    )
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    parts = PARTS if options.only is None else (options.only,)
    pairs = measure_rounds(options) if "rounds" in parts else []
    gas = [measure_gas(count) for count in options.gas_hospitals] if "gas" in parts else []
    opinions = [measure_opinion(*shape) for shape in OPINIONS] if "gas" in parts else []
    rates = envelope.measure(envelope.MEGABYTES) if "envelopes" in parts else []
    speeds = measure_training() if "training" in parts else []
    answered = [answering.measure()] if "answering" in parts else []
    console = Console(width=160)
    if pairs:
        print_report(console, pairs)
    if gas:
        print_gas(console, gas)
        print_opinions(console, opinions)
    if rates:
        envelope.print_report(console, rates)
    for speed in speeds:
        training_speed.print_report(console, speed)
    for query in answered:
        answering.print_report(console, query)
    if options.json is not None:
        figures = {
            "cores": os.cpu_count(),
            "hospitals": options.hospitals,
            "rounds": options.rounds,
            "measured": [asdict(item) for pair in pairs for item in pair],
            "gas": [asdict(item) for item in gas],
            "opinion_gas": [asdict(item) for item in opinions],
            "envelopes": [asdict(item) for item in rates],
            "training": [asdict(item) | {"ratio": item.ratio} for item in speeds],
            "answering": [asdict(item) | {"ratio": item.ratio} for item in answered],
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure_training() -> list[training_speed.Speed]:
    """Our trainer and a bare loop, on one core."""
    import torch

    torch.set_num_threads(1)
    return [training_speed.measure()]


def measure_rounds(options: argparse.Namespace) -> list[tuple[Measured, Measured]]:
    """The plain loop and the consortium, for each size."""
    pairs = []
    with tempfile.TemporaryDirectory(prefix="consilia-bench-") as folder:
        # each round keeps an envelope a hospital, a model and its envelope; the first one makes the work files
        files = (options.rounds + 1) * (options.hospitals + 2) + 3 * options.hospitals
        touch_memory(Path(folder), max(options.megabytes) * 1e6 * files)
        for megabytes in options.megabytes:
            jobs = ("plain_loop", "consortium")
            plain, real = (
                measure(
                    job, megabytes, options.hospitals, options.rounds, Path(folder) / f"{job}-{megabytes:g}"
                )
                for job in jobs
            )
            pairs.append((plain, real))
    return pairs


if __name__ == "__main__":
    main()
