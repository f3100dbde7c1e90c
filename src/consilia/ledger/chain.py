"""The chain as a reader sees it: its head, what of it is confirmed, its blocks and balances."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_utils.address import to_checksum_address

from consilia.errors import LedgerError, RpcError
from consilia.ledger.rpc import METHOD_NOT_FOUND, Rpc, data_bytes, quantity
from consilia.ledger.witnesses import Witnesses
from consilia.values import Address, Digest

POLL_SECONDS = 0.25
"""Between two looks at a node that cannot call back; a quarter of the shortest block time in use (1 s)."""

AGREEMENT_SECONDS = 0.05
"""Between two questions to witnesses: about what a block takes to reach a neighbour."""

UNASKED_CONFIRMATIONS = 3
"""What the embedded chain gives each transaction at once; for more its node has to be asked."""

LONGEST_WAIT_SECONDS = 10.0
"""A single waiting request stays well below the HTTP timeout."""


@dataclass(frozen=True)
class BlockInfo:
    """What Consilia needs of a block; `timestamp` in Unix seconds, `transactions` are their hashes."""

    number: int
    hash: Digest
    parent_hash: Digest
    miner: Address
    timestamp: int
    base_fee_wei: int
    transactions: tuple[Digest, ...]


class Chain:
    """One node's view of the chain.

    The `confirmations`-th block from the head is confirmed, and all before; where there are `witnesses`, only once
    most of the nodes tell of it.
    """

    def __init__(self, rpc: Rpc, confirmations: int, witnesses: Sequence[str] = ()) -> None:
        if confirmations < 1:
            raise LedgerError(f"confirmations must be 1 (the head itself) or more, got {confirmations}")
        self.rpc = rpc
        self.confirmations = confirmations
        self._witnesses = Witnesses(witnesses) if witnesses else None
        self._agreed: BlockInfo | None = None
        self._node_calls_back = True
        self._node_buries = confirmations > UNASKED_CONFIRMATIONS

    def head(self) -> int:
        """The number of the newest block."""
        return quantity(self.rpc.call("eth_blockNumber"))

    def confirmed(self) -> BlockInfo:
        """The newest confirmed block; the genesis is always confirmed."""
        buried = self._buried()
        if self._witnesses is None or buried.number == 0:
            return buried
        if buried != self._agreed and self._witnesses.agree(buried.number, buried.hash):
            self._agreed = buried
        # What most nodes told last holds until most tell of something else.
        return self._agreed or self.block(0)

    @property
    def shortcoming(self) -> str:
        """What a block lacks that is not confirmed."""
        told = "" if self._witnesses is None else ", or most of the other nodes do not tell of it"
        return f"is not yet {self.confirmations} blocks deep{told}"

    def is_deep(self, number: int, head: int) -> bool:
        """Whether a block has its confirmations under a head."""
        return self.confirmations == 1 or head - number + 1 >= self.confirmations

    def is_agreed(self, number: int) -> bool:
        """Whether the witnesses have told of this block of this node's chain, or of one after it."""
        if self._witnesses is None:
            return True
        agreed = self.confirmed()
        if agreed.number < number:
            return False
        here = self.find_block(agreed.number)
        return here is not None and here.hash == agreed.hash

    def _buried(self) -> BlockInfo:
        newest = self.find_block(None)
        while newest is None or self.confirmations > 1:
            found = self.find_block(max(0, self.head() - self.confirmations + 1))
            if found is not None:  # else a re-org to a shorter chain came between
                return found
        return newest

    def find_block(self, number: int | None) -> BlockInfo | None:
        """A block by number, the newest for None; None if the chain is shorter."""
        found = self.rpc.call("eth_getBlockByNumber", "latest" if number is None else hex(number), False)
        return None if found is None else _block_info(found)

    def block(self, number: int) -> BlockInfo:
        """A block by number.

        Raises:
            LedgerError: there is no such block.
        """
        found = self.find_block(number)
        if found is None:
            raise LedgerError(f"expected block {number} at {self.rpc.url}, but its chain is shorter")
        return found

    def balance_wei(self, account: Address) -> int:
        """What an account owns at the head."""
        return quantity(self.rpc.call("eth_getBalance", account, "latest"))

    def wait(self, after_block: int, timeout_seconds: float) -> int:
        """Wait until a block later than `after_block` is confirmed, or the time is over.

        Returns:
            The number of the newest confirmed block.
        """
        deadline = time.monotonic() + timeout_seconds
        depth = self.confirmations - 1
        while True:
            left_seconds = max(0.0, deadline - time.monotonic())
            confirmed = max(0, self.wait_for_head(after_block + depth, left_seconds) - depth)
            if self._witnesses is not None:
                confirmed = self.confirmed().number
            if confirmed > after_block or left_seconds == 0:
                return confirmed
            if self._witnesses is not None:
                time.sleep(min(AGREEMENT_SECONDS, left_seconds))

    def wait_for_news(self, head: int, confirmed: int, timeout_seconds: float) -> int:
        """Wait until there is a head later than `head` or a confirmed block later than `confirmed`.

        Returns:
            The head's number.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            left_seconds = max(0.0, deadline - time.monotonic())
            # deep enough, and only the witnesses have not told of it: they will not move this node's head
            waits_for_witnesses = self._witnesses is not None and self.is_deep(confirmed + 1, head)
            pause_seconds = AGREEMENT_SECONDS if waits_for_witnesses else left_seconds
            newest = self.wait_for_head(head, min(pause_seconds, left_seconds))
            if newest > head or left_seconds == 0:
                return newest
            if waits_for_witnesses and self.confirmed().number > confirmed:
                return newest

    def wait_for_head(self, after_number: int, timeout_seconds: float) -> int:
        """Return when the head's number exceeds `after_number`, or soon, or when the time is over.

        Returns:
            The head's number.
        """
        timeout_seconds = min(timeout_seconds, LONGEST_WAIT_SECONDS)
        if self._node_buries:
            self._ask_for_depth()
        if self._node_calls_back:
            try:
                return quantity(self.rpc.call("consilia_waitForBlock", after_number, timeout_seconds))
            except RpcError as error:
                _require_unknown_method(error)
                self._node_calls_back = False  # some other engine
        head = self.head()
        if head > after_number:
            return head
        time.sleep(min(POLL_SECONDS, timeout_seconds))
        return self.head()

    def _ask_for_depth(self) -> None:
        """A chain that makes blocks on demand must know that somebody waits for more of them."""
        try:
            self.rpc.call("consilia_bury", self.confirmations - 1)
        except RpcError as error:
            _require_unknown_method(error)
            self._node_buries = False  # some other engine, which makes blocks by the clock


def _require_unknown_method(error: RpcError) -> None:
    if error.code != METHOD_NOT_FOUND and "not found" not in str(error).lower():
        raise error


def _block_info(found: dict[str, Any]) -> BlockInfo:
    return BlockInfo(
        number=quantity(found["number"]),
        hash=Digest(data_bytes(found["hash"])),
        parent_hash=Digest(data_bytes(found["parentHash"])),
        miner=to_checksum_address(found["miner"]),
        timestamp=quantity(found["timestamp"]),
        base_fee_wei=quantity(found.get("baseFeePerGas")),
        transactions=tuple(Digest(data_bytes(transaction)) for transaction in found["transactions"]),
    )
