"""The one door to py-evm: run transactions on a state, London rules.

py-evm is archived, so nothing else may lean on it: blocks, fork choice, storage and consensus are ours, and
this module (with transaction.py for the codecs) asks it only to execute. State is a Merkle-Patricia trie
whose nodes are named by their hash: reading needs no lock, and what a block adds is collected aside until
the block is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rlp
from eth.db.backends.base import BaseAtomicDB
from eth.db.trie import _make_trie_root_and_nodes
from eth.exceptions import Revert, VMError
from eth.rlp.accounts import Account as EvmAccount
from eth.vm.execution_context import ExecutionContext
from eth.vm.forks.berlin.transactions import calculate_txn_intrinsic_gas_berlin
from eth.vm.forks.london import LondonVM
from eth.vm.forks.london.receipts import LondonReceiptBuilder
from eth.vm.forks.london.state import LondonState
from eth_hash.auto import keccak

from consilia.errors import ChainError, RpcError, TransactionRefusedError
from consilia.ledger.embedded.block import BLOOM_BYTES, EMPTY_TRIE_ROOT, Header
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.transaction import Transaction, check_static

ReadNode = Callable[[bytes], "bytes | None"]
"""The stored state node or code with this hash."""

SUCCESS = b"\x01"

# py-evm distinguishes kinds of bytes by NewType; ours are plain.
_LondonState: Any = LondonState
_ExecutionContext: Any = ExecutionContext
_intrinsic_gas: Any = calculate_txn_intrinsic_gas_berlin


@dataclass(frozen=True)
class Log:
    """One event: the contract's address, up to four topics of 32 bytes, and data."""

    address: bytes
    topics: tuple[bytes, ...]
    data: bytes


@dataclass(frozen=True)
class Receipt:
    """What a transaction did. Gas is cumulative over its block, as in the receipts trie."""

    raw: bytes
    succeeded: bool
    cumulative_gas_used: int
    bloom: bytes
    logs: tuple[Log, ...]


@dataclass(frozen=True)
class AccountState:
    """Nonce and balance of an account in one state."""

    nonce: int
    balance_wei: int
    has_code: bool


@dataclass(frozen=True)
class Outcome:
    """What executing a block gives: its roots, receipts, and the state nodes that were not there before."""

    state_root: bytes
    transactions_root: bytes
    receipts_root: bytes
    bloom: bytes
    gas_used: int
    receipts: tuple[bytes, ...]
    log_count: int
    nodes: dict[bytes, bytes]


@dataclass(frozen=True)
class Call:
    """An unsigned message for eth_call; the attribute names are those that py-evm reads."""

    sender: bytes
    to: bytes
    data: bytes
    value: int
    gas: int
    access_list: tuple[()] = ()
    max_fee_per_gas: int = 0
    max_priority_fee_per_gas: int = 0

    @property
    def intrinsic_gas(self) -> int:
        """The gas charged before the first instruction."""
        return int(_intrinsic_gas(self))


@dataclass(frozen=True)
class CallResult:
    """The output of a call and the gas that a transaction doing the same would need at least."""

    output: bytes
    gas_used: int


class _Overlay(BaseAtomicDB):
    """py-evm's database: reads fall through to the stored nodes, writes stay here until the block is kept."""

    def __init__(self, read_node: ReadNode) -> None:
        self._read_node = read_node
        self.fresh: dict[bytes, bytes] = {}

    def __getitem__(self, key: bytes) -> bytes:
        value = self.fresh.get(key)
        if value is None:
            value = self._read_node(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: bytes, value: bytes) -> None:
        self.fresh[key] = value

    def __delitem__(self, key: bytes) -> None:
        self.fresh.pop(key, None)

    def _exists(self, key: bytes) -> bool:
        return key in self.fresh or self._read_node(key) is not None

    @contextmanager
    def atomic_batch(self) -> Iterator[Any]:
        yield self


class Execution:
    """One block in the making on its parent's state: apply transactions, then finish once."""

    def __init__(
        self,
        genesis: Genesis,
        header: Header,
        parent_state_root: bytes,
        read_node: ReadNode,
        ancestor_hashes: Iterable[bytes] = (),
    ) -> None:
        self._genesis = genesis
        self._header = header
        self._overlay = _Overlay(read_node)
        self._state = _state(genesis, header, parent_state_root, self._overlay, ancestor_hashes)
        self._transactions: list[bytes] = []
        self._receipts: list[Any] = []
        self._gas_used = 0

    def fits_next(self, transaction: Transaction) -> bool:
        """Whether it is its sender's turn and the gas left in the block is enough."""
        nonce = account_state(self._state, transaction.sender).nonce
        return transaction.nonce == nonce and self._gas_used + transaction.gas <= self._header.gas_limit

    def apply(self, transaction: Transaction) -> None:
        """Run the next transaction; one that reverts is a success here, with a failed receipt.

        Raises:
            TransactionRefusedError: it may not be in this block; the state is as before.
        """
        check_static(transaction, self._genesis.chain_id, self._header.gas_limit)
        if self._gas_used + transaction.gas > self._header.gas_limit:
            raise TransactionRefusedError(
                f"no room: {self._header.gas_limit - self._gas_used} gas left in the block, "
                f"the transaction may use {transaction.gas}"
            )
        check_account(transaction, account_state(self._state, transaction.sender), self._header.base_fee_wei)
        self._state.lock_changes()
        executor = self._state.get_transaction_executor()
        message = executor.build_evm_message(transaction.signed)
        computation = executor.build_computation(message, transaction.signed)
        computation = executor.finalize_computation(transaction.signed, computation)
        self._gas_used += LondonVM.finalize_gas_used(transaction.signed, computation)
        status = b"" if computation.is_error else SUCCESS
        receipt = transaction.signed.make_receipt(status, self._gas_used, computation.get_log_entries())
        self._receipts.append(receipt)
        self._transactions.append(transaction.raw)

    def finish(self) -> Outcome:
        """Pay the block reward and compute the roots."""
        self._state.delta_balance(self._header.coinbase, self._genesis.block_reward_wei)
        self._state.persist()
        receipts = tuple(bytes(receipt.encode()) for receipt in self._receipts)
        bloom = 0
        for receipt in self._receipts:
            bloom |= receipt.bloom
        return Outcome(
            state_root=bytes(self._state.state_root),
            transactions_root=list_root(tuple(self._transactions)),
            receipts_root=list_root(receipts),
            bloom=bloom.to_bytes(BLOOM_BYTES, "big"),
            gas_used=self._gas_used,
            receipts=receipts,
            log_count=sum(len(receipt.logs) for receipt in self._receipts),
            nodes=self._overlay.fresh,
        )


def check_account(transaction: Transaction, account: AccountState, base_fee_wei: int) -> None:
    """Check a transaction against its sender's account just before it runs.

    Raises:
        TransactionRefusedError: wrong nonce, fee below the base fee, too little money, a contract as sender.
    """
    if transaction.nonce != account.nonce:
        order = "low" if transaction.nonce < account.nonce else "high"
        raise TransactionRefusedError(f"nonce too {order}: expected {account.nonce}, got {transaction.nonce}")
    check_funds(transaction, account, base_fee_wei)


def check_funds(transaction: Transaction, account: AccountState, base_fee_wei: int) -> None:
    """Check fee, balance and that the sender is no contract (EIP-1559, EIP-3607).

    Raises:
        TransactionRefusedError: the first of these that is wrong.
    """
    if transaction.max_fee_wei < base_fee_wei:
        raise TransactionRefusedError(
            f"max fee per gas less than block base fee: expected at least {base_fee_wei}, "
            f"got {transaction.max_fee_wei}"
        )
    if account.balance_wei < transaction.max_cost_wei:
        raise TransactionRefusedError(
            f"insufficient funds for gas * price + value: the account has {account.balance_wei} wei, "
            f"the transaction may cost {transaction.max_cost_wei} wei"
        )
    if account.has_code:
        raise TransactionRefusedError("sender is a contract: only accounts with a key may send")


def genesis_state(genesis: Genesis) -> tuple[bytes, dict[bytes, bytes]]:
    """The state root of block 0 and its nodes."""
    overlay = _Overlay(lambda key: None)
    state = _LondonState(overlay, None, EMPTY_TRIE_ROOT)
    for address, balance_wei in sorted(genesis.balances_wei.items()):
        if balance_wei:
            state.set_balance(bytes.fromhex(address[2:]), balance_wei)
    state.persist()
    return bytes(state.state_root), overlay.fresh


def list_root(items: tuple[bytes, ...]) -> bytes:
    """The root of the trie from index to item (transactions, receipts)."""
    return bytes(_make_trie_root_and_nodes(items)[0])


def decode_receipt(raw: bytes) -> Receipt:
    """Parse a stored receipt.

    Raises:
        ChainError: the bytes are not a London receipt.
    """
    try:
        receipt = LondonReceiptBuilder.decode(raw)
    except (rlp.exceptions.RLPException, ValueError, TypeError) as error:
        raise ChainError(f"expected the bytes of a receipt: {error}") from error
    logs = tuple(
        Log(log.address, tuple(topic.to_bytes(32, "big") for topic in log.topics), log.data)
        for log in receipt.logs
    )
    bloom = receipt.bloom.to_bytes(BLOOM_BYTES, "big")
    return Receipt(raw, receipt.state_root == SUCCESS, receipt.gas_used, bloom, logs)


def state_at(genesis: Genesis, header: Header, read_node: ReadNode) -> Any:
    """py-evm's state after `header`, for look-ups (balance, nonce, code, storage)."""
    return _state(genesis, header, header.state_root, _Overlay(read_node), ())


def account_state(state: Any, address: bytes) -> AccountState:
    """Nonce and balance of `address` (20 bytes) in py-evm's state."""
    account = state._account_db._get_account(address)
    has_code = account.code_hash != EvmAccount().code_hash
    return AccountState(account.nonce, account.balance, has_code)


def storage_root(state: Any, address: bytes) -> bytes | None:
    """The root of a contract's storage in py-evm's state; None where no contract is."""
    account = state._account_db._get_account(address)
    return None if account.code_hash == EvmAccount().code_hash else bytes(account.storage_root)


def state_storage(state: Any, address: bytes, slot: int) -> int:
    """The word in a contract's storage slot in py-evm's state."""
    return int(state.get_storage(address, slot))


def call(
    genesis: Genesis, header: Header, state_root: bytes, read_node: ReadNode, message: Call
) -> CallResult:
    """Run a message free of charge in the context of `header` on `state_root`; nothing is kept.

    Raises:
        RpcError: it reverted (code 3, data: the revert bytes) or failed otherwise (code -32000).
    """
    state = _state(genesis, header, state_root, _Overlay(read_node), (), base_fee_wei=0)
    if message.gas < message.intrinsic_gas:
        raise RpcError(-32000, f"intrinsic gas too low: needs {message.intrinsic_gas}, got {message.gas}")
    executor = state.get_transaction_executor()
    try:
        evm_message = executor.build_evm_message(message)
        computation = executor.build_computation(evm_message, message)
        computation.raise_if_error()
    except Revert as error:
        raise _revert(error) from error
    except VMError as error:
        raise RpcError(-32000, f"execution failed: {type(error).__name__}: {error}") from error
    # Before refunds: a transaction must bring the gas that it gets back at its end.
    return CallResult(computation.output, message.gas - computation.get_gas_remaining())


def total_balance_wei(state_root: bytes, read_node: ReadNode) -> int:
    """The sum of all balances in a state.

    Raises:
        ChainError: a state node is missing.
    """
    return sum(rlp.decode(leaf, sedes=EvmAccount).balance for leaf in _leaves(state_root, read_node))


def _leaves(root: bytes, read_node: ReadNode) -> Iterator[bytes]:
    if root == EMPTY_TRIE_ROOT:
        return
    data = read_node(root)
    if data is None:
        raise ChainError(f"state node {root.hex()} is missing")
    waiting = [rlp.decode(data)]
    while waiting:
        node = waiting.pop()
        if len(node) == 2 and node[0][0] & 0x20:
            yield node[1]
            continue
        for child in node[:16] if len(node) == 17 else node[1:]:
            if isinstance(child, list):
                waiting.append(child)
            elif len(child) == 32:
                data = read_node(child)
                if data is None:
                    raise ChainError(f"state node {child.hex()} is missing")
                waiting.append(rlp.decode(data))


def _state(
    genesis: Genesis,
    header: Header,
    state_root: bytes,
    overlay: _Overlay,
    ancestor_hashes: Iterable[bytes],
    base_fee_wei: int | None = None,
) -> Any:
    context = _ExecutionContext(
        coinbase=header.coinbase,
        timestamp=header.timestamp,
        block_number=header.number,
        difficulty=header.difficulty,
        mix_hash=header.mix_hash,
        gas_limit=header.gas_limit,
        prev_hashes=ancestor_hashes,
        chain_id=genesis.chain_id,
        base_fee_per_gas=header.base_fee_wei if base_fee_wei is None else base_fee_wei,
    )
    return _LondonState(overlay, context, state_root)


def _revert(error: Revert) -> RpcError:
    data = error.args[0] if error.args and isinstance(error.args[0], bytes) else b""
    reason = ""
    if data[:4] == keccak(b"Error(string)")[:4]:
        length = int.from_bytes(data[36:68], "big")
        reason = ": " + data[68 : 68 + length].decode("utf-8", "replace")
    return RpcError(3, f"execution reverted{reason}", "0x" + data.hex())
