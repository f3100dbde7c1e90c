"""Other members' nodes, asked whether they tell the same history as one's own."""

from __future__ import annotations

import time
from collections.abc import Sequence

from consilia.errors import LedgerError
from consilia.ledger.rpc import HttpProvider, Rpc, data_bytes
from consilia.values import Digest

SILENCE_SECONDS = 2.0
"""A witness that did not answer is left alone for so long: one that is down must not slow down every question."""

ANSWER_SECONDS = 5.0
"""How long to wait for one answer."""


class Witnesses:
    """Says whether most nodes, one's own included, have a block.

    A network can split, and each side goes on by itself; depth alone does not tell, for a chain that makes blocks on
    demand buries whatever it is given. Of two sides at most one has more than half of the nodes. And a node of
    somebody else, which may lie, is not believed alone.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._rpcs = [Rpc(url, HttpProvider(url, ANSWER_SECONDS)) for url in urls]
        self._silent_until = [0.0] * len(urls)

    def agree(self, number: int, block_hash: Digest) -> bool:
        """Whether more than half of all nodes have this block in their chain; one's own is taken to have it."""
        everybody = len(self._rpcs) + 1
        agreeing = 1
        for index in range(len(self._rpcs)):
            if 2 * agreeing > everybody:
                break
            agreeing += self._has(index, number, block_hash)
        return 2 * agreeing > everybody

    def _has(self, index: int, number: int, block_hash: Digest) -> bool:
        if time.monotonic() < self._silent_until[index]:
            return False
        try:
            found = self._rpcs[index].call("eth_getBlockByNumber", hex(number), False)
        except LedgerError:
            self._silent_until[index] = time.monotonic() + SILENCE_SECONDS
            return False
        return found is not None and data_bytes(found["hash"]) == block_hash
