"""What an account signs: transactions (EIP-1559) and typed data (EIP-712). The digest is always computed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import rlp
from eth_typing import Hash32
from eth_utils.crypto import keccak

from consilia.crypto.custody import Signer
from consilia.ledger.outbox import Signed
from consilia.values import Address, Digest

if TYPE_CHECKING:
    from eth_account.messages import SignableMessage

_DYNAMIC_FEE = b"\x02"


@dataclass(frozen=True)
class Transaction:
    """An EIP-1559 transaction before it is signed. `to` is None where it makes a contract."""

    chain_id: int
    nonce: int
    tip_wei: int
    max_fee_wei: int
    gas: int
    to: Address | None
    value_wei: int
    data: bytes


def sign_transaction(signer: Signer, transaction: Transaction) -> Signed:
    """The bytes that a node takes (EIP-1559, EIP-2718), and their keccak-256."""
    receiver = bytes.fromhex(transaction.to.removeprefix("0x")) if transaction.to else b""
    no_access_list: list[bytes] = []
    payload = [
        transaction.chain_id,
        transaction.nonce,
        transaction.tip_wei,
        transaction.max_fee_wei,
        transaction.gas,
        receiver,
        transaction.value_wei,
        transaction.data,
        no_access_list,
    ]
    signed = signer.unsafe_sign_hash(Hash32(keccak(_DYNAMIC_FEE + rlp.encode(payload))))
    raw = _DYNAMIC_FEE + rlp.encode([*payload, signed.v - 27, signed.r, signed.s])
    return Signed(raw, Digest(keccak(raw)))


def sign_message(signer: Signer, message: SignableMessage) -> bytes:
    """Sign typed data as `eth_account.messages.encode_typed_data` gives it: 65 bytes (r, s, v)."""
    encoded = b"\x19" + message.version + message.header + message.body  # EIP-191
    return bytes(signer.unsafe_sign_hash(Hash32(keccak(encoded))).signature)
