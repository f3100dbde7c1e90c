"""How a party's process ends: in order when asked to, and with the process that started it where that is wanted."""

from __future__ import annotations

import ctypes
import os
import signal

PARENT_VARIABLE = "CONSILIA_PARENT"
"""Set by a process whose children must not outlive it, to its own process number."""

_PR_SET_PDEATHSIG = 1


def end_in_order() -> None:
    """Turn SIGTERM into an ordinary exit, so that what this process started is stopped; die with a demanding parent."""
    signal.signal(signal.SIGTERM, _stop)
    parent = os.environ.get(PARENT_VARIABLE)
    if parent is None:
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(parent):  # it ended before we asked to be told
        raise SystemExit(1)


def _stop(signum: int, frame: object) -> None:
    raise SystemExit(0)
