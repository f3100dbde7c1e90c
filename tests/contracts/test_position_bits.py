"""position_bits.vy: sets of positions in two words."""

from __future__ import annotations

import boa
import pytest

POSITION_BITS_CALLER = """
# pragma evm-version london
import position_bits

@external
def count(positions: uint256[2]) -> uint256:
    return position_bits._count(positions)

@external
def all_below(positions: uint256[2], limit: uint256) -> bool:
    return position_bits._all_below(positions, limit)
"""


@pytest.mark.parametrize(
    "positions", [(), (0,), (255,), (256,), (511,), (0, 255, 256, 511), tuple(range(512))]
)
def test_a_set_of_positions_is_counted_right(positions: tuple[int, ...]) -> None:
    bits = boa.loads(POSITION_BITS_CALLER)
    number = sum(1 << position for position in positions)
    words = [number % 2**256, number >> 256]
    assert bits.count(words) == len(positions)
    for limit in (0, 1, 255, 256, 257, 511, 512):
        assert bits.all_below(words, limit) == (max(positions, default=-1) < limit)
