"""Fixtures of all tests: a software HSM."""

from __future__ import annotations

import pytest

from tests.softhsm import SoftHsm, start


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """Debian's SoftHSM with one token. Keys stay in it until the tests end: take labels of your own."""
    return start(tmp_path_factory.mktemp("softhsm"))
