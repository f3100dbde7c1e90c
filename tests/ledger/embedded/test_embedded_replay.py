"""The replay: an honest file passes and is summed up; every way to tamper with it is found and named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from eth_hash.auto import keccak
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from web3 import Web3

from consilia.errors import ChainError, HomeError
from consilia.ledger.embedded.block import Block, encode_list
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.evm import list_root
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.replay import open_readonly_provider, replay
from consilia.ledger.embedded.rules import check_outcome
from consilia.ledger.embedded.transaction import decode_transaction
from consilia.ledger.embedded.views import made_contract
from tests.ledger.embedded.conftest import Contract
from tests.ledger.embedded.members import (
    BALANCE_WEI,
    COINBASES,
    KEYS,
    OUTSIDER,
    extend,
    genesis,
    payment,
    seal,
    sign,
    sign_as,
    work,
)

NOTE = keccak(b"note(uint256,bytes32)")[:4]


@pytest.fixture(scope="module")
def made() -> Genesis:
    return genesis()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, made: Genesis, notes: Contract) -> Path:
    """A chain with a contract, payments, events, a failed call, a side branch and a waiting transaction."""
    folder = tmp_path_factory.mktemp("replay")
    chain, fork = Chain(folder / "chain.sqlite", made), Chain(folder / "fork.sqlite", made)
    deployment = decode_transaction(sign(0, 0, data=bytes.fromhex(notes.bytecode[2:])))
    fork.import_block(extend(chain, [deployment]))
    contract = Web3.to_checksum_address(made_contract(deployment))
    losing = extend(fork, [payment(2, 0)], index=2)
    for number in range(3):
        word = number.to_bytes(32, "big")
        note = decode_transaction(sign(1, 2 * number, contract, NOTE + word + b"\7" * 32))
        repeated = decode_transaction(sign(1, 2 * number + 1, contract, NOTE + bytes(32) + b"\7" * 32))
        extend(chain, [note, repeated, payment(2, number)], index=number)
    assert chain.import_block(losing, is_proven=True) is not None  # else it would not be executed and stored
    extend(chain)
    Pool(chain).add(payment(3, 0).raw)
    chain.close()
    fork.close()
    return folder / "chain.sqlite"


@pytest.fixture
def tampered(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(original, tmp_path / "tampered.sqlite"))


def alter(path: Path, sql: str, *parameters: Any) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute(sql, parameters).rowcount > 0
    connection.commit()
    connection.close()


def test_an_honest_chain_passes_and_is_summed_up(original: Path, made: Genesis) -> None:
    seen: list[tuple[int, int]] = []
    report = replay(original, made, lambda done, height: seen.append((done, height)))
    assert report.height == 5
    assert report.transactions == 10
    assert report.side_blocks == 1
    assert report.blocks_by_miner == {KEYS[0].address: 3, KEYS[1].address: 1, KEYS[2].address: 1}
    assert report.rewards_wei[KEYS[0].address] == 3 * made.block_reward_wei
    assert report.burnt_wei > 0
    assert report.total_balance_wei == 4 * BALANCE_WEI + 5 * made.block_reward_wei - report.burnt_wei
    assert seen == [(number, 5) for number in range(6)]


def test_the_audit_reads_a_file_without_a_node(original: Path, made: Genesis, notes: Contract) -> None:
    provider = open_readonly_provider(original, made)
    web3 = Web3(provider)
    assert web3.eth.block_number == 5
    address = web3.eth.get_logs({"fromBlock": 0})[0]["address"]
    events = web3.eth.contract(address=address, abi=notes.abi).events.Noted.get_logs(from_block=0)
    assert [event["args"]["slot"] for event in events] == [0, 1, 2]
    reply = provider.make_request("eth_sendRawTransaction", ["0x00"])
    assert "read-only" in reply["error"]["message"]
    provider.close()


def test_a_missing_file_is_no_chain(tmp_path: Path, made: Genesis) -> None:
    with pytest.raises(HomeError, match="there is none"):
        replay(tmp_path / "nothing.sqlite", made)
    (tmp_path / "text").write_bytes(b"This is no database, however long one looks at it." * 100)
    with pytest.raises(ChainError, match="damaged"):
        replay(tmp_path / "text", made)


def test_another_genesis_is_noticed(original: Path) -> None:
    with pytest.raises(ChainError, match="another genesis"):
        replay(original, genesis(block_reward_wei=1))


BYTE_FIELDS = [
    ("blocks", "hash"),
    ("blocks", "score"),
    ("blocks", "header"),
    ("blocks", "transactions"),
    ("blocks", "receipts"),
    ("canonical", "hash"),
    ("locations", "hash"),
    ("state", "hash"),
    ("state", "node"),
    ("pending", "hash"),
    ("pending", "raw"),
    ("meta", "value"),
]


@pytest.mark.parametrize(("table", "column"), BYTE_FIELDS)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choice=st.data())
def test_any_flipped_byte_of_any_record_is_found(
    table: str, column: str, choice: st.DataObject, original: Path, tmp_path: Path, made: Genesis
) -> None:
    path = Path(shutil.copy(original, tmp_path / "flipped.sqlite"))
    connection = sqlite3.connect(path)
    key = connection.execute(f"PRAGMA table_info({table})").fetchone()[1]
    rows = connection.execute(f"SELECT {key}, {column} FROM {table} WHERE length({column}) > 0").fetchall()
    identity, value = choice.draw(st.sampled_from(rows))
    at = choice.draw(st.integers(0, len(value) - 1))
    changed = bytearray(value)
    changed[at] ^= choice.draw(st.integers(1, 255))
    connection.execute(f"UPDATE {table} SET {column}=? WHERE {key}=?", (bytes(changed), identity))
    connection.commit()
    connection.close()
    with pytest.raises((ChainError, HomeError)):
        replay(path, made)


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("UPDATE blocks SET number=9 WHERE number=3", "block 3: the stored stored number|block 9|block 3"),
        ("UPDATE blocks SET log_count=0 WHERE number=3", "block 3: .*number of logs"),
        ("UPDATE blocks SET header=7 WHERE number=3", "block 3: .*not of bytes"),
        ("DELETE FROM blocks WHERE number=3", "block 3 is missing"),
        ("DELETE FROM canonical WHERE number=3", "block 3 is missing"),
        ("DELETE FROM canonical WHERE number=5", "block 5: .*head was set back"),
        ("DELETE FROM canonical WHERE number>=2", "head was set back"),
        ("DELETE FROM canonical", "block 0 is missing"),
        ("DELETE FROM locations WHERE number=3 AND position=1", "block 3, transaction 1: the index"),
        (
            "UPDATE locations SET position=2 WHERE number=3 AND position=1",
            "block 3, transaction 1: the index",
        ),
        ("DELETE FROM state WHERE rowid_is_first", "state record"),
    ],
)
def test_records_that_are_changed_or_gone_are_named(
    tampered: Path, made: Genesis, sql: str, message: str
) -> None:
    alter(tampered, sql.replace("rowid_is_first", "hash=(SELECT hash FROM state LIMIT 1)"))
    with pytest.raises(ChainError, match=message):
        replay(tampered, made)


def test_a_block_gone_from_the_tip_without_a_trace_cannot_be_known(tampered: Path, made: Genesis) -> None:
    alter(tampered, "DELETE FROM canonical WHERE number=5")
    alter(tampered, "DELETE FROM blocks WHERE number=5")
    assert replay(tampered, made).height == 4


def test_a_false_receipt_with_matching_roots_is_found(tampered: Path, made: Genesis) -> None:
    """A forger with a miner's key and patience reseals; only execution shows the lie."""
    forge(tampered, made, lambda chain, block: lie_about_receipts(chain, block))
    with pytest.raises(ChainError, match="block 5: expected receipts root"):
        replay(tampered, made)


def test_a_false_state_root_with_an_honest_seal_is_found(tampered: Path, made: Genesis) -> None:
    def lie(chain: Chain, block: Block) -> tuple[Block, bytes]:
        parent = chain.header_by_number(4)
        assert parent is not None
        return Block(replace(block.header, state_root=parent.state_root), block.transactions), encode_list(())

    forge(tampered, made, lie)
    with pytest.raises(ChainError, match="block 5: expected state root"):
        replay(tampered, made)


def test_a_tip_by_an_outsider_or_without_work_is_found(tampered: Path, made: Genesis) -> None:
    def outsider(chain: Chain, block: Block) -> tuple[Block, bytes]:
        header = replace(block.header, coinbase=bytes.fromhex(OUTSIDER.address[2:]))
        return Block(header, block.transactions), encode_list(())

    forge(tampered, made, outsider)
    with pytest.raises(ChainError, match=r"block 5: .*not an admitted miner"):
        replay(tampered, made)


def test_a_block_in_another_members_name_is_found(tampered: Path, made: Genesis) -> None:
    """The audit needs nobody's word for who mined: a tip signed by another key does not pass."""
    chain = Chain(tampered, made)
    stored = chain.block_by_number(5)
    assert stored is not None
    forged = work(sign_as(chain, replace(stored.block.header, coinbase=COINBASES[3]), KEYS[0]))
    chain.close()
    put_in_place_of_block_5(tampered, Block(forged, stored.block.transactions), encode_list(stored.receipts))
    with pytest.raises(ChainError, match=rf"block 5: expected the signature of {KEYS[3].address.lower()}"):
        replay(tampered, made)


def lie_about_receipts(chain: Chain, block: Block) -> tuple[Block, bytes]:
    """A block that claims that somebody's transaction had failed."""
    draft = chain.draft([], COINBASES[0])
    assert draft.block.transactions == ()
    raw = payment(2, 3).raw
    failed = b"\x02" + bytes.fromhex("f9010880825208") + b"\xb9\x01\x00" + bytes(256) + b"\xc0"
    header = replace(
        block.header, transactions_root=list_root((raw,)), receipts_root=list_root((failed,)), gas_used=21_000
    )
    return Block(header, (raw,)), encode_list((failed,))


def forge(path: Path, made: Genesis, lie: Callable[[Chain, Block], tuple[Block, bytes]]) -> None:
    """Put a resealed lie in the place of block 5, with every record consistent."""
    chain = Chain(path, made)
    stored = chain.block_by_number(5)
    assert stored is not None
    block, receipts = lie(chain, stored.block)
    block = Block(seal(chain, block.header), block.transactions)
    chain.close()
    put_in_place_of_block_5(path, block, receipts)


def put_in_place_of_block_5(path: Path, block: Block, receipts: bytes) -> None:
    alter(
        path,
        "UPDATE blocks SET hash=?, header=?, transactions=?, receipts=? WHERE number=5",
        block.header.hash,
        block.header.encoded,
        encode_list(block.transactions),
        receipts,
    )
    alter(path, "UPDATE canonical SET hash=? WHERE number=5", block.header.hash)
    if block.transactions:
        alter(path, "INSERT INTO locations VALUES(?, 5, 0)", block.transaction_hashes[0])


def test_the_forgeries_above_start_from_a_valid_block(original: Path, made: Genesis) -> None:
    """Without a lie the same forgery would pass: the seal is honest and the records agree."""
    chain = Chain(original, made, readonly=True)
    stored, parent = chain.block_by_number(5), chain.header_by_number(4)
    assert stored is not None
    assert parent is not None
    check_outcome(stored.block.header, chain.execute(stored.block, parent))
    chain.close()


@pytest.mark.slow
def test_any_flipped_byte_of_the_raw_file_changes_nothing_unnoticed(
    original: Path, tmp_path: Path, made: Genesis
) -> None:
    """A flip in free space of a page is harmless; then the very same chain must come out."""
    import random

    honest = replay(original, made)
    dense = tmp_path / "dense.sqlite"
    connection = sqlite3.connect(original)
    connection.execute("VACUUM INTO ?", (str(dense),))
    connection.close()
    data = dense.read_bytes()
    chooser = random.Random(7)
    found = 0
    for position in chooser.sample(range(len(data)), 60):
        path = tmp_path / "raw.sqlite"
        path.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        for leftover in tmp_path.glob("raw.sqlite-*"):
            leftover.unlink()
        try:
            report = replay(path, made)
        except (ChainError, HomeError):
            found += 1
        else:
            assert replace(report, seconds=0) == replace(honest, seconds=0)
    assert found > 5
