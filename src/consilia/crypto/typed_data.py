"""EIP-712 for statements whose fields are all of fixed size, and signatures over them: low-s only.

The contracts' half is contracts/typed_data.vy. eth-account would do it too, but takes a second to import and
accepts the second signature (r, n - s) that a stranger can make of any first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import coincurve
from eth_abi.abi import encode
from eth_hash.auto import keccak
from eth_utils.address import to_checksum_address

from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.errors import VerificationError
from consilia.values import Address, Digest

_DOMAIN_TYPE = b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"


@dataclass(frozen=True)
class Domain:
    """Where a statement is worth something: on one contract of one chain."""

    name: str
    chain_id: int
    contract: Address

    def digest(self, struct_type: str, values: Sequence[object]) -> Digest:
        """What is signed of a struct.

        Args:
            struct_type: such as "Offer(bytes32 dealId,address tAddress)"; fields of fixed size only.
            values: in the order of the fields.
        """
        types = [part.split()[0] for part in struct_type.partition("(")[2].rstrip(")").split(",")]
        struct = keccak(keccak(struct_type.encode()) + encode(types, values))
        domain = keccak(
            encode(
                ["bytes32", "bytes32", "bytes32", "uint256", "address"],
                [
                    keccak(_DOMAIN_TYPE),
                    keccak(self.name.encode()),
                    keccak(b"1"),
                    self.chain_id,
                    self.contract,
                ],
            )
        )
        return Digest(keccak(b"\x19\x01" + domain + struct))


def sign_with_secret(digest: Digest, secret: bytes) -> bytes:
    """Sign with a bare secp256k1 secret (32 bytes): r, s, v, 65 bytes; deterministic (RFC 6979), low-s."""
    signature = coincurve.PrivateKey(secret).sign_recoverable(digest, hasher=None)
    return signature[:64] + bytes((signature[64] + 27,))


def signer_point(digest: Digest, signature: bytes) -> bytes:
    """The public key that made a signature, x and y (64 bytes).

    Raises:
        VerificationError: not 65 bytes, not low-s, another v than 27 or 28, or no such point.
    """
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise VerificationError(
            "expected a signature of 65 bytes that ends in 27 or 28; refuse what it signs"
        )
    if not 0 < int.from_bytes(signature[32:64], "big") <= SECP256K1_ORDER // 2:
        raise VerificationError("expected a signature with the lower s: anybody can make the other one of it")
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes((signature[64] - 27,)), digest, hasher=None
        )
    except ValueError as error:
        raise VerificationError("a signature leads to no public key: it is damaged") from error
    return bytes(key.format(compressed=False)[1:])


def signer(digest: Digest, signature: bytes) -> Address:
    """The account that made a signature. Raises as `signer_point`."""
    return address_of_point(signer_point(digest, signature))


def address_of_point(point: bytes) -> Address:
    """The account of a public key (x and y, 64 bytes): the end of its keccak-256."""
    return str(to_checksum_address(keccak(point)[12:]))
