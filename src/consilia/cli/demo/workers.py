"""Work of a demo that is spread over two cores, each piece in a process of its own that ends with this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool

CORES = 2


@contextmanager
def two_workers() -> Iterator[Pool]:
    """Two worker processes. Leaving early, as on Ctrl-C, ends them at once instead of waiting for their work."""
    with get_context("spawn").Pool(CORES) as pool:  # its __exit__ terminates
        yield pool
