"""Fixtures of the tests that start processes."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.e2e.running import RunningConsortium


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A shell makes what it runs in the background deaf to Ctrl-C, and with it all that the tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals with nodes and a server have trained for two rounds; all processes have ended."""
    home = tmp_path_factory.mktemp("finished")
    with RunningConsortium(home, hospitals=2, rounds=2) as town:
        town.start()
        town.finish_work()
    return home
