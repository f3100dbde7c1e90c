"""Deploying a consortium's contracts: the founders sign their records, one account puts them on the chain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import rlp
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from consilia.crypto.custody import Signer
from consilia.errors import InputError, LedgerError
from consilia.ledger.chain import Chain
from consilia.ledger.contracts import Deployment, contract_abi
from consilia.ledger.outbox import Outbox
from consilia.ledger.rpc import Provider, Rpc, quantity
from consilia.ledger.sender import Call, Included, Sender
from consilia.ledger.signing import sign_message
from consilia.values import Address, Digest, Role

if TYPE_CHECKING:
    from eth_account.messages import SignableMessage

REGISTRY_GAS, FOUNDER_GAS = 6_000_000, 350_000
"""The registry's code, and what each founder adds: 7 words, a place in the list, an event, a signature."""
ESCROW_GAS, TRAINING_GAS, EXCHANGE_GAS = 2_000_000, 4_500_000, 6_000_000
DIAGNOSIS_GAS = 6_500_000

FOUNDER_TYPE = [
    {"name": "account", "type": "address"},
    {"name": "recipientKey", "type": "bytes32"},
    {"name": "role", "type": "uint8"},
    {"name": "certificateDigest", "type": "bytes32"},
    {"name": "validFrom", "type": "uint256"},
    {"name": "validTo", "type": "uint256"},
]


@dataclass(frozen=True)
class Founder:
    """A founding member as the registry lists it; the fields are in the contract's order.

    `recipient_key` is the X25519 public key (32 bytes), `certificate_digest` the SHA-256 of its legal
    certificate, `valid_from` and `valid_to` are Unix seconds, `signature` is `sign_founder`'s.
    """

    account: Address
    recipient_key: bytes
    role: Role
    certificate_digest: Digest
    valid_from: int
    valid_to: int
    signature: bytes


def contract_address(deployer: Address, nonce: int) -> Address:
    """Where the contract lands that `deployer` makes with this nonce (Ethereum yellow paper, section 7)."""
    encoded = rlp.encode([bytes.fromhex(deployer.removeprefix("0x")), nonce])
    return str(to_checksum_address(keccak(encoded)[12:]))


def sign_founder(
    account: Signer,
    *,
    recipient_key: bytes,
    role: Role,
    certificate_digest: Digest,
    valid_from: int,
    valid_to: int,
    chain_id: int,
    registry: Address,
) -> bytes:
    """A founder's consent to its record and proof that it holds its account: EIP-712, 65 bytes (r, s, v).

    Args:
        registry: where the registry will be, `contract_address(deployer, 0)` for a fresh deployer. The
            signature is worth nothing on any other contract or chain.
    """
    founder = Founder(
        str(account.address), recipient_key, role, certificate_digest, valid_from, valid_to, signature=b""
    )
    return sign_message(account, _consent(founder, chain_id, registry))


def deploy(
    url: str,
    account: Signer,
    founders: Sequence[Founder],
    outbox: Outbox,
    *,
    provider: Provider | None = None,
    confirmations: int = 1,
) -> Deployment:
    """Deploy registry, escrow, training, exchange and diagnosis; called again after a crash, it goes on where it was.

    Until a block has its `confirmations`, a re-org may move the contracts into other blocks; not to other addresses.

    Raises:
        InputError: a founder's signature is for another registry address than this account will make.
        TransactionRevertedError: the registry refuses a founder; the reason says why.
    """
    rpc = Rpc(url, provider)
    chain_id = quantity(rpc.call("eth_chainId"))
    sender = Sender(Chain(rpc, confirmations), chain_id, account, outbox)
    registry = contract_address(sender.address, sender.nonce_of("deploy/registry"))
    _check_signatures(founders, chain_id, registry)
    data = contract_abi("registry").deployment([astuple(founder) for founder in founders])
    first = _deploy(sender, "registry", data, REGISTRY_GAS + FOUNDER_GAS * len(founders))
    # Escrow and training name each other for good: training's address follows from its nonce, the next one.
    training = contract_address(sender.address, sender.nonce_of("deploy/escrow") + 1)
    escrow = contract_address(sender.address, sender.nonce_of("deploy/escrow"))
    _deploy(sender, "escrow", contract_abi("escrow").deployment(registry, training), ESCROW_GAS)
    _deploy(sender, "training", contract_abi("training").deployment(registry, escrow), TRAINING_GAS)
    exchange = contract_address(sender.address, sender.nonce_of("deploy/exchange"))
    _deploy(sender, "exchange", contract_abi("exchange").deployment(registry, training), EXCHANGE_GAS)
    diagnosis = contract_address(sender.address, sender.nonce_of("deploy/diagnosis"))
    _deploy(sender, "diagnosis", contract_abi("diagnosis").deployment(registry), DIAGNOSIS_GAS)
    return Deployment(chain_id, registry, escrow, training, exchange, diagnosis, first.receipt.block_number)


def _deploy(sender: Sender, name: str, data: bytes, gas: int) -> Included:
    expected = contract_address(sender.address, sender.nonce_of(f"deploy/{name}"))
    included = sender.send(f"deploy/{name}", Call(None, data, gas))
    if included.contract is None or to_checksum_address(included.contract) != expected:
        raise LedgerError(f"expected the {name} contract at {expected}, the chain says {included.contract}")
    return included


def _consent(founder: Founder, chain_id: int, registry: Address) -> SignableMessage:
    """What a founder signs: all of its record but the signature."""
    from eth_account.messages import encode_typed_data

    return encode_typed_data(
        domain_data={
            "name": "Consilia registry",
            "version": "1",
            "chainId": chain_id,
            "verifyingContract": registry,
        },
        message_types={"Founder": FOUNDER_TYPE},
        message_data=dict(zip((field["name"] for field in FOUNDER_TYPE), astuple(founder), strict=False)),
    )


def _check_signatures(founders: Sequence[Founder], chain_id: int, registry: Address) -> None:
    # The contract checks too, but cannot say that a signature was made for another place.
    from eth_account import Account

    for founder in founders:
        message = _consent(founder, chain_id, registry)
        if Account.recover_message(message, signature=founder.signature) != founder.account:
            raise InputError(
                f"founder {founder.account}: expected its signature over its record for the registry "
                f"{registry} on chain {chain_id}; let it sign again for that address"
            )
