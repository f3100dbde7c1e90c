"""Signed transactions: parsing, recovery of the sender, the rules that need no state (py-evm's codecs)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import rlp
from eth.exceptions import PyEVMError
from eth.vm.forks.berlin.transactions import calculate_txn_intrinsic_gas_berlin
from eth.vm.forks.london.transactions import LondonTransactionBuilder
from eth_hash.auto import keccak
from eth_keys.exceptions import BadSignature
from eth_utils.exceptions import ValidationError
from rlp.exceptions import RLPException

from consilia.errors import TransactionRefusedError

MAX_TRANSACTION_BYTES = 128 * 1024
SECP256K1_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
MAX_NONCE = 2**64 - 2  # EIP-2681


@dataclass(frozen=True)
class Transaction:
    """A transaction with a valid low-s signature. `to` is empty when it makes a contract."""

    raw: bytes
    hash: bytes
    sender: bytes
    chain_id: int
    nonce: int
    gas: int
    max_fee_wei: int
    max_priority_fee_wei: int
    to: bytes
    value_wei: int
    data: bytes
    type_id: int
    access_list: Sequence[tuple[bytes, Sequence[int]]]
    y_parity: int
    v: int
    r: int
    s: int
    intrinsic_gas: int
    signed: Any = field(repr=False, compare=False)  # py-evm's object of the same transaction

    def effective_gas_price_wei(self, base_fee_wei: int) -> int:
        """What a unit of gas costs in a block with this base fee (EIP-1559)."""
        return min(self.max_fee_wei, base_fee_wei + self.max_priority_fee_wei)

    @property
    def max_cost_wei(self) -> int:
        """What the sender must own before the transaction may run."""
        return self.gas * self.max_fee_wei + self.value_wei


@lru_cache(maxsize=1024)  # a node parses the same bytes on arrival, when it mines them and when a peer did
def decode_transaction(raw: bytes) -> Transaction:
    """Parse the bytes of eth_sendRawTransaction and recover the sender.

    Raises:
        TransactionRefusedError: the bytes are not canonical, or the signature is not a low-s one.
    """
    if not 0 < len(raw) <= MAX_TRANSACTION_BYTES:
        raise TransactionRefusedError(
            f"expected a transaction of 1 to {MAX_TRANSACTION_BYTES} bytes, got {len(raw)}"
        )
    try:
        signed = LondonTransactionBuilder.decode(raw)
        transaction = _with_sender(raw, signed)
    except (RLPException, PyEVMError, ValidationError, RecursionError, ValueError, TypeError) as error:
        raise TransactionRefusedError(f"the bytes are not a London transaction: {error}") from error
    return transaction


def check_static(transaction: Transaction, chain_id: int, gas_limit: int) -> None:
    """Check what depends on no account: chain, gas and fees.

    Raises:
        TransactionRefusedError: the first thing that is wrong, with what was expected.
    """
    if transaction.chain_id != chain_id:
        raise TransactionRefusedError(f"wrong chain id: expected {chain_id}, got {transaction.chain_id}")
    if transaction.gas < transaction.intrinsic_gas:
        raise TransactionRefusedError(
            f"intrinsic gas too low: needs {transaction.intrinsic_gas}, got {transaction.gas}"
        )
    if transaction.gas > gas_limit:
        raise TransactionRefusedError(
            f"exceeds block gas limit: at most {gas_limit}, got {transaction.gas}; split the transaction"
        )
    if transaction.max_priority_fee_wei > transaction.max_fee_wei:
        raise TransactionRefusedError(
            f"max priority fee per gas {transaction.max_priority_fee_wei} is higher than "
            f"max fee per gas {transaction.max_fee_wei}"
        )
    if transaction.nonce > MAX_NONCE:
        raise TransactionRefusedError(f"nonce has reached its maximum {MAX_NONCE}: use another account")


def _with_sender(raw: bytes, signed: Any) -> Transaction:
    if not 0 < signed.s <= SECP256K1_ORDER // 2:  # the other s signs as well: a second hash for the same deed
        raise TransactionRefusedError("signature refused: s is not in the lower half of the order")
    if signed.chain_id is None:
        raise TransactionRefusedError("wrong chain id: sign with the chain id (EIP-155), got none")
    try:
        sender = signed.sender
    except (BadSignature, ValidationError) as error:
        raise TransactionRefusedError(f"signature refused: {error}") from error
    inner = getattr(signed, "_inner", signed)
    type_byte = b"" if inner is signed else raw[:1]
    # py-evm reads an empty list as the number 0, and remembers the bytes it read: without this anybody could
    # give a signed transaction a second hash. Naming the sedes makes rlp encode anew.
    if type_byte + rlp.encode(inner, sedes=type(inner)) != raw:
        raise TransactionRefusedError("the bytes are not a London transaction in canonical encoding")
    return Transaction(
        raw=raw,
        hash=keccak(raw),
        sender=sender,
        chain_id=signed.chain_id,
        nonce=signed.nonce,
        gas=signed.gas,
        max_fee_wei=signed.max_fee_per_gas,
        max_priority_fee_wei=signed.max_priority_fee_per_gas,
        to=signed.to,
        value_wei=signed.value,
        data=signed.data,
        type_id=signed.type_id or 0,
        access_list=signed.access_list,
        y_parity=signed.y_parity,
        v=getattr(inner, "v", signed.y_parity),
        r=signed.r,
        s=signed.s,
        intrinsic_gas=calculate_txn_intrinsic_gas_berlin(signed),
        signed=signed,
    )
