"""Sends an account's transactions: sign, keep, send, wait until confirmed; one key is one transaction."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from typing import Any

from consilia.crypto.custody import Signer
from consilia.errors import (
    LedgerError,
    RpcError,
    TransactionRefusedError,
    TransactionRevertedError,
    TransactionTimeoutError,
)
from consilia.ledger.chain import AGREEMENT_SECONDS, Chain
from consilia.ledger.contracts import revert_reason
from consilia.ledger.outbox import Outbox, OutboxEntry, Signed
from consilia.ledger.rpc import data_bytes, quantity
from consilia.ledger.signing import Transaction, sign_transaction
from consilia.values import Address, Digest

TIP_WEI = 10**9
"""What a miner gets per gas: 1 gwei, geth's default lower bound."""

BASE_FEE_HEADROOM = 16
"""A signed fee cannot be raised. Full blocks raise the base fee by 1/8 each: this lasts for 23 of them."""

FEE_SECONDS = 30.0
"""How long a base fee that was looked up is good for."""

RESEND_SECONDS = 5.0
"""A node may forget a waiting transaction (restart, full pool, re-org): then it gets the bytes again."""

INCLUSION_SECONDS = 300.0
"""How long to wait for confirmation before telling the caller. The transaction stays in the outbox."""


@dataclass(frozen=True)
class Call:
    """What a transaction does. `to` is None when it deploys a contract; `gas` is the limit."""

    to: Address | None
    data: bytes
    gas: int
    value_wei: int = 0

    @property
    def digest(self) -> Digest:
        """Names the deed; the gas limit is no part of it."""
        receiver = bytes.fromhex(self.to.removeprefix("0x")) if self.to else b""
        return Digest(hashlib.sha256(receiver + self.value_wei.to_bytes(32, "big") + self.data).digest())


@dataclass(frozen=True)
class Receipt:
    """A confirmed transaction that did what it was meant to do."""

    block_number: int
    tx_hash: Digest
    gas_used: int


@dataclass(frozen=True)
class Included:
    """A confirmed transaction with its logs as the node gave them, and the contract that it made, if any."""

    receipt: Receipt
    logs: tuple[dict[str, Any], ...]
    contract: Address | None


class Sender:
    """One account's way onto the chain."""

    def __init__(
        self,
        chain: Chain,
        chain_id: int,
        account: Signer,
        outbox: Outbox,
        timeout_seconds: float | None = None,
    ) -> None:
        self._chain = chain
        self._rpc = chain.rpc
        self._chain_id = chain_id
        self._account = account
        self._outbox = outbox
        self._timeout_seconds = INCLUSION_SECONDS if timeout_seconds is None else timeout_seconds
        self._chain_nonce: int | None = None
        self._mined = 0  # all transactions with a lower nonce were seen in a block
        self._head = 0  # the newest block that was heard of
        self._max_fee_wei, self._max_fee_until = 0, 0.0

    @property
    def address(self) -> Address:
        """The account that signs."""
        return str(self._account.address)

    def nonce_of(self, key: str) -> int:
        """The nonce of the transaction kept under a key, or the one that a new transaction would get."""
        kept = self._outbox.find(self._chain_id, self.address, key)
        if kept is not None:
            return kept.nonce
        return self._outbox.next_nonce(self._chain_id, self.address, self._first_nonce())

    def send(self, key: str, call: Call) -> Included:
        """Bring one call onto the chain, once per key however often this is called, and confirmed.

        Raises:
            TransactionRevertedError: the contract refused. Nothing happened, so the key is free again.
            TransactionTimeoutError: no block took it yet; calling again goes on with the same bytes.
            LedgerUnreachableError: no node answers; the same holds.
            TransactionRefusedError: the node refuses it, as for want of funds.
            LedgerError: the key stands for another call.
        """
        entry, fresh = self._keep(key, call)
        try:
            return self._bring(entry, fresh, call)
        except TransactionRevertedError:
            if fresh:
                raise
        # It was signed earlier, perhaps for a history that a re-org has changed: the reason may hold no more.
        return self._bring(*self._keep(key, call), call)

    def resend(self) -> dict[str, str]:
        """Send again, in their order, all kept transactions that no block has.

        Returns:
            What the node would not take, by key, and why.
        """
        self._mined = quantity(self._rpc.call("eth_getTransactionCount", self.address, "latest"))
        lost = self._outbox.from_nonce(self._chain_id, self.address, self._mined)
        refusals = {entry.key: self._offer(entry) for entry in lost}
        return {key: why for key, why in refusals.items() if why}

    def _keep(self, key: str, call: Call) -> tuple[OutboxEntry, bool]:
        """The transaction under a key, and whether it was signed only now."""
        entry = self._outbox.find(self._chain_id, self.address, key)
        if entry is not None and entry.call_digest == call.digest:
            return entry, False
        if entry is not None:
            found = self._included(entry.signed.transaction_hash)
            if found is None or quantity(found["status"]) == 1:
                raise LedgerError(
                    f"the key {key!r} was already used for another call; finish that one, or take a new key"
                )
            self._outbox.retire(self._chain_id, self.address, key)
        fees, nonce = self._fees(), self._first_nonce()
        return self._outbox.add(
            self._chain_id, self.address, key, call.digest, nonce, lambda n: self._sign(call, n, fees)
        )

    def _bring(self, entry: OutboxEntry, fresh: bool, call: Call) -> Included:
        if fresh or self._included(entry.signed.transaction_hash) is None:
            self._broadcast(entry, fresh)
        return self._confirmed(entry, call)

    def _sign(self, call: Call, nonce: int, max_fee_wei: int) -> Signed:
        transaction = Transaction(
            chain_id=self._chain_id,
            nonce=nonce,
            tip_wei=TIP_WEI,
            max_fee_wei=max_fee_wei,
            gas=call.gas,
            to=call.to,
            value_wei=call.value_wei,
            data=call.data,
        )
        return sign_transaction(self._account, transaction)

    def _fees(self) -> int:
        if time.monotonic() >= self._max_fee_until:
            self._max_fee_wei = self._chain.confirmed().base_fee_wei * BASE_FEE_HEADROOM + TIP_WEI
            self._max_fee_until = time.monotonic() + FEE_SECONDS
        return self._max_fee_wei

    def _first_nonce(self) -> int:
        if self._chain_nonce is None:
            # "pending": were the outbox lost, its waiting transactions must not be replaced unseen.
            count = self._rpc.call("eth_getTransactionCount", self.address, "pending")
            self._chain_nonce = quantity(count)
        return self._chain_nonce

    def _broadcast(self, entry: OutboxEntry, fresh: bool = False) -> None:
        """Send the bytes, and before them the earlier ones that the chain lacks: nonces leave no gaps."""
        mined = self._mined
        if mined != entry.nonce or not fresh:
            mined = quantity(self._rpc.call("eth_getTransactionCount", self.address, "latest"))
        if mined > entry.nonce and self._included(entry.signed.transaction_hash) is None:
            self._forget_replaced(entry)
        for waiting in self._outbox.from_nonce(self._chain_id, self.address, mined):
            if waiting.nonce > entry.nonce:
                break
            if refusal := self._offer(waiting):
                if fresh and waiting.key == entry.key:  # no node has ever had it
                    self._outbox.discard(self._chain_id, self.address, entry.key)
                    self._chain_nonce = None  # another process of this home may have used it meanwhile
                raise TransactionRefusedError(f"the ledger node refused {waiting.key!r}: {refusal}")

    def _offer(self, entry: OutboxEntry) -> str:
        """Give a transaction to the node; why it does not take it, or "" if it has it."""
        try:
            self._rpc.call("eth_sendRawTransaction", "0x" + entry.signed.raw.hex())
        except RpcError as error:
            known = self._rpc.call("eth_getTransactionByHash", "0x" + entry.signed.transaction_hash.hex())
            return "" if known is not None else str(error)  # known: it waits there already, or is in a block
        return ""

    def _forget_replaced(self, entry: OutboxEntry) -> None:
        self._outbox.discard(self._chain_id, self.address, entry.key)
        self._chain_nonce = None
        raise LedgerError(
            f"another transaction of {self.address} took the nonce {entry.nonce} of {entry.key!r}: use this "
            "account in one program only; calling again makes a new transaction"
        )

    def _confirmed(self, entry: OutboxEntry, call: Call) -> Included:
        deadline = time.monotonic() + self._timeout_seconds
        resend_at = time.monotonic() + RESEND_SECONDS
        while True:
            # The head is older than the receipt: no block between the two is slept through, and should a re-org
            # come between, the depth is underestimated.
            head = self._head
            found = self._included(entry.signed.transaction_hash)
            number = None if found is None else quantity(found["blockNumber"])
            deep = number is not None and self._chain.is_deep(number, head)
            if found is not None and number is not None and deep and self._chain.is_agreed(number):
                return self._checked(entry, call, found)
            now = time.monotonic()
            if now >= deadline:
                raise TransactionTimeoutError(self._late(entry, found))
            if now >= resend_at:
                resend_at = now + RESEND_SECONDS
                if found is None:
                    self._broadcast(entry)
            if deep:  # only the witnesses have not told of it yet
                time.sleep(AGREEMENT_SECONDS)
                self._head = self._chain.head()
            else:
                self._head = self._chain.wait_for_head(head, max(0.0, min(deadline, resend_at) - now))

    def _late(self, entry: OutboxEntry, found: dict[str, Any] | None) -> str:
        state = "is in no block" if found is None else self._chain.shortcoming
        return (
            f"{entry.key!r} (0x{entry.signed.transaction_hash.hex()}) {state} after "
            f"{self._timeout_seconds:g} s at {self._rpc.url}: see that the chain makes blocks; the same call "
            "later goes on with these bytes"
        )

    def _included(self, transaction_hash: Digest) -> dict[str, Any] | None:
        found = self._rpc.call("eth_getTransactionReceipt", "0x" + transaction_hash.hex())
        return found if found is not None and found.get("blockNumber") is not None else None

    def _checked(self, entry: OutboxEntry, call: Call, found: dict[str, Any]) -> Included:
        receipt = Receipt(
            quantity(found["blockNumber"]), entry.signed.transaction_hash, quantity(found["gasUsed"])
        )
        self._mined = max(self._mined, entry.nonce + 1)
        if quantity(found["status"]) != 1:
            reason = self._reason(call, receipt)
            # It did nothing and its nonce is spent: another transaction for this decision is no double one.
            self._outbox.retire(self._chain_id, self.address, entry.key)
            raise TransactionRevertedError(f"{entry.key}: {reason or 'reverted without a reason'}", reason)
        return Included(receipt, tuple(found["logs"]), found.get("contractAddress"))

    def _reason(self, call: Call, receipt: Receipt) -> str:
        """Replay the call on the state after its block, then on the one before, until it reverts again."""
        if receipt.gas_used >= call.gas:
            return "out of gas"
        request = {"from": self.address, "data": "0x" + call.data.hex(), "value": hex(call.value_wei)}
        if call.to is not None:
            request["to"] = call.to
        for number in (receipt.block_number, max(0, receipt.block_number - 1)):
            try:
                self._rpc.call("eth_call", {**request, "gas": hex(call.gas)}, hex(number))
            except RpcError as error:
                if reason := revert_reason(data_bytes(error.data)):
                    return reason
        return ""
