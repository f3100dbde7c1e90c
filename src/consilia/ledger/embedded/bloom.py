"""The 2048-bit bloom filter of a header's events (Ethereum Yellow Paper 4.3.1): which blocks need no look."""

from eth_hash.auto import keccak

from consilia.ledger.embedded.block import BLOOM_BYTES


def may_contain(bloom: bytes, item: bytes) -> bool:
    """Whether an event with this address or topic may be in the block; False is certain."""
    digest = keccak(item)
    for pair in (0, 2, 4):
        bit = int.from_bytes(digest[pair : pair + 2], "big") & 2047
        if not bloom[BLOOM_BYTES - 1 - bit // 8] >> (bit % 8) & 1:
            return False
    return True
