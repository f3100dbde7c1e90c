"""Sealing, opening and checking beside what they are made of, and beside age, each in a process of its own.

    python benchmarks/envelope.py [--megabytes 1 64 1000] [--json FILE]

Files lie in the page cache and targets are written over, so that no disk is measured. The yardstick is SHA-256 of the
same bytes with a thread on every core: an envelope cannot be checked without hashing it. Method: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import pyrage
from blake3 import blake3
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from rich.console import Console
from rich.table import Table

from consilia.artifact import CHUNK_BYTES, TAG_BYTES, artifact_root
from consilia.crypto.envelope import open_envelope, seal
from consilia.crypto.keys import Identity
from consilia.values import ArtifactContext, ArtifactKind, Digest
from consilia.whole_file import whole_file

BLOCK_BYTES = 1 << 20
OWNER = Identity.from_bytes(bytes([7]) * 32)
OTHER = Identity.from_bytes(bytes([9]) * 32)
RECIPIENTS = [OWNER.recipient, OTHER.recipient]
CONTEXT = ArtifactContext(2407, "0x" + "11" * 20, 1, 0, "0x" + "22" * 20, ArtifactKind.UPDATE)
MEGABYTES = (1.0, 64.0, 1000.0)
SEAL_GOAL, OPEN_GOAL = 0.55, 0.7
"""Of the yardstick's rate."""
PARTS = {
    "seal": (
        "read",
        "BLAKE3, one core",
        "read",
        "AES-256-GCM, one core",
        "SHA-256, every core",
        "write over",
    ),
    "open": ("read", "AES-256-GCM, one core", "SHA-256, every core", "write over"),
    "check": ("read", "SHA-256, every core"),
}
"""What a job cannot do without; their processor time bounds its rate."""


@dataclass(frozen=True)
class Rate:
    """The best of the repetitions of one job."""

    job: str
    megabytes: float
    seconds: float
    cpu_seconds: float
    peak_mb: float
    """Memory of the process beyond what it had before the job."""

    @property
    def gigabytes_a_second(self) -> float:
        """10^9 bytes of plaintext a second."""
        return self.megabytes / 1e3 / self.seconds


class Jobs:
    """All jobs on one file `plain` of a folder; what opening needs is sealed first."""

    def __init__(self, folder: Path, size: int) -> None:
        self.plain, self.target = folder / "plain", folder / "target"
        self.sealed, self.aged = folder / "sealed", folder / "aged"
        self._size = size
        self._age = pyrage.x25519.Identity.generate()

    def prepare(self, job: str) -> None:
        """Make the file that the job reads, where it is not the plain one."""
        if job in ("open", "check"):
            self._root = self._seal(self.sealed)
        if job == "age decrypt":
            pyrage.encrypt_file(str(self.plain), str(self.aged), [self._age.to_public()])

    def run(self, job: str) -> None:
        """Do a job once."""
        work: dict[str, Callable[[], object]] = {
            "memcpy": self._copy,
            "AES-256-GCM, one core": self._encrypt,
            "BLAKE3, one core": self._digest,
            "read": self._read,
            "write over": self._write,
            "SHA-256, every core": self._hash,
            "seal": lambda: self._seal(self.target),
            "open": self._open,
            "check": self._check,
            "age encrypt": lambda: pyrage.encrypt_file(
                str(self.plain), str(self.target), [self._age.to_public()]
            ),
            "age decrypt": lambda: pyrage.decrypt_file(str(self.aged), str(self.target), [self._age]),
        }
        work[job]()

    def _copy(self) -> None:
        source, target = bytes(BLOCK_BYTES), bytearray(BLOCK_BYTES)
        for _ in range(0, self._size, BLOCK_BYTES):
            target[:] = source

    def _encrypt(self) -> None:
        cipher, nonce = AESGCM(bytes(32)), bytes(12)
        source, target = bytes(CHUNK_BYTES), bytearray(CHUNK_BYTES + TAG_BYTES)
        for _ in range(0, self._size, CHUNK_BYTES):
            cipher.encrypt_into(nonce, source, None, target)

    def _digest(self) -> None:
        hasher, block = blake3(), bytes(BLOCK_BYTES)
        for _ in range(0, self._size, BLOCK_BYTES):
            hasher.update(block)

    def _read(self) -> None:
        block = bytearray(BLOCK_BYTES)
        with self.plain.open("rb", buffering=0) as file:
            while file.readinto(block):
                pass

    def _write(self) -> None:
        block = bytes(BLOCK_BYTES)
        with whole_file(self.target) as file:
            for at in range(0, self._size, BLOCK_BYTES):
                file.write(block[: self._size - at])

    def _hash(self) -> None:
        blocks = range(0, self._size, BLOCK_BYTES)
        block = bytes(min(BLOCK_BYTES, self._size))
        cores = os.cpu_count() or 1

        def hash_share(number: int) -> None:
            for _ in blocks[number::cores]:
                hashlib.sha256(block).digest()

        with ThreadPoolExecutor(cores) as threads:
            list(threads.map(hash_share, range(cores)))

    def _seal(self, target: Path) -> Digest:
        with self.plain.open("rb", buffering=0) as plaintext, whole_file(target) as ciphertext:
            return seal(plaintext, ciphertext, RECIPIENTS, CONTEXT, rho=os.urandom(32)).root

    def _open(self) -> None:
        with self.sealed.open("rb", buffering=0) as ciphertext, whole_file(self.target) as plaintext:
            open_envelope(ciphertext, plaintext, OWNER, RECIPIENTS, CONTEXT, self._root)

    def _check(self) -> None:
        with self.sealed.open("rb", buffering=0) as ciphertext:
            if artifact_root(ciphertext) != self._root:
                raise AssertionError("the envelope has another root than when it was sealed")


JOBS = (
    "memcpy",
    "AES-256-GCM, one core",
    "BLAKE3, one core",
    "read",
    "write over",
    "SHA-256, every core",
    "seal",
    "open",
    "check",
    "age encrypt",
    "age decrypt",
)


def measure_here(job: str, folder: Path, megabytes: float) -> Rate:
    """Repeat a job in this process for about a second, at least three times, and keep the fastest."""
    jobs = Jobs(folder, round(megabytes * 1e6))
    jobs.prepare(job)
    jobs.run(job)
    best, best_cpu, times, until = float("inf"), 0.0, 0, time.monotonic() + 1
    while times < 3 or time.monotonic() < until:
        cpu, began = time.process_time(), time.monotonic()
        jobs.run(job)
        seconds, cpu = time.monotonic() - began, time.process_time() - cpu
        times += 1
        if seconds < best:
            best, best_cpu = seconds, cpu
    return Rate(job, megabytes, best, best_cpu, _peak_mb() - IMPORTED_MB)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


IMPORTED_MB = _peak_mb()
"""What the process needed before it did anything."""


def measure(megabytes: Sequence[float]) -> list[Rate]:
    """All jobs for all sizes, each in a process of its own."""
    rates = []
    for size in megabytes:
        with tempfile.TemporaryDirectory(prefix="consilia-envelope-") as folder:
            with (Path(folder) / "plain").open("wb") as file:
                for at in range(0, round(size * 1e6), BLOCK_BYTES):
                    file.write(os.urandom(min(BLOCK_BYTES, round(size * 1e6) - at)))
            for job in JOBS:
                command = [
                    sys.executable,
                    __file__,
                    "--job",
                    job,
                    "--folder",
                    folder,
                    "--megabytes",
                    str(size),
                ]
                ran = subprocess.run(command, capture_output=True, text=True, check=True)
                rates.append(Rate(**json.loads(ran.stdout)))
    return rates


def print_report(console: Console, rates: Sequence[Rate]) -> None:
    """One table for all sizes."""
    table = Table(title="Envelopes: GB/s of plaintext, best of several, in the page cache")
    for column in ("", "MB", "GB/s", "of SHA-256", "goal", "bound", "CPU s", "MB of memory"):
        table.add_column(column, justify="left" if not column else "right")
    yardstick = {rate.megabytes: rate.gigabytes_a_second for rate in rates if rate.job.startswith("SHA-256")}
    goals = {"seal": SEAL_GOAL, "open": OPEN_GOAL}
    cpu_seconds = {(rate.job, rate.megabytes): rate.cpu_seconds for rate in rates}
    for rate in rates:
        table.add_row(
            rate.job,
            f"{rate.megabytes:g}",
            f"{rate.gigabytes_a_second:.2f}",
            f"{rate.gigabytes_a_second / yardstick[rate.megabytes]:.2f}",
            f"{goals[rate.job]:.2f}" if rate.job in goals else "",
            f"{_bound(rate, cpu_seconds):.2f}" if rate.job in PARTS else "",
            f"{rate.cpu_seconds:.3f}",
            f"{rate.peak_mb:.0f}",
            end_section=rate.job == JOBS[-1],
        )
    console.print(table)


def _bound(rate: Rate, cpu_seconds: dict[tuple[str, float], float]) -> float:
    """The most that a job could reach of the yardstick, were it nothing but its parts, spread evenly over the cores."""
    least = sum(cpu_seconds[part, rate.megabytes] for part in PARTS[rate.job])
    return cpu_seconds["SHA-256, every core", rate.megabytes] / least


def main() -> None:
    """Measure, print, and write the JSON; with --job, one job here."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=float, nargs="+", default=MEGABYTES, help="10^6 bytes")
    parser.add_argument("--json", type=Path, help="write all figures there")
    parser.add_argument("--job", choices=JOBS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job is not None:
        print(json.dumps(asdict(measure_here(options.job, options.folder, options.megabytes[0]))))
        return
    rates = measure(options.megabytes)
    print_report(Console(width=120), rates)
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(rate) for rate in rates], indent=1) + "\n")


if __name__ == "__main__":
    main()
