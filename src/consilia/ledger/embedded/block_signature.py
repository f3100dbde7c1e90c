"""The miner's own word for a block: its node's key signs the header, under its account's delegation.

Work alone names nobody: whoever has a core could seal a block in another member's name, also one that the members have
suspended. The signature covers all but itself and the seal, and the seal covers the signature, so that neither can be
moved. It rides in the header: a chain of headers, a chain file and an export prove it without anything beside them
(docs/adr/0066-a-block-is-signed-by-its-miner.md).
"""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

from consilia.errors import ChainError, MessageError
from consilia.ledger.embedded.block import Header
from consilia.ledger.embedded.node_key import SIGNATURE_BYTES, Credentials, delegating_account, signer

BLOCK_DOMAIN = b"consilia/block/v1"


def sign_header(header: Header, credentials: Credentials) -> Header:
    """The header with the signature of who mines it; the search for its seal comes after."""
    signature = credentials.key.sign(_digest(header))
    return replace(header, miner_signature=credentials.delegation + signature)


def check_signature(header: Header, network: bytes) -> None:
    """Check that the coinbase itself has signed; `network` is the digest of the genesis, 32 bytes.

    Raises:
        ChainError: it has not.
    """
    delegation = header.miner_signature[:SIGNATURE_BYTES]
    try:
        node = signer(_digest(header), header.miner_signature[SIGNATURE_BYTES:])
        account = delegating_account(network, node, delegation)
    except MessageError as error:
        raise ChainError(f"block {header.number}: expected its miner's signature: {error}") from error
    if account != header.coinbase:
        raise ChainError(
            f"block {header.number}: expected the signature of 0x{header.coinbase.hex()}, who it says has mined it, "
            f"or of a key of its; it is signed for 0x{account.hex()}"
        )


def _digest(header: Header) -> bytes:
    """The parent's hash in it leads to block 0, which names the network."""
    return sha256(BLOCK_DOMAIN + header.signing_hash).digest()
