"""contracts/box_agreement.vy and protocols/findings.py agree on every word, also on a liar's."""

from __future__ import annotations

from typing import Any

import boa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consilia.protocols.findings import Finding, codes_of, codes_word, localised, to_words
from tests.contracts.conftest import SOURCES

SOURCE = """
# pragma version 0.4.3
# pragma evm-version london
import box_agreement

@external
@pure
def agree(truth: uint256[8], reported: uint256[8]) -> bool:
    return box_agreement._agree(truth, reported)

@external
@pure
def codes(words: uint256[8]) -> uint256:
    return box_agreement._codes(words)
"""
# Few places and codes, so that boxes often touch, nest and share an edge.
EDGES = st.integers(0, 6)
BOXES = st.tuples(EDGES, EDGES, st.integers(1, 4), st.integers(1, 4)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
FINDINGS = st.lists(st.builds(Finding, st.integers(1, 3), BOXES | st.just((0, 0, 0, 0))), max_size=8)
PARTS = st.sampled_from([0, 0, 0, 1, 2, 5, 65_535])
LIES = st.lists(
    st.lists(PARTS, min_size=6, max_size=6).map(
        lambda parts: sum(part << 16 * place for place, part in enumerate(parts))
    )
    | st.integers(0, 2**256 - 1),
    min_size=8,
    max_size=8,
)
MANY = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture
def contract() -> Any:
    boa.interpret.set_search_paths([str(SOURCES)])
    return boa.loads(SOURCE)


def test_honest_words(contract: Any) -> None:
    outcomes: set[bool] = set()

    @MANY
    @given(FINDINGS, st.data())
    def compare(truth: list[Finding], data: st.DataObject) -> None:
        reported = data.draw(FINDINGS | st.permutations(truth).map(lambda found: found[:7]))
        words = to_words(truth), to_words(reported)
        agreed = contract.agree(*words)
        assert agreed == localised(*words)
        assert contract.codes(words[0]) == codes_word(codes_of(truth))
        outcomes.add(agreed)

    compare()
    assert outcomes == {True, False}


def test_lies_on_either_side_never_revert(contract: Any) -> None:
    @MANY
    @given(LIES, LIES)
    def compare(truth: list[int], reported: list[int]) -> None:
        assert contract.agree(truth, reported) == localised(truth, reported)
        assert contract.agree(truth, truth) == localised(truth, truth)

    compare()
