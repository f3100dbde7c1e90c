"""Blocks of lighter branches, set aside unexecuted until their branch is the heavier one.

Most never are: the loser of a race between two miners, and whatever a peer makes up to keep a node busy, cost
it a few hashes and a place in this bounded waiting room, but no execution and no disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from consilia.ledger.embedded.block import Block

MAX_SIDE_BLOCKS = 64
MAX_SIDE_BYTES = 8 << 20


@dataclass(frozen=True)
class SideBlock:
    """A block whose header was checked; `score` is the total difficulty up to and including it."""

    block: Block
    score: int


class SideBlocks:
    """The waiting room. The oldest gives way; whoever misses it later fetches it from a peer."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, SideBlock] = {}
        self._size_bytes = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def get(self, block_hash: bytes) -> SideBlock | None:
        """The waiting block with this hash."""
        return self._waiting.get(block_hash)

    def add(self, block: Block, score: int) -> None:
        """Set a block aside."""
        self._waiting[block.header.hash] = SideBlock(block, score)
        self._size_bytes += len(block.encoded)
        while len(self._waiting) > MAX_SIDE_BLOCKS or self._size_bytes > MAX_SIDE_BYTES:
            self.drop(next(iter(self._waiting)))

    def drop(self, block_hash: bytes) -> None:
        """Forget a block."""
        dropped = self._waiting.pop(block_hash, None)
        if dropped is not None:
            self._size_bytes -= len(dropped.block.encoded)

    def branch_to(self, block: Block) -> list[Block]:
        """The waiting ancestors of `block` and `block` itself, lowest first."""
        branch = [block]
        while (parent := self._waiting.get(branch[-1].header.parent_hash)) is not None:
            branch.append(parent.block)
        return branch[::-1]
