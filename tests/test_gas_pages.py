"""What the pages say of gas by the benchmarks' measure, for the smallest of their columns."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from consilia.ledger.contracts import contract_abi
from tests.ledger.gas_page import assert_as_told, table_after


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A program of the folder benchmarks, with the registry as it is: compiling a longer list takes two seconds."""
    monkeypatch.syspath_prepend(
        Path(__file__).parents[1] / "benchmarks"
    )  # they name one another without a package
    monkeypatch.setattr(import_module("gas"), "_with_long_founding_list", contract_abi)
    return import_module


def test_a_task_of_four_hospitals_costs_what_the_page_says(benchmark: Callable[[str], ModuleType]) -> None:
    measured = benchmark("gas").measure(4)
    told = {name: row[:1] for name, row in table_after("engines.md", "Receipts of a whole task").items()}
    bytes_told = told.pop("bytes that a round adds to an embedded chain's file")[0]
    rows = {
        "publish a task": measured.publish,
        "enrol, each hospital": measured.enrol,
        "issue task keys, all": measured.issue_keys,
        "start": measured.start,
        "register an update, first round, at most": measured.first_update,
        "register an update, later, at most": measured.update,
        "close a round, at most": measured.close_round,
        "a round after the first, all together": measured.round,
        "settle, all": measured.settle,
        "claim, each hospital": measured.claim,
    }
    assert_as_told(told, {name: [used] for name, used in rows.items()})
    # SQLite grows by pages of 4 KiB, and which of them a round fills depends on digests
    assert bytes_told is not None and abs(measured.round_bytes - bytes_told) <= 2 * 4096


def test_a_second_opinion_costs_what_the_page_says(benchmark: Callable[[str], ModuleType]) -> None:
    measured = benchmark("opinion_gas").measure(20, 12)
    told = table_after("contracts.md", "A second opinion, by `benchmarks/opinion_gas.py`")
    names = {"a query that passes": "total", "challenge, 8 boxes a side": "challenge"}
    rows = {name: [getattr(measured, names.get(name, name))] for name in told}
    assert_as_told({name: row[:1] for name, row in told.items()}, rows)
