"""The difficulty finds the block time, whoever mines: a simulation with the real rule and drawn waiting times."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from statistics import mean

import pytest

from consilia.ledger.embedded.block import Header
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.genesis_block import genesis_block
from consilia.ledger.embedded.rules import next_difficulty
from tests.ledger.embedded.members import genesis

STRONGEST = 800.0  # hashes a millisecond: one core of this search
TRAVEL_MS = 15.0  # until the others have heard of a block, their work is for nothing


@dataclass(frozen=True)
class Mined:
    """One block of the simulation."""

    gap_ms: float
    miner: int
    difficulty: int


def unequal(count: int) -> list[float]:
    """The k-th miner has the k-th part of the strongest's power (Zipf)."""
    return [STRONGEST / rank for rank in range(1, count + 1)]


class Simulation:
    """Miners that all search all the time; the winner of each block is drawn by power."""

    def __init__(self, made: Genesis, seed: int) -> None:
        self._genesis = made
        self._random = random.Random(seed)
        self._now_ms = float(made.timestamp * 1000)
        self._parent: Header = genesis_block(made)[0].header

    def mine(self, powers: list[float], count: int) -> list[Mined]:
        """The next `count` blocks of these miners."""
        return [self._mine_one(powers) for _ in range(count)]

    def _mine_one(self, powers: list[float]) -> Mined:
        # The difficulty falls while the search goes on: it is that of the moment at which the draft was made,
        # and a miner drafts anew each second.
        waited_ms = TRAVEL_MS if len(powers) > 1 else 0.0
        while True:
            time_ms = round(self._now_ms + waited_ms)
            difficulty = next_difficulty(self._genesis, self._parent, max(time_ms, self._parent.time_ms + 1))
            search_ms = self._random.expovariate(sum(powers) / difficulty)
            if search_ms <= 1000:
                break
            waited_ms += 1000
        gap_ms = waited_ms + search_ms
        (miner,) = self._random.choices(range(len(powers)), powers)
        self._now_ms += gap_ms
        stamp_ms = max(time_ms, self._parent.time_ms + 1)
        self._parent = replace(self._parent, difficulty=difficulty, extra_data=stamp_ms.to_bytes(8, "big"))
        return Mined(gap_ms, miner, difficulty)


@pytest.mark.parametrize("block_time_ms", [200, 2000])
@pytest.mark.parametrize("count", [1, 2, 4, 10, 25, 50])
def test_the_mean_gap_is_the_block_time_for_1_to_50_unequal_miners(count: int, block_time_ms: int) -> None:
    simulation = Simulation(genesis(min_difficulty=16, block_time_ms=block_time_ms), seed=count)
    simulation.mine(unequal(count), 300)
    blocks = simulation.mine(unequal(count), 4000)
    found = mean(block.gap_ms for block in blocks)
    assert 0.9 * block_time_ms < found < 1.1 * block_time_ms


@pytest.mark.parametrize("count", [4, 50])
def test_blocks_are_shared_by_power(count: int) -> None:
    simulation = Simulation(genesis(min_difficulty=16), seed=count)
    powers = unequal(count)
    mined = simulation.mine(powers, 6000)
    for miner in (0, 1, count - 1):
        share = sum(block.miner == miner for block in mined) / len(mined)
        assert abs(share - powers[miner] / sum(powers)) < 0.02


def test_it_follows_when_almost_all_miners_leave_and_come_back() -> None:
    """From 50 miners to the weakest alone and back: within 60 blocks it is near the block time again."""
    made = genesis(min_difficulty=16)
    simulation = Simulation(made, seed=7)
    everybody, weakest = unequal(50), unequal(50)[-1:]
    simulation.mine(everybody, 500)
    leaving = simulation.mine(weakest, 60)
    assert mean(block.gap_ms for block in leaving[:3]) > 10 * made.block_time_ms  # what the jump costs
    alone = simulation.mine(weakest, 2000)
    assert 0.85 * made.block_time_ms < mean(block.gap_ms for block in alone) < 1.15 * made.block_time_ms
    simulation.mine(everybody, 150)
    again = simulation.mine(everybody, 2000)
    assert 0.85 * made.block_time_ms < mean(block.gap_ms for block in again) < 1.15 * made.block_time_ms


def test_the_difficulty_never_falls_below_the_least() -> None:
    simulation = Simulation(genesis(min_difficulty=1 << 13), seed=1)
    assert min(block.difficulty for block in simulation.mine([1.0], 50)) == 1 << 13
