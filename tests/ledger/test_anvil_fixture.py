"""The fixture itself: without anvil the tests are skipped loudly, and in CI never."""

from __future__ import annotations

import pytest

from tests.ledger.conftest import unavailable


def test_a_missing_engine_is_a_failure_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI must test against anvil"):
        unavailable("npm is missing")


def test_a_missing_engine_is_a_loud_skip_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="NOT TESTED AGAINST ANVIL AND CAST: npm is missing"):
        unavailable("npm is missing")
