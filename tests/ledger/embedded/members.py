"""Four hospitals with keys, their genesis, and the blocks and transactions that the tests let them make."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils import keccak

from consilia.ledger.embedded.block import Block, Header
from consilia.ledger.embedded.block_signature import sign_header
from consilia.ledger.embedded.chain import Chain, Draft, Progress
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.node_key import Credentials, NodeKey
from consilia.ledger.embedded.seal import seal_ceiling, seal_digest, search
from consilia.ledger.embedded.transaction import Transaction, decode_transaction

CHAIN_ID = 2407
KEYS = [Account.from_key(keccak(text=f"hospital {index}")) for index in range(4)]
COINBASES = [bytes.fromhex(key.address[2:]) for key in KEYS]
OUTSIDER = Account.from_key(keccak(text="outsider"))
BALANCE_WEI = 10**24


def genesis(min_difficulty: int = 16, **changes: Any) -> Genesis:
    """Four miners with money; hardly any work unless the test is about work."""
    values = {
        "chain_id": CHAIN_ID,
        "timestamp": int(time.time()) - 3600,
        "miners": tuple(key.address for key in KEYS),
        "balances_wei": {key.address: BALANCE_WEI for key in KEYS},
        "min_difficulty": min_difficulty,
    }
    return Genesis(**(values | changes))


def sign(index: int, nonce: int, to: str | None = None, data: bytes = b"", **changes: Any) -> bytes:
    """A signed EIP-1559 transaction of hospital `index`, as eth_sendRawTransaction takes it."""
    fields: dict[str, Any] = {
        "chainId": CHAIN_ID,
        "nonce": nonce,
        "gas": 1_500_000,
        "maxFeePerGas": 10**9,
        "maxPriorityFeePerGas": 1,
        "value": 0,
        "data": data,
        "type": 2,
    }
    fields |= {} if to is None else {"to": to}
    return bytes(KEYS[index].sign_transaction(fields | changes).raw_transaction)


def payment(index: int, nonce: int, **changes: Any) -> Transaction:
    """One wei from hospital `index` to the next."""
    return decode_transaction(sign(index, nonce, KEYS[(index + 1) % 4].address, **({"value": 1} | changes)))


def sign_as(chain: Chain, header: Header, account: LocalAccount | None = None) -> Header:
    """The header with a signature of `account`, else of the coinbase that it names, if that is anybody known here."""
    known = {bytes.fromhex(key.address[2:]): key for key in (*KEYS, OUTSIDER)}
    account = account or known.get(header.coinbase, OUTSIDER)
    return sign_header(header, Credentials.of_account(NodeKey(bytes(account.key)), chain.rules.network))


def seal(chain: Chain, header: Header) -> Header:
    """The header with its miner's signature and honest work."""
    return work(sign_as(chain, header))


def work(header: Header) -> Header:
    """The header with honest work; a random start, so that equal headers give different blocks."""
    start = int.from_bytes(os.urandom(7), "big")
    nonce = search(header.mining_hash, seal_ceiling(header.difficulty), start, 1 << 50)
    assert nonce is not None
    return replace(header, nonce=nonce, mix_hash=seal_digest(header.mining_hash, nonce))


def sealed(chain: Chain, draft: Draft, **changes: Any) -> Block:
    """A draft as a signed and sealed block, with some header fields changed before."""
    return Block(seal(chain, replace(draft.block.header, **changes)), draft.block.transactions)


def extend(chain: Chain, transactions: Sequence[Transaction] = (), index: int = 0) -> Block:
    """Mine a block on the head of `chain` for hospital `index`."""
    draft = chain.draft(transactions, COINBASES[index])
    assert len(draft.block.transactions) == len(transactions)
    kept = append(chain, draft)
    assert kept is not None
    return kept[0]


def append(chain: Chain, draft: Draft) -> tuple[Block, Progress] | None:
    """Sign, seal and keep a draft, as a miner does."""
    header = seal(chain, draft.block.header)
    return chain.append(replace(draft, block=replace(draft.block, header=header)), header.nonce)


class Consortium:
    """Chains of one genesis in a folder, opened on demand."""

    def __init__(self, folder: Path, made_of: Genesis, clock_ms: Callable[[], int] | None = None) -> None:
        self.folder = folder
        self.genesis = made_of
        self._clock = {} if clock_ms is None else {"clock_ms": clock_ms}
        self._open: list[Chain] = []

    def chain(self, name: str) -> Chain:
        """The chain in the file of this name."""
        chain = Chain(self.folder / f"{name}.sqlite", self.genesis, **self._clock)
        self._open.append(chain)
        return chain

    def close(self) -> None:
        """Close all chains."""
        for chain in self._open:
            chain.close()


NOTES_SOURCE = """
# pragma version ~=0.4.3
# pragma evm-version london
event Noted:
    who: indexed(address)
    slot: indexed(uint256)
    digest: bytes32

notes: public(HashMap[address, HashMap[uint256, bytes32]])
count: public(uint256)

@external
def note(slot: uint256, digest: bytes32):
    assert self.notes[msg.sender][slot] == empty(bytes32), "notes: slot taken"
    self.notes[msg.sender][slot] = digest
    self.count += 1
    log Noted(who=msg.sender, slot=slot, digest=digest)

@external
@view
def now_seconds() -> uint256:
    return block.timestamp
"""
