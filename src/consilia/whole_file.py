"""Files that are never seen half written, and whose room on the disk serves again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file that has its name only when it is whole; after a failure there is none of this name.

    An older file of the name is moved aside and written over: fresh pages cost the kernel five times as much as
    pages that are there (docs/benchmarks.md), and a round writes the same large files again and again.
    """
    partial = path.with_name(path.name + ".partial")
    with suppress(FileNotFoundError):
        path.replace(partial)
    try:
        with open(partial, "wb", opener=_keeping_pages) as file:
            yield file
            file.truncate()
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _keeping_pages(path: str, flags: int) -> int:
    return os.open(path, flags & ~os.O_TRUNC, 0o666)
