"""What proof of work with few miners is worth: a majority attacker on a real chain, and the odds by simulation.

The figures in SECURITY.md are those of `overtaking_odds`.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from consilia.errors import ChainError, UntimelyBlockError
from consilia.ledger.embedded import chain as chain_module
from consilia.ledger.embedded.evm import account_state
from consilia.ledger.embedded.pool import Pool
from tests.ledger.embedded.members import COINBASES, Consortium, extend, genesis, payment, sealed

ATTACKER = 3


class Clock:
    """Milliseconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_ms = 1_900_000_000_000

    def __call__(self) -> int:
        return self.now_ms


def overtaking_odds(share: float, confirmations: int, trials: int = 4000, seed: int = 1) -> float:
    """How often an attacker with this share of all work rewrites a block that has so many on top of it.

    It starts when the block is mined, in secret, and gives up when it is 40 behind (Nakamoto 2008, section 11).
    """
    drawn = random.Random(seed)
    won = 0
    for _ in range(trials):
        honest = attacker = 0
        while honest < confirmations:
            if drawn.random() < share:
                attacker += 1
            else:
                honest += 1
        while -40 < attacker - honest <= 0:
            attacker, honest = (attacker + 1, honest) if drawn.random() < share else (attacker, honest + 1)
        won += attacker > honest
    return won / trials


@pytest.mark.parametrize(
    ("share", "confirmations", "least", "most"),
    [
        (0.10, 1, 0.0, 0.06),
        (0.10, 12, 0.0, 0.001),
        (0.25, 1, 0.08, 0.30),
        (0.25, 12, 0.0, 0.02),
        (0.40, 12, 0.10, 0.40),
        (0.51, 12, 0.85, 1.0),
        (0.67, 12, 0.99, 1.0),
    ],
)
def test_confirmations_help_against_a_minority_alone(
    share: float, confirmations: int, least: float, most: float
) -> None:
    assert least <= overtaking_odds(share, confirmations) <= most


def test_a_majority_rewrites_the_last_blocks_and_steals_nothing(tmp_path: Path) -> None:
    """It can undo a payment of its own and leave others' out; it cannot forge, spend or repeat anything."""
    clock = Clock()
    made = Consortium(tmp_path, genesis(), clock)
    honest, secret = made.chain("honest"), made.chain("secret")
    pool = Pool(honest)
    others, own = payment(0, 0), payment(ATTACKER, 0)
    for transaction in (others, own):
        pool.add(transaction.raw)
    for _ in range(12):
        clock.now_ms += 500
        extend(honest, pool.executable())
    twelve_deep = honest.file.location(own.hash)
    assert twelve_deep == (1, 1)

    conflicting = payment(ATTACKER, 0, value=7)
    clock.now_ms -= 12 * 500
    clock.now_ms += 10
    extend(secret, [conflicting], index=ATTACKER)
    while secret.head.score <= honest.head.score:  # with more power: quicker blocks, more difficulty
        clock.now_ms += 10
        extend(secret, index=ATTACKER)
    clock.now_ms += 12 * 500
    for block in secret.blocks_after(honest.locator(), 1000, 1 << 30):
        honest.import_block(block, is_proven=True)
    assert honest.head == secret.head

    assert honest.file.location(own.hash) is None
    assert honest.file.location(conflicting.hash) == (1, 0)
    assert [item.hash for item in pool.executable()] == [
        others.hash
    ]  # it waits again, and is in the next block
    clock.now_ms += 500
    extend(honest, pool.executable())
    assert honest.file.location(others.hash) is not None
    assert pool.get(own.hash) is None  # its nonce is used: the same money is not spent twice
    assert account_state(honest.state(honest.head.header), COINBASES[ATTACKER]).nonce == 1
    made.close()


def test_a_majority_cannot_forge(tmp_path: Path) -> None:
    """All its power does not make a signature, or a state that does not follow."""
    made = Consortium(tmp_path, genesis())
    honest, secret = made.chain("honest"), made.chain("secret")
    draft = secret.draft([payment(0, 0)], COINBASES[ATTACKER])
    for change in (
        {"state_root": b"\1" * 32},
        {"receipts_root": b"\1" * 32},
        {"gas_used": 0},
        {"coinbase": b"\1" * 20},
    ):
        with pytest.raises(ChainError):
            honest.import_block(sealed(secret, draft, **change), is_proven=True)
    assert honest.head.header.number == 0
    made.close()


def test_an_idle_chain_is_rewritten_by_anybody_with_a_core(tmp_path: Path) -> None:
    """Heartbeats at the least difficulty hold little work: an hour of them costs the attacker a moment."""
    clock = Clock()
    made = Consortium(tmp_path, genesis(), clock)
    honest, secret = made.chain("honest"), made.chain("secret")
    start_ms = clock.now_ms
    for _ in range(60):
        clock.now_ms += 60_000
        extend(honest)
    clock.now_ms = start_ms
    hashes = 0
    while secret.head.score <= honest.head.score:
        clock.now_ms += 60_000 * 60 // 61
        hashes += extend(secret, index=ATTACKER).header.difficulty
    assert hashes <= honest.head.score  # as much as one hour of all hospitals' heartbeats, and no more
    for block in secret.blocks_after(honest.locator(), 1000, 1 << 30):
        honest.import_block(block, is_proven=True)
    assert honest.head == secret.head
    made.close()


def test_old_history_stands_against_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_module, "MAX_REORG_BLOCKS", 20)
    clock = Clock()
    made = Consortium(tmp_path, genesis(), clock)
    honest, secret = made.chain("honest"), made.chain("secret")
    for _ in range(25):
        clock.now_ms += 500
        extend(honest)
    head = honest.head
    clock.now_ms -= 25 * 500
    while secret.head.score <= 2 * head.score:
        clock.now_ms += 10
        extend(secret, index=ATTACKER)
    clock.now_ms += 25 * 500
    with pytest.raises(UntimelyBlockError, match="start from an empty home"):
        for block in secret.blocks_after(honest.locator(), 1000, 1 << 30):
            honest.import_block(block, is_proven=True)
    assert honest.head == head
    made.close()


def test_a_lighter_chain_is_never_preferred(tmp_path: Path) -> None:
    made = Consortium(tmp_path, genesis())
    honest, secret = made.chain("honest"), made.chain("secret")
    for _ in range(6):
        extend(honest)
    before = honest.head
    for _ in range(3):
        honest.import_block(extend(secret, index=ATTACKER))
    assert honest.head == before
    made.close()
