"""Fork choice, re-orgs, one's own blocks, and what survives in the file."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.evm import account_state
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.transaction import Transaction
from tests.ledger.embedded.members import (
    BALANCE_WEI,
    COINBASES,
    Consortium,
    append,
    extend,
    genesis,
    payment,
    seal,
    sealed,
)


def copy_blocks(source: Chain, target: Chain) -> None:
    for block in source.blocks_after(target.locator(), 1000, 1 << 30):
        target.import_block(block)


class SlowClock:
    """Each look is half a second later, so that every block has the least difficulty."""

    def __init__(self) -> None:
        self.now_ms = 1_900_000_000_000

    def __call__(self) -> int:
        self.now_ms += 500
        return self.now_ms


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Consortium]:
    opened = Consortium(tmp_path, genesis(), SlowClock())
    yield opened
    opened.close()


def block_with_hash(chain: Chain, transactions: list[Transaction], wanted: Callable[[bytes], bool]) -> Block:
    """A block on the head, sealed again and again until its hash is as wanted; kept."""
    draft = chain.draft(transactions, COINBASES[1])
    while not wanted((block := sealed(chain, draft)).header.hash):
        pass
    chain.append(replace(draft, block=block), block.header.nonce)
    return block


def test_the_heavier_branch_wins_and_the_loser_gives_its_transactions_back(slow: Consortium) -> None:
    alice, bob = slow.chain("alice"), slow.chain("bob")
    pool = Pool(alice)
    alice.import_block(extend(bob))
    lost, kept = payment(0, 0), payment(1, 0)
    for transaction in (lost, kept):
        pool.add(transaction.raw)
    losing = extend(alice, [lost, kept], index=0)
    assert len(alice.file.pending()) == 0
    greater = block_with_hash(bob, [kept], lambda item: item > losing.header.hash)
    winning = [greater, extend(bob, index=1)]

    first = alice.import_block(winning[0])
    assert first is not None
    assert first.adopted == ()  # as heavy as the own head, and of greater hash
    second = alice.import_block(winning[1])
    assert second is not None
    assert second.adopted == tuple(winning)
    assert second.abandoned == (losing,)
    assert alice.head == bob.head
    assert [item.raw for item in alice.file.pending()] == [lost.raw]
    assert [item.hash for item in pool.executable()] == [lost.hash]
    assert alice.file.location(kept.hash) == (2, 0)
    assert alice.file.location(lost.hash) is None

    extend(alice, pool.executable())
    assert alice.file.location(lost.hash) == (4, 0)
    assert alice.file.pending() == []


def test_of_two_equal_branches_all_choose_the_same(slow: Consortium) -> None:
    """Else an idle chain would stay split until somebody mines again."""
    alice, bob = slow.chain("alice"), slow.chain("bob")
    mine = extend(alice)
    smaller = block_with_hash(bob, [], lambda item: item < mine.header.hash)
    alice.import_block(smaller)
    bob.import_block(mine)
    assert alice.head.header == smaller.header
    assert bob.head.header == smaller.header


def test_most_work_wins_not_most_blocks(tmp_path: Path) -> None:
    clock = [1_900_000_000_000]
    made = Consortium(tmp_path, genesis(min_difficulty=16), lambda: clock[0])
    fast, slow = made.chain("fast"), made.chain("slow")
    for _ in range(12):  # within the block time: the difficulty rises
        clock[0] += 10
        extend(fast)
    clock[0] = 1_900_000_000_000
    for _ in range(13):  # late blocks at the least difficulty
        clock[0] += 100_000
        extend(slow)
    assert slow.head.header.number > fast.head.header.number
    assert slow.head.score < fast.head.score
    for number in range(1, 14):
        stored = slow.block_by_number(number)
        assert stored is not None
        progress = fast.import_block(stored.block)
        assert progress is not None
        assert progress.adopted == ()
    copy_blocks(fast, slow)
    assert slow.head == fast.head
    made.close()


def test_a_draft_takes_what_is_valid_and_names_what_never_will_be(consortium: Consortium) -> None:
    chain = consortium.chain("alice")
    good, gap = payment(0, 0), payment(1, 3)
    poor = payment(2, 0, value=BALANCE_WEI)  # no wei left for the gas
    draft = chain.draft([good, gap, poor], COINBASES[0])
    assert draft.block.transactions == (good.raw,)
    assert draft.refused == (poor,)


def test_a_draft_leaves_what_has_no_room_for_a_later_block(consortium: Consortium) -> None:
    chain = consortium.chain("alice")
    large = [payment(index, 0, gas=12_000_000) for index in range(3)]
    draft = chain.draft(large, COINBASES[0])
    assert draft.block.transactions == (
        large[0].raw,
        large[1].raw,
        large[2].raw,
    )  # gas used counts, not the limit
    too_large = [payment(0, 0, gas=29_990_000), payment(1, 0, gas=29_990_000)]
    draft = chain.draft(too_large, COINBASES[0])
    assert draft.block.transactions == (too_large[0].raw,)
    assert draft.refused == ()


def test_an_own_block_on_an_old_head_is_dropped(consortium: Consortium) -> None:
    chain = consortium.chain("alice")
    draft = chain.draft([], COINBASES[0])
    extend(chain, index=1)
    assert append(chain, draft) is None
    assert chain.head.header.number == 1


def test_the_miner_is_paid_and_the_base_fee_burnt(consortium: Consortium) -> None:
    chain = consortium.chain("alice")
    block = extend(chain, [payment(1, 0)], index=0)
    state = chain.state(chain.head.header)
    gas = block.header.gas_used
    assert gas == 21_000
    assert account_state(state, COINBASES[0]).balance_wei == BALANCE_WEI + 2 * 10**18 + gas
    paid_wei = gas * (block.header.base_fee_wei + 1)
    assert account_state(state, COINBASES[1]).balance_wei == BALANCE_WEI - paid_wei - 1


def test_a_refused_block_leaves_nothing_in_the_file(consortium: Consortium) -> None:
    alice, bob = consortium.chain("alice"), consortium.chain("bob")
    draft = alice.draft([payment(0, 0)], COINBASES[0])
    before = [list(bob.file.rows(table, "*", "1")) for table in ("blocks", "state", "canonical", "locations")]
    forged = Block(seal(alice, replace(draft.block.header, bloom=b"\1" * 256)), draft.block.transactions)
    with pytest.raises(Exception, match="bloom"):
        bob.import_block(forged)
    after = [list(bob.file.rows(table, "*", "1")) for table in ("blocks", "state", "canonical", "locations")]
    assert after == before


def test_waiting_for_a_block_returns_when_it_comes(consortium: Consortium) -> None:
    chain = consortium.chain("alice")
    seen: list[int] = []
    waiter = threading.Thread(target=lambda: seen.append(chain.wait_for_block(0, 60)))
    waiter.start()
    extend(chain)
    waiter.join(60)
    assert seen == [1]
    assert chain.wait_for_block(5, 0) == 1


KILLED_WHILE_WRITING = """
import sys, os, signal
from pathlib import Path
from tests.ledger.embedded.members import *
from consilia.ledger.embedded.pool import Pool
chain = Chain(Path(sys.argv[1]), Genesis.load(Path(sys.argv[2])))
pool = Pool(chain)
pool.add(payment(0, 0).raw)
for nonce in range(20):
    extend(chain, [payment(1, nonce)])
print(chain.head.header.hash.hex(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_everything_acknowledged_is_there_after_kill_9(tmp_path: Path) -> None:
    made = genesis()
    made.save(tmp_path / "genesis.json")
    arguments = [str(tmp_path / "chain.sqlite"), str(tmp_path / "genesis.json")]
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, *arguments], capture_output=True, text=True, check=False
    )
    assert child.returncode == -9, child.stderr
    chain = Chain(tmp_path / "chain.sqlite", made)
    assert chain.head.header.hash.hex() == child.stdout.strip()
    pool = Pool(chain)
    assert [item.hash for item in pool.executable()] == [payment(0, 0).hash]
    extend(chain, pool.executable())
    assert chain.head.header.number == 21
    chain.close()
