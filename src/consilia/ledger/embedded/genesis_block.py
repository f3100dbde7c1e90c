"""Block 0, which every node makes for itself from the genesis."""

from __future__ import annotations

from consilia.ledger.embedded.block import (
    BLOOM_BYTES,
    EMPTY_TRIE_ROOT,
    EMPTY_UNCLES_HASH,
    MINER_SIGNATURE_BYTES,
    Block,
    Header,
)
from consilia.ledger.embedded.evm import genesis_state
from consilia.ledger.embedded.genesis import Genesis


def genesis_block(genesis: Genesis) -> tuple[Block, dict[bytes, bytes]]:
    """Block 0 and its state nodes."""
    state_root, nodes = genesis_state(genesis)
    header = Header(
        parent_hash=bytes(32),
        uncles_hash=EMPTY_UNCLES_HASH,
        coinbase=bytes(20),
        state_root=state_root,
        transactions_root=EMPTY_TRIE_ROOT,
        receipts_root=EMPTY_TRIE_ROOT,
        bloom=bytes(BLOOM_BYTES),
        difficulty=genesis.min_difficulty,
        number=0,
        gas_limit=genesis.gas_limit,
        gas_used=0,
        timestamp=genesis.timestamp,
        extra_data=(genesis.timestamp * 1000).to_bytes(8, "big"),
        mix_hash=genesis.digest(),  # binds every constant, the first miners and the registry into the chain's identity
        nonce=bytes(8),
        base_fee_wei=genesis.base_fee_wei,
        miner_signature=bytes(MINER_SIGNATURE_BYTES),  # nobody mined it
    )
    return Block(header, ()), nodes
