"""Who gets into the pool, with which words others are refused, and in which order they leave."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import rlp
from eth_keys import keys as eth_keys
from eth_keys.backends import CoinCurveECCBackend

from consilia.errors import TransactionRefusedError
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.pool import MAX_NONCE_AHEAD, Pool
from consilia.ledger.embedded.transaction import SECP256K1_ORDER, decode_transaction
from tests.ledger.embedded.members import BALANCE_WEI, KEYS, OUTSIDER, Consortium, extend, payment, sign


@pytest.fixture
def chain(consortium: Consortium) -> Chain:
    return consortium.chain("alice")


@pytest.fixture
def pool(chain: Chain) -> Iterator[Pool]:
    return Pool(chain)


def with_high_s(raw: bytes) -> bytes:
    """The same transaction with the other valid s: a second hash for the same deed."""
    fields = rlp.decode(raw[1:])
    parity, s = int.from_bytes(fields[-3], "big"), int.from_bytes(fields[-1], "big")
    flipped = [*fields[:-3], b"" if parity else b"\1", fields[-2], (SECP256K1_ORDER - s).to_bytes(32, "big")]
    return raw[:1] + rlp.encode(flipped)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (sign(0, 0, chainId=1), "wrong chain id: expected 2407, got 1"),
        (sign(0, 0, gas=30_000_001), "exceeds block gas limit"),
        (sign(0, 0, KEYS[1].address, gas=20_999), "intrinsic gas too low: needs 21000"),
        (sign(0, 0, maxFeePerGas=6, maxPriorityFeePerGas=0), "block base fee: expected at least 7"),
        (sign(0, 0, maxFeePerGas=10, maxPriorityFeePerGas=11), "max priority fee"),
        (sign(0, 0, KEYS[1].address, value=BALANCE_WEI), "insufficient funds"),
        (sign(0, MAX_NONCE_AHEAD + 1), "nonce too high: the next free one is 0"),
        (with_high_s(sign(0, 0)), "lower half"),
        (b"", "1 to 131072 bytes"),
        (b"\x02" + bytes(131072), "1 to 131072 bytes"),
        (b"\x02\xc0", "not a London transaction"),
        (b"\x03\xc0", "not a London transaction"),
        (b"\xc1" * 100_000, "not a London transaction"),
        (sign(0, 0) + b"\0", "not a London transaction"),
        (sign(0, 0)[:-1], "not a London transaction"),
    ],
)
def test_refused_with_a_clear_word(pool: Pool, raw: bytes, message: str) -> None:
    with pytest.raises(TransactionRefusedError, match=message):
        pool.add(raw)
    assert len(pool) == 0


def test_no_single_flipped_bit_passes_for_the_same_sender() -> None:
    raw = sign(0, 0)
    sender = decode_transaction(raw).sender
    for position in range(len(raw)):
        for bit in range(8):
            changed = bytearray(raw)
            changed[position] ^= 1 << bit
            try:
                transaction = decode_transaction(bytes(changed))
            except TransactionRefusedError:
                continue
            assert transaction.sender != sender


def test_legacy_transactions_need_a_chain_id(pool: Pool) -> None:
    fields = {"nonce": 0, "gas": 21_000, "gasPrice": 10, "to": KEYS[1].address, "value": 1}
    unprotected = bytes(KEYS[0].sign_transaction(fields).raw_transaction)
    with pytest.raises(TransactionRefusedError, match="EIP-155"):
        pool.add(unprotected)
    protected = bytes(KEYS[0].sign_transaction(fields | {"chainId": 2407}).raw_transaction)
    assert pool.add(protected)[1]


def test_an_unknown_account_has_no_funds(pool: Pool) -> None:
    fields = {"chainId": 2407, "nonce": 0, "gas": 21_000, "gasPrice": 10, "to": KEYS[1].address, "value": 0}
    with pytest.raises(TransactionRefusedError, match="the account has 0 wei"):
        pool.add(bytes(OUTSIDER.sign_transaction(fields).raw_transaction))


def test_nonces_may_come_early_but_run_in_order(chain: Chain, pool: Pool) -> None:
    for nonce in (2, 0, 3):
        pool.add(payment(0, nonce).raw)
    assert [item.nonce for item in pool.executable()] == [0]
    assert pool.next_nonce(payment(0, 0).sender) == 1
    pool.add(payment(0, 1).raw)
    assert [item.nonce for item in pool.executable()] == [0, 1, 2, 3]
    assert pool.next_nonce(payment(0, 0).sender) == 4
    extend(chain, pool.executable())
    with pytest.raises(TransactionRefusedError, match="nonce too low: expected 4 or more, got 3"):
        pool.add(payment(0, 3, value=2).raw)


def test_the_same_transaction_twice_is_one(pool: Pool) -> None:
    assert pool.add(payment(0, 0).raw)[1]
    assert not pool.add(payment(0, 0).raw)[1]
    assert len(pool) == 1


def test_a_replacement_must_pay_a_tenth_more(chain: Chain, pool: Pool) -> None:
    pool.add(payment(0, 0, maxFeePerGas=1000, maxPriorityFeePerGas=100).raw)
    with pytest.raises(TransactionRefusedError, match="replacement transaction underpriced"):
        pool.add(payment(0, 0, maxFeePerGas=1099, maxPriorityFeePerGas=110).raw)
    better = payment(0, 0, maxFeePerGas=1100, maxPriorityFeePerGas=110)
    pool.add(better.raw)
    assert pool.executable() == [better]
    assert [item.raw for item in chain.file.pending()] == [better.raw]


def test_what_can_never_run_leaves_pool_and_file(chain: Chain, pool: Pool) -> None:
    spends_all = payment(0, 0, value=BALANCE_WEI - 10**16, gas=21_000)
    then_too_poor = payment(0, 1, value=10**17, gas=21_000)
    for transaction in (spends_all, then_too_poor):
        pool.add(transaction.raw)
    draft = chain.draft(pool.executable(), payment(1, 0).sender)
    assert draft.refused == (then_too_poor,)
    pool.drop(draft.refused)
    assert len(pool) == 1
    assert [item.raw for item in chain.file.pending()] == [spends_all.raw]


def test_signatures_are_recovered_by_libsecp256k1() -> None:
    """The pure-Python backend is hundreds of times slower and silently taken when coincurve is missing."""
    assert isinstance(eth_keys.PrivateKey(b"\1" * 32).backend, CoinCurveECCBackend)
