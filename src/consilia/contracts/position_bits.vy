# pragma version 0.4.3
# pragma evm-version london
"""
@title A set of up to 512 positions as the bits of two words: position p is bit p % 256 of word p // 256
"""

EVERY_2ND: constant(uint256) = max_value(uint256) // 3  # 0x5555...
PAIRS: constant(uint256) = max_value(uint256) // 5  # 0x3333...
NIBBLES: constant(uint256) = max_value(uint256) // 17  # 0x0f0f...
BYTES: constant(uint256) = max_value(uint256) // 257  # 0x00ff00ff...


@internal
@pure
def _all_below(positions: uint256[2], limit: uint256) -> bool:
    if limit < 256:
        return positions[1] == 0 and positions[0] >> limit == 0
    return positions[1] >> (limit - 256) == 0


@internal
@pure
def _count(positions: uint256[2]) -> uint256:
    return self._ones(positions[0]) + self._ones(positions[1])


@internal
@pure
def _ones(word: uint256) -> uint256:
    # Sums neighbouring bits, then pairs, nibbles and bytes, all at once (Hacker's Delight, 5-1): the gas does not
    # depend on how many hospitals take part.
    n: uint256 = word - ((word >> 1) & EVERY_2ND)
    n = (n & PAIRS) + ((n >> 2) & PAIRS)
    n = (n + (n >> 4)) & NIBBLES
    n = (n & BYTES) + ((n >> 8) & BYTES)
    return n % 65535  # the sum of the digits of base 65536
