"""`python -m tests.imaging.hostile_reader`: reads hostile files within limits on memory and time.

Run as a process of its own: a reader that breaks, hangs or takes all memory ends this process and no other.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from consilia.errors import UnusableImageError
from consilia.imaging.annotation_objects import REPORTS, SEGMENTATION, object_class, read_object
from consilia.imaging.deidentification import Pseudonymiser
from consilia.imaging.dicom import read_ct
from consilia.imaging.intake import clean_slices
from tests.imaging.hostile_files import mutate
from tests.imaging.planted import TOKENS

MEMORY_BYTES = 2 * 2**30
GROWTH_BYTES = 2**30
"""How much more may be in use after the files than before the first."""
CASE_SECONDS = 20
PSEUDONYMS = Pseudonymiser(b"k" * 32)


class Broken(Exception):
    """What the reader must never do."""


def read(path: Path, copy: Path, *, nobody: bool) -> list[str]:
    """All ways to read a file; whether each gave something, or why not.

    Raises:
        Broken: another outcome than an image, boxes or an error of ours.
    """
    ways = (_as_object, read_ct, lambda path: _cleaned(path, copy, nobody=nobody))
    return [_outcome(way, path) for way in ways]


def _outcome(way: Callable[[Path], object], path: Path) -> str:
    try:
        way(path)
    except UnusableImageError as error:
        return _reason(error)
    return "read"


def _reason(error: UnusableImageError) -> str:
    text = str(error)
    if isinstance(error.__context__, MemoryError):
        raise Broken("asked for more memory than there is")
    if not text.startswith("expected") or any(token.decode() in text for token in TOKENS):
        raise Broken(f"said {text}")
    if error.__context__ is not None and not error.__suppress_context__:
        raise Broken("passed on what the parser said")
    return text


def _as_object(path: Path) -> None:
    kind = object_class(path)
    if kind in REPORTS or kind == SEGMENTATION:
        read_object(path)


def import_one(path: Path) -> None:
    """As `data import` does, whose parser the other ways share; the slices are dropped."""
    for _ in clean_slices(path, PSEUDONYMS):
        pass


def _cleaned(path: Path, copy: Path, *, nobody: bool) -> None:
    """De-identified, it is an image again, and nobody is in it."""
    for item in clean_slices(path, PSEUDONYMS):
        if nobody and any(token in item.data for token in TOKENS):
            raise Broken("left somebody in the de-identified file")
        copy.write_bytes(item.data)
        try:
            read_ct(copy)
        except UnusableImageError as error:
            raise Broken(f"imported what it cannot read: {error}") from error


def limit(seconds: int) -> None:
    """From here on this process and the decoder have no more than this."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run(folder: Path, seed: int, cases: int, seconds: float) -> Counter[str]:
    """Mutations number 0, 1, ... of a seed until so many were read or the seconds are used up; outcomes, counted."""
    seeds = [path.read_bytes() for path in sorted(folder.glob("*.dcm"))]
    work = folder / "work"
    work.mkdir(exist_ok=True)
    outcomes: Counter[str] = Counter()
    for number in range(cases):
        if time.process_time() > seconds:
            break
        data, nobody = mutate(seeds, random.Random(f"{seed}/{number}"))
        (work / "case").write_bytes(data)
        (work / "number").write_text(
            f"{seed}/{number}"
        )  # whatever happens now, this is what it happened with
        signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
        outcomes.update(read(work / "case", work / "copy", nobody=nobody))
        signal.setitimer(signal.ITIMER_PROF, 0)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="*.dcm: mutated, or with --as-they-are read one by one")
    parser.add_argument("--as-they-are", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10**9)
    parser.add_argument("--seconds", type=float, default=600.0)
    wanted = parser.parse_args()
    limit(int(wanted.seconds) + 60)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if wanted.as_they_are:
        files = sorted(wanted.folder.glob("*.dcm"))
        result: object = {path.stem: _outcome(import_one, path) for path in files}
    else:
        result = dict(run(wanted.folder, wanted.seed, wanted.cases, wanted.seconds).most_common())
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if grown > GROWTH_BYTES:
        raise Broken(f"took {grown >> 20} MiB")
    said = {"outcomes": result, "grown_mib": grown >> 20, "cpu_seconds": time.process_time()}
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
