"""One at a time: several processes may work on one home, and some work must not be done by two of them at once."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAUSE_SECONDS = 0.1


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file, which is made and left there; who comes second waits, thread or process.

    The kernel gives the lock back when its holder dies (flock(2)).
    """
    with _opened(path) as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def alone_within(path: Path, seconds: float) -> Iterator[bool]:
    """Hold the lock of a file, as `alone`, if it is free within some seconds; yields whether it is held."""
    until = time.monotonic() + seconds
    with _opened(path) as descriptor:
        while not (held := _try(descriptor)) and time.monotonic() < until:
            time.sleep(PAUSE_SECONDS)
        yield held


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
