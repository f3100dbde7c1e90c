"""The key that a node signs with, and its account's word that it may: secp256k1, as in Ethereum's transactions.

A node talks to strangers and runs their code, so it need not hold the account itself: the hospital signs a
delegation to a fresh key whenever it starts its node. The account may then lie in a hardware token.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from typing import NoReturn

import coincurve
from eth_hash.auto import keccak

from consilia.errors import MessageError

DELEGATION_DOMAIN = b"consilia/node-delegation/v1"
ADDRESS_BYTES = 20
SIGNATURE_BYTES = 65  # r, s, recovery


class NodeKey:
    """A secret key in the memory of a node. It is neither shown by `repr` nor pickled."""

    __slots__ = ("_secret", "address")

    def __init__(self, secret: bytes) -> None:
        """`secret` is 32 bytes, a number from 1 to the group's order.

        Raises:
            ValueError: it is not.
        """
        self._secret = coincurve.PrivateKey(secret)
        self.address: bytes = _address(self._secret.public_key.format(compressed=False))

    @classmethod
    def generate(cls) -> NodeKey:
        """A new key: a guest's name among the nodes."""
        return cls(secrets.token_bytes(32))

    def sign(self, digest: bytes) -> bytes:
        """The recoverable signature of a 32-byte digest (deterministic, RFC 6979), 65 bytes."""
        return bytes(self._secret.sign_recoverable(digest, hasher=None))

    def __repr__(self) -> str:
        return f"NodeKey(0x{self.address.hex()})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a node's key is not pickled")


def signer(digest: bytes, signature: bytes) -> bytes:
    """The address whose key made this signature.

    Raises:
        MessageError: no key can have made it.
    """
    if len(signature) == SIGNATURE_BYTES and signature[-1] in (27, 28):  # as Ethereum's tools write it
        signature = signature[:-1] + bytes([signature[-1] - 27])
    try:
        key = coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except ValueError as error:  # what coincurve raises for anything that is no signature
        raise MessageError(f"expected a signature of {SIGNATURE_BYTES} bytes: {error}") from error
    return _address(key.format(compressed=False))


def delegation_digest(network: bytes, node: bytes) -> bytes:
    """What an account signs so that the key with the address `node` may speak for it on one chain.

    `network` is the digest of the genesis, 32 bytes.
    """
    return sha256(DELEGATION_DOMAIN + network + node).digest()


def delegating_account(network: bytes, node: bytes, delegation: bytes) -> bytes:
    """The account that let the key with the address `node` speak for it on this chain.

    Raises:
        MessageError: the delegation is no signature.
    """
    return signer(delegation_digest(network, node), delegation)


@dataclass(frozen=True)
class Credentials:
    """What a node needs to speak for an account: a key of its own, and the account's signature under that."""

    key: NodeKey
    delegation: bytes

    @classmethod
    def of_account(cls, key: NodeKey, network: bytes) -> Credentials:
        """The account's key itself speaks."""
        return cls(key, key.sign(delegation_digest(network, key.address)))

    def account(self, network: bytes) -> bytes:
        """For whom the key speaks on this chain.

        Raises:
            MessageError: the delegation is no signature.
        """
        return delegating_account(network, self.key.address, self.delegation)


@lru_cache(maxsize=1024)
def _address(public_key: bytes) -> bytes:
    return bytes(keccak(public_key[1:])[-ADDRESS_BYTES:])
