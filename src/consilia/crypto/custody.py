"""Where secret keys are, seen from outside: all that the rest of Consilia ever asks of one.

A key file in memory (crypto/keys.py) and a hardware token (crypto/token.py) answer the same two questions; so could
a key management service. Whoever takes a `Signer` or an `Opener` never holds the secret itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from consilia.values import Address

if TYPE_CHECKING:
    from eth_account.datastructures import SignedMessage
    from eth_typing import Hash32


class Signer(Protocol):
    """A ledger account (secp256k1). eth-account's accounts are signers as they are: the name is theirs."""

    @property
    def address(self) -> Address:
        """Whose signatures these are."""

    def unsafe_sign_hash(self, message_hash: Hash32) -> SignedMessage:
        """Sign 32 bytes, with a low s and v = 27 or 28.

        Unsafe, because a digest does not show what it stands for: `ledger.signing` calls this with digests that it
        has computed itself, and nothing else should.
        """


class Opener(Protocol):
    """The secret halves of one or more encryption keys (X25519)."""

    @property
    def recipient(self) -> bytes:
        """The public key that others seal to now, 32 bytes."""

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """All public keys, 32 bytes each, whose secrets are held: `recipient` first, then older ones."""

    def exchange(self, recipient: bytes, public_key: bytes) -> bytes:
        """The X25519 shared secret of one of `recipients` with somebody's public key: 32 bytes (RFC 7748).

        Raises:
            EnvelopeError: the public key is of low order.
        """
