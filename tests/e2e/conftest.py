"""One finished home for all attacks on what is left of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.running import RunningConsortium


@pytest.fixture(scope="session")
def finished_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hospitals with nodes and a server have trained for two rounds; all processes have ended."""
    home = tmp_path_factory.mktemp("finished")
    with RunningConsortium(home, hospitals=2, rounds=2) as town:
        town.start()
        town.finish_work()
    return home
