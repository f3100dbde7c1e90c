"""One job on several cores, with the order of its parts kept."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import TypeVar

CORES = min(4, len(os.sched_getaffinity(0)))
"""Items worked on at the same time; more would only hold more of them in memory."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Work on items side by side and give the results in the items' order; few are held at a time.

    Worth it for what releases the interpreter lock: hashes, numpy's arithmetic, reading and writing.
    """
    rest = iter(items)
    first = list(islice(rest, 2))
    if len(first) < 2:  # most envelopes are small: no thread is worth starting for one leaf
        yield from map(work, first)
        return
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(CORES) as workers:
        for item in chain(first, rest):
            pending.append(workers.submit(work, item))
            if len(pending) > 2 * CORES:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
