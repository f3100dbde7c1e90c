"""Every rule of a header and of a block's content, each broken alone and refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consilia.errors import ChainError, UnknownParentError
from consilia.ledger.embedded import chain as chain_module
from consilia.ledger.embedded.block import MAX_BLOCK_BYTES, Block, Header, encode_list
from consilia.ledger.embedded.block_signature import sign_header
from consilia.ledger.embedded.chain import Chain, now_ms
from consilia.ledger.embedded.genesis_block import genesis_block
from consilia.ledger.embedded.node_key import Credentials, NodeKey, delegation_digest
from consilia.ledger.embedded.rules import MAX_FUTURE_MS, next_base_fee, next_difficulty
from consilia.ledger.embedded.seal import seal_digest
from tests.ledger.embedded.members import (
    COINBASES,
    KEYS,
    OUTSIDER,
    Consortium,
    append,
    extend,
    genesis,
    payment,
    seal,
    sealed,
    sign_as,
    work,
)


def copy_blocks(source: Chain, target: Chain) -> None:
    for block in source.blocks_after(target.locator(), 1000, 1 << 30):
        target.import_block(block)


@pytest.fixture
def alice(consortium: Consortium) -> Chain:
    return consortium.chain("alice")


@pytest.fixture
def bob(consortium: Consortium) -> Chain:
    return consortium.chain("bob")


def at_time(header: Header, time_ms: int, chain: Chain) -> dict[str, Any]:
    """The fields that follow from another block time."""
    return {
        "extra_data": time_ms.to_bytes(8, "big"),
        "timestamp": time_ms // 1000,
        "difficulty": next_difficulty(chain.genesis, chain.head.header, time_ms),
    }


def test_an_honest_block_is_taken_by_everybody(alice: Chain, bob: Chain) -> None:
    block = extend(alice, [payment(0, 0), payment(1, 0)])
    progress = bob.import_block(Block.decode(block.encoded))
    assert progress is not None
    assert progress.adopted == (block,)
    assert bob.head == alice.head
    assert bob.import_block(block) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 7}, "number"),
        ({"uncles_hash": bytes(32)}, "uncles hash"),
        ({"gas_limit": 30_000_001}, "gas limit"),
        ({"base_fee_wei": 8}, "base fee"),
        ({"gas_used": 30_000_001}, "at most 30000000 gas"),
        ({"timestamp": 1}, "timestamp"),
        ({"difficulty": 1}, "difficulty"),
        ({"coinbase": bytes.fromhex(OUTSIDER.address[2:])}, "not an admitted miner"),
        ({"state_root": b"\x11" * 32}, "state root"),
        ({"receipts_root": b"\x11" * 32}, "receipts root"),
        ({"transactions_root": b"\x11" * 32}, "transactions root"),
        ({"bloom": b"\x11" * 256}, "bloom"),
        ({"gas_used": 21_000}, "gas used"),
    ],
)
def test_a_header_with_one_false_field_is_refused(
    alice: Chain, bob: Chain, change: dict[str, Any], message: str
) -> None:
    forged = sealed(alice, alice.draft([payment(0, 0), payment(1, 0)], COINBASES[0]), **change)
    with pytest.raises(ChainError, match=f"block {forged.header.number}: .*{message}"):
        bob.import_block(forged)
    assert bob.head.header.number == 0


def test_nothing_executes_before_the_header_is_checked(
    alice: Chain, bob: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = alice.draft([payment(0, 0)], COINBASES[0])
    forgeries = [
        Block(replace(draft.block.header, mix_hash=bytes(32)), draft.block.transactions),
        sealed(alice, draft, difficulty=1),
        sealed(alice, draft, coinbase=bytes(20)),
        sealed(alice, draft, base_fee_wei=9),
        sealed(alice, draft, **at_time(draft.block.header, now_ms() + 10 * MAX_FUTURE_MS, alice)),
    ]
    executed: list[object] = []
    monkeypatch.setattr(chain_module, "Execution", lambda *arguments: executed.append(arguments))
    for forged in forgeries:
        with pytest.raises(ChainError):
            bob.import_block(forged)
    assert executed == []


def test_no_work_low_work_and_stolen_work_are_refused(alice: Chain, bob: Chain) -> None:
    header = alice.draft([], COINBASES[0]).block.header
    with pytest.raises(ChainError, match="not made for this header"):
        bob.import_block(Block(header, ()))
    with pytest.raises(ChainError, match="not made for this header"):  # a digest that nobody computed
        bob.import_block(Block(replace(header, mix_hash=bytes(31) + b"\1"), ()))
    weak = next(
        candidate
        for nonce in range(10_000)
        if (digest := seal_digest(header.mining_hash, seed := nonce.to_bytes(8, "big")))
        and int.from_bytes(digest, "big") * header.difficulty >= 1 << 256
        and (candidate := replace(header, nonce=seed, mix_hash=digest))
    )
    with pytest.raises(ChainError, match="less work than its difficulty"):
        bob.import_block(Block(weak, ()))
    stolen = replace(seal(alice, header), coinbase=COINBASES[1])
    with pytest.raises(ChainError, match="not made for this header"):
        bob.import_block(Block(stolen, ()))


def test_time_rises_by_milliseconds_and_seconds_may_repeat(consortium: Consortium) -> None:
    times = iter([1_900_000_000_400, 1_900_000_000_401])
    clock = Consortium(consortium.folder, consortium.genesis, lambda: next(times, 1_900_000_001_000))
    ahead = clock.chain("ahead")
    draft = ahead.draft([], COINBASES[0])
    first = append(ahead, draft)
    assert first is not None
    second = extend(ahead)
    assert second.header.timestamp - first[0].header.timestamp in (0, 1)
    same_second = sealed(
        ahead, ahead.draft([], COINBASES[0]), **at_time(second.header, second.header.time_ms + 1, ahead)
    )
    assert same_second.header.timestamp == second.header.timestamp
    assert ahead.import_block(same_second) is not None
    clock.close()


@pytest.mark.parametrize("step_ms", [0, -1, -5000])
def test_a_time_that_does_not_rise_is_refused(alice: Chain, bob: Chain, step_ms: int) -> None:
    first = extend(alice)
    bob.import_block(first)
    draft = alice.draft([], COINBASES[1])
    late = sealed(alice, draft, **at_time(draft.block.header, first.header.time_ms + step_ms, alice))
    with pytest.raises(ChainError, match="time after its parent"):
        bob.import_block(late)


def test_the_future_is_refused_beyond_a_few_seconds(alice: Chain, bob: Chain) -> None:
    draft = alice.draft([], COINBASES[1])
    far = sealed(alice, draft, **at_time(draft.block.header, now_ms() + 2 * MAX_FUTURE_MS, alice))
    with pytest.raises(ChainError, match="from the future"):
        bob.import_block(far)
    near = sealed(alice, draft, **at_time(draft.block.header, now_ms() + MAX_FUTURE_MS // 2, alice))
    assert bob.import_block(near) is not None


@pytest.mark.parametrize("extra_data", [b"", b"\0" * 7, b"\0" * 9, b"consilia-is-best"])
def test_extra_data_holds_eight_bytes_of_time_and_nothing_else(
    alice: Chain, bob: Chain, extra_data: bytes
) -> None:
    forged = sealed(alice, alice.draft([], COINBASES[0]), extra_data=extra_data)
    with pytest.raises(ChainError, match="extra data"):
        bob.import_block(forged)
    with pytest.raises(ChainError, match="extra_data"):
        Block.decode(forged.encoded)


def test_nobody_mines_in_another_members_name(alice: Chain, bob: Chain) -> None:
    """All the work of an admitted miner does not make another one's signature."""
    extend(alice, index=1)
    copy_blocks(alice, bob)
    theirs = alice.head.header.miner_signature  # on the chain for everybody to copy
    draft = alice.draft([payment(0, 0)], COINBASES[1])
    header = draft.block.header
    own = sign_as(alice, header, KEYS[0]).miner_signature
    for forged in (header.miner_signature, theirs, own, theirs[:65] + own[65:], own[:65] + theirs[65:]):
        block = Block(work(replace(header, miner_signature=forged)), draft.block.transactions)
        with pytest.raises(ChainError, match=r"signature"):
            bob.import_block(block)
    moved = replace(sign_as(alice, header), gas_used=1)  # signed, and then changed
    with pytest.raises(ChainError, match="signature of"):
        bob.import_block(Block(work(moved), draft.block.transactions))
    assert bob.import_block(sealed(alice, draft)) is not None


def test_a_delegation_for_another_network_signs_no_block(alice: Chain, bob: Chain) -> None:
    header = alice.draft([], COINBASES[1]).block.header
    elsewhere = Credentials(NodeKey.generate(), b"")
    delegation = NodeKey(bytes(KEYS[1].key)).sign(delegation_digest(bytes(32), elsewhere.key.address))
    with pytest.raises(ChainError, match="signature of"):
        bob.import_block(Block(work(sign_header(header, replace(elsewhere, delegation=delegation))), ()))
    delegation = NodeKey(bytes(KEYS[1].key)).sign(delegation_digest(bob.rules.network, elsewhere.key.address))
    kept = bob.import_block(Block(work(sign_header(header, replace(elsewhere, delegation=delegation))), ()))
    assert kept is not None  # the same key, delegated for this network


def test_a_block_without_known_parent_asks_for_it(alice: Chain, bob: Chain) -> None:
    extend(alice)
    with pytest.raises(UnknownParentError):
        bob.import_block(extend(alice))


def test_a_block_with_a_transaction_that_may_not_run_is_refused(alice: Chain, bob: Chain) -> None:
    draft = alice.draft([payment(0, 0)], COINBASES[0])
    for bad, message in (
        (payment(1, 5), "nonce too high"),
        (payment(1, 0, maxFeePerGas=1, maxPriorityFeePerGas=0), "base fee"),
        (payment(1, 0, chainId=1), "wrong chain id"),
        (payment(1, 0, value=10**30), "insufficient funds"),
    ):
        forged = Block(seal(alice, draft.block.header), (draft.block.transactions[0], bad.raw))
        with pytest.raises(ChainError, match=f"transaction 1: .*{message}"):
            bob.import_block(forged)


def test_difficulty_follows_the_block_time_and_survives_an_idle_gap() -> None:
    made = genesis(min_difficulty=1000)
    parent = genesis_block(made)[0].header
    parent = replace(parent, difficulty=16_000)
    at = parent.time_ms
    assert next_difficulty(made, parent, at + 1) == 17_000
    assert next_difficulty(made, parent, at + 137) == 17_000  # the window is 200 ms times ln 2
    assert next_difficulty(made, parent, at + 138) == 16_000
    assert next_difficulty(made, parent, at + 2 * 138) == 15_000
    assert next_difficulty(made, parent, at + 10**9) == 8_000  # half, however long nobody mined
    assert next_difficulty(made, replace(parent, difficulty=1000), at + 10**9) == 1000


def test_base_fee_follows_eip_1559() -> None:
    """The published rule: an eighth up when full, an eighth down when empty, steady at half the limit."""
    header = replace(genesis_block(genesis())[0].header, gas_limit=20_000_000, base_fee_wei=10**9)
    for gas_used, expected_wei in (
        (10_000_000, 10**9),
        (20_000_000, 1_125_000_000),
        (0, 875_000_000),
        (9_000_000, 987_500_000),
        (11_000_000, 1_012_500_000),
    ):
        assert next_base_fee(replace(header, gas_used=gas_used)) == expected_wei
    assert next_base_fee(replace(header, gas_used=11_000_000, base_fee_wei=7)) == 8
    assert next_base_fee(replace(header, gas_used=0, base_fee_wei=7)) == 7


def test_garbage_is_no_block(alice: Chain) -> None:
    good = extend(alice, [payment(0, 0)]).encoded
    for garbage in (
        b"",
        b"\x80",
        b"\xc0",
        b"\xff" * 1000,
        b"\xc1" * 100_000,  # nesting that would exhaust the stack
        good[:-1],
        good + b"\0",
        encode_list((b"", b"")),
        bytes(MAX_BLOCK_BYTES + 1),
    ):
        with pytest.raises(ChainError):
            Block.decode(garbage)
    for position in range(len(good)):  # whatever still parses is another block, and encodes to what came
        flipped = bytearray(good)
        flipped[position] ^= 1
        try:
            block = Block.decode(bytes(flipped))
        except ChainError:
            continue
        assert block.encoded == flipped
