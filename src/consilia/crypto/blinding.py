"""A secret behind a fresh number: s^ = sigma + t mod n, checked in the exponent (PROTOCOLS section 5).

n and G are those of secp256k1: the EVM can check t * G with `ecrecover` and nothing else as cheaply. Points
are x and y, 64 bytes; numbers 32 bytes, big-endian, between 1 and n - 1.
"""

from __future__ import annotations

import coincurve
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.errors import VerificationError
from consilia.values import Digest


def derive_t(secret: bytes, deal_id: Digest) -> bytes:
    """The t of one deal. The same deal gives the same t after any crash; no two deals share one.

    Were a t used twice, its reveal in one deal would open the other, unpaid. 48 bytes make the bias of `mod`
    negligible, as with sigma itself.
    """
    wide = HKDF(SHA256(), 48, b"consilia/exchange/t/v1", deal_id).derive(secret)
    return (int.from_bytes(wide, "big") % (SECP256K1_ORDER - 1) + 1).to_bytes(32, "big")


def point_of(number: bytes) -> bytes:
    """number * G.

    Raises:
        VerificationError: the number is not 32 bytes between 1 and n - 1.
    """
    try:
        if len(number) != 32:  # coincurve would fill up a shorter one
            raise ValueError(f"{len(number)} bytes")
        return bytes(coincurve.PublicKey.from_valid_secret(number).format(compressed=False)[1:])
    except ValueError as error:
        raise VerificationError("expected 32 bytes between 1 and the order of secp256k1 less 1") from error


def sum_of(first: bytes, second: bytes) -> bytes:
    """The sum of two points.

    Raises:
        VerificationError: one is not on the curve, or they cancel out.
    """
    try:
        keys = [coincurve.PublicKey(b"\x04" + point) for point in (first, second)]
        return bytes(coincurve.PublicKey.combine_keys(keys).format(compressed=False)[1:])
    except ValueError as error:
        raise VerificationError("expected two points of secp256k1 with a sum; the offer is false") from error


def blind(secret: bytes, t: bytes) -> bytes:
    """s^ = secret + t mod n."""
    total = (int.from_bytes(secret, "big") + int.from_bytes(t, "big")) % SECP256K1_ORDER
    return total.to_bytes(32, "big")


def unblind(blinded: bytes, t: bytes) -> bytes:
    """secret = s^ - t mod n."""
    difference = (int.from_bytes(blinded, "big") - int.from_bytes(t, "big")) % SECP256K1_ORDER
    return difference.to_bytes(32, "big")
