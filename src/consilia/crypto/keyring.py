"""An opener of several identities: the current one, and older ones that still open what was sealed to them."""

from __future__ import annotations

from collections.abc import Sequence

from consilia.crypto.custody import Opener


class Keyring:
    """One `Opener` made of several. What its first one tells as `recipient` is what others seal to."""

    def __init__(self, openers: Sequence[Opener]) -> None:
        self._by_recipient = {key: opener for opener in openers for key in opener.recipients}

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """All public keys, the current one first."""
        return tuple(self._by_recipient)

    @property
    def recipient(self) -> bytes:
        """The current public key, 32 bytes."""
        return self.recipients[0]

    def exchange(self, recipient: bytes, public_key: bytes) -> bytes:
        """The X25519 shared secret of one of `recipients` with somebody's public key.

        Raises:
            EnvelopeError: the public key is no key, or of low order.
        """
        return self._by_recipient[recipient].exchange(recipient, public_key)

    def __repr__(self) -> str:
        return f"Keyring(recipients={[key.hex() for key in self.recipients]})"
