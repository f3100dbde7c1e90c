"""Transactions that wait for a block: who gets in, in what order they leave, what a re-org brings back."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from consilia.errors import TransactionRefusedError
from consilia.ledger.embedded.chain import Chain, Progress
from consilia.ledger.embedded.evm import AccountState, account_state, check_funds
from consilia.ledger.embedded.rules import next_base_fee
from consilia.ledger.embedded.transaction import Transaction, check_static, decode_transaction

MAX_PENDING = 4096
MAX_PENDING_PER_SENDER = 512
MAX_PENDING_BYTES = 32 << 20
MAX_NONCE_AHEAD = 64  # how far beyond the next free nonce a transaction may arrive early
REPLACEMENT_PERCENT = 110  # geth's price bump
LIFETIME_MS = 3_600_000  # one that waits for a nonce that never comes is dropped after an hour


@dataclass(frozen=True)
class _Waiting:
    transaction: Transaction
    arrived_ms: int


class Pool:
    """The waiting transactions of one node: in memory, and in the chain file before they are acknowledged."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain
        self._lock = threading.RLock()
        self._by_sender: dict[bytes, dict[int, _Waiting]] = {}
        self._by_hash: dict[bytes, _Waiting] = {}
        self._size_bytes = 0
        self._accounts: dict[bytes, AccountState] = {}  # as of the head with this hash
        self._accounts_at = b""
        self.on_new: Callable[[], None] = lambda: None
        for waiting in chain.file.pending():
            self._put(decode_transaction(waiting.raw), waiting.arrived_ms)
        self._drop_used_nonces()
        chain.on_progress = self.follow

    def __len__(self) -> int:
        return len(self._by_hash)

    def get(self, transaction_hash: bytes) -> Transaction | None:
        """The waiting transaction with this hash."""
        waiting = self._by_hash.get(transaction_hash)
        return None if waiting is None else waiting.transaction

    def add(self, raw: bytes) -> tuple[Transaction, bool]:
        """Admit a transaction; when this returns it is on disk. False if it was waiting here already.

        Raises:
            TransactionRefusedError: it can never run, its nonce is used or too far ahead, the pool is full.
        """
        transaction = decode_transaction(raw)
        with self._lock:
            if transaction.hash in self._by_hash:
                return transaction, False
            self._check(transaction)
            arrived_ms = self._chain.clock_ms()
            replaced = self._by_sender.get(transaction.sender, {}).get(transaction.nonce)
            self._chain.file.add_pending(transaction.hash, raw, arrived_ms)
            if replaced is not None:
                self._drop([replaced.transaction])
            self._put(transaction, arrived_ms)
        self.on_new()
        return transaction, True

    def next_nonce(self, sender: bytes) -> int:
        """The first nonce of an account that neither the head nor a waiting transaction uses."""
        with self._lock:
            nonce = self._account(sender).nonce
            waiting = self._by_sender.get(sender, {})
            while nonce in waiting:
                nonce += 1
        return nonce

    def executable(self) -> list[Transaction]:
        """Those that could run in the next block, longest waiting senders first, each sender's by nonce."""
        base_fee_wei = next_base_fee(self._chain.head.header)
        with self._lock:
            senders = sorted(
                self._by_sender.items(), key=lambda item: min(w.arrived_ms for w in item[1].values())
            )
            chosen: list[Transaction] = []
            for sender, waiting in senders:
                nonce = self._account(sender).nonce
                while (entry := waiting.get(nonce)) and entry.transaction.max_fee_wei >= base_fee_wei:
                    chosen.append(entry.transaction)
                    nonce += 1
        return chosen

    def drop(self, transactions: tuple[Transaction, ...]) -> None:
        """Forget transactions that a draft refused, such as those whose sender spent the money elsewhere."""
        with self._lock:
            self._drop([item for item in transactions if item.hash in self._by_hash])

    def follow(self, progress: Progress) -> None:
        """Take in what a new block did: mined ones leave, those of an abandoned branch come back."""
        with self._lock:
            for block in progress.abandoned:
                for raw in block.transactions:
                    self._put(decode_transaction(raw), block.header.time_ms)
            for block in progress.adopted:
                for transaction_hash in block.transaction_hashes:
                    self._forget(transaction_hash)
            self._drop_used_nonces()
        if progress.abandoned:
            self.on_new()

    # Inside

    def _check(self, transaction: Transaction) -> None:
        genesis = self._chain.genesis
        check_static(transaction, genesis.chain_id, genesis.gas_limit)
        account = self._account(transaction.sender)
        if transaction.nonce < account.nonce:
            raise TransactionRefusedError(
                f"nonce too low: expected {account.nonce} or more, got {transaction.nonce}"
            )
        waiting = self._by_sender.get(transaction.sender, {})
        free = self.next_nonce(transaction.sender)
        if transaction.nonce > free + MAX_NONCE_AHEAD:
            raise TransactionRefusedError(
                f"nonce too high: the next free one is {free}, at most {MAX_NONCE_AHEAD} more are kept, "
                f"got {transaction.nonce}"
            )
        check_funds(transaction, account, next_base_fee(self._chain.head.header))
        replaced = waiting.get(transaction.nonce)
        if replaced is not None:
            _check_replacement(transaction, replaced.transaction)
        elif (
            len(waiting) >= MAX_PENDING_PER_SENDER
            or len(self._by_hash) >= MAX_PENDING
            or self._size_bytes + len(transaction.raw) > MAX_PENDING_BYTES
        ):
            raise TransactionRefusedError(
                f"too many transactions wait (at most {MAX_PENDING_PER_SENDER} a sender, {MAX_PENDING} and "
                f"{MAX_PENDING_BYTES} bytes in all): "
                "send it again after the next block"
            )

    def _account(self, sender: bytes) -> AccountState:
        """The sender's account at the head; looked up once a head, for that is a walk through the trie."""
        head = self._chain.head.header
        if head.hash != self._accounts_at:
            self._accounts, self._accounts_at = {}, head.hash
        if sender not in self._accounts:
            self._accounts[sender] = account_state(self._chain.state(head), sender)
        return self._accounts[sender]

    def _put(self, transaction: Transaction, arrived_ms: int) -> None:
        waiting = _Waiting(transaction, arrived_ms)
        if transaction.hash not in self._by_hash:
            self._size_bytes += len(transaction.raw)
        self._by_hash[transaction.hash] = waiting
        self._by_sender.setdefault(transaction.sender, {})[transaction.nonce] = waiting

    def _forget(self, transaction_hash: bytes) -> None:
        waiting = self._by_hash.pop(transaction_hash, None)
        if waiting is None:
            return
        transaction = waiting.transaction
        self._size_bytes -= len(transaction.raw)
        of_sender = self._by_sender[transaction.sender]
        if of_sender.get(transaction.nonce) is waiting:
            del of_sender[transaction.nonce]
        if not of_sender:
            del self._by_sender[transaction.sender]

    def _drop(self, transactions: list[Transaction]) -> None:
        if transactions:
            self._chain.file.drop_pending([item.hash for item in transactions])
            for item in transactions:
                self._forget(item.hash)

    def _drop_used_nonces(self) -> None:
        oldest_ms = self._chain.clock_ms() - LIFETIME_MS
        stale = []
        for sender, waiting in self._by_sender.items():
            nonce = self._account(sender).nonce
            stale += [
                entry.transaction
                for entry in waiting.values()
                if entry.transaction.nonce < nonce or entry.arrived_ms < oldest_ms
            ]
        self._drop(stale)


def _check_replacement(transaction: Transaction, replaced: Transaction) -> None:
    for came, before in (
        (transaction.max_fee_wei, replaced.max_fee_wei),
        (transaction.max_priority_fee_wei, replaced.max_priority_fee_wei),
    ):
        if came * 100 < before * REPLACEMENT_PERCENT:
            raise TransactionRefusedError(
                f"replacement transaction underpriced: nonce {transaction.nonce} already waits with a fee of "
                f"{before} wei, expected {REPLACEMENT_PERCENT} % of that, got {came} wei"
            )
