"""Keys in a PKCS#11 token (a hardware security module, or SoftHSM): they are made there and never leave it.

The account is a secp256k1 key that signs by CKM_ECDSA; low s and the recovery number are computed here, for tokens know
neither. An identity is an X25519 key that gives shared secrets by CKM_ECDH1_DERIVE. Keys are found by their label.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import coincurve
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from eth_hash.auto import keccak

from consilia.crypto.envelope import SECP256K1_ORDER
from consilia.errors import EnvelopeError, KeyTokenError
from consilia.values import Address

if TYPE_CHECKING:
    from eth_account.datastructures import SignedMessage
    from eth_typing import Hash32
    from pkcs11 import Object, Session

_SECP256K1 = bytes.fromhex("06052b8104000a")  # DER of the curve's object identifier, 1.3.132.0.10
_X25519 = bytes.fromhex("06032b656e")  # 1.3.101.110, RFC 8410


class Token:
    """A token that this process is logged in to. One call at a time: a session holds one operation."""

    def __init__(self, module: Path, label: str, pin: str, *, writable: bool = False) -> None:
        """Log in once; a wrong PIN is not tried again, for a token locks itself after a few.

        Args:
            module: the maker's PKCS#11 library.
            label: the token's.
            writable: to make keys or change labels.

        Raises:
            KeyTokenError: no such library or token, or another PIN.
        """
        self.name = label
        self._lock = threading.RLock()
        if importlib.util.find_spec("pkcs11") is None:
            raise KeyTokenError("keys in a token need the package python-pkcs11: pip install 'consilia[hsm]'")
        with self._errors("open"):
            self._session = _open_session(module, label, pin, writable)

    def find(self, private: bool, prefix: str) -> dict[str, Any]:
        """The private (or public) keys whose labels begin with `prefix`, by label.

        Raises:
            KeyTokenError: two have the same label.
        """
        from pkcs11 import Attribute, ObjectClass

        kind = ObjectClass.PRIVATE_KEY if private else ObjectClass.PUBLIC_KEY
        found: dict[str, Any] = {}
        with self._errors("look for a key"):
            for key in self._session.get_objects({Attribute.CLASS: kind}):
                label = str(key[Attribute.LABEL])
                if label in found:
                    raise KeyTokenError(
                        f"the token {self.name!r} has two keys with the label {label!r}: rename one"
                    )
                if label.startswith(prefix):
                    found[label] = key
        return found

    def point(self, label: str, curve: bytes, size: int) -> bytes:
        """The public half of the key pair with this label: the last `size` bytes of its CKA_EC_POINT.

        Raises:
            KeyTokenError: there is none, or it is on another curve.
        """
        from pkcs11 import Attribute

        key = self.find(False, label).get(label)
        if key is None:
            raise KeyTokenError(
                f"the token {self.name!r} has no public key with the label {label!r}: consilia keys new makes one"
            )
        with self._errors("read a public key"):
            if bytes(key[Attribute.EC_PARAMS]) != curve:
                raise KeyTokenError(f"the key {label!r} in the token {self.name!r} is on another curve")
            return bytes(key[Attribute.EC_POINT])[
                -size:
            ]  # some tokens wrap it as an octet string, some do not

    def sign(self, key: Any, digest: bytes) -> bytes:
        """r and s (32 bytes each) of CKM_ECDSA over a digest as it is."""
        from pkcs11 import Mechanism

        with self._errors("sign"):
            return bytes(key.sign(digest, mechanism=Mechanism.ECDSA))

    def derive(self, key: Any, public_key: bytes) -> bytes:
        """The shared secret of CKM_ECDH1_DERIVE without a key derivation function, 32 bytes."""
        from pkcs11 import KDF, Attribute, KeyType, Mechanism

        template = {Attribute.TOKEN: False, Attribute.SENSITIVE: False, Attribute.EXTRACTABLE: True}
        with self._errors("derive a shared secret"):
            shared = key.derive_key(
                KeyType.GENERIC_SECRET,
                256,
                mechanism=Mechanism.ECDH1_DERIVE,
                mechanism_param=(KDF.NULL, None, public_key),
                template=template,
            )
            try:
                return bytes(shared[Attribute.VALUE])
            finally:
                shared.destroy()

    def make_account(self, label: str) -> None:
        """Make a secp256k1 key pair that can sign and never leaves the token.

        Raises:
            KeyTokenError: the label is taken, or the token refuses.
        """
        from pkcs11 import KeyType, MechanismFlag

        self._make(label, KeyType.EC, _SECP256K1, MechanismFlag.SIGN | MechanismFlag.VERIFY)

    def make_identity(self, label: str) -> None:
        """Make an X25519 key pair that gives shared secrets and never leaves the token; try it once.

        Raises:
            KeyTokenError: the label is taken, or the token knows no X25519, or computes something else.
        """
        from pkcs11 import KeyType, Mechanism, MechanismFlag

        mechanism = Mechanism.EC_EDWARDS_KEY_PAIR_GEN
        self._make(label, KeyType.EC_EDWARDS, _X25519, MechanismFlag.DERIVE, mechanism)
        probe = X25519PrivateKey.generate()
        made = self.point(label, _X25519, 32)
        shared = self.derive(self.find(True, label)[label], probe.public_key().public_bytes_raw())
        if shared != probe.exchange(X25519PublicKey.from_public_bytes(made)):
            raise KeyTokenError(
                f"the token {self.name!r} does not compute X25519 (RFC 7748): keep identities in files"
            )

    def rename(self, old: str, new: str) -> None:
        """Give both halves of a key pair another label.

        Raises:
            KeyTokenError: the token refuses.
        """
        from pkcs11 import Attribute

        for private in (False, True):
            key: Object | None = self.find(private, old).get(old)
            with self._errors("rename a key"):
                if key is not None:
                    key[Attribute.LABEL] = new

    def _make(self, label: str, kind: Any, curve: bytes, use: Any, mechanism: Any = None) -> None:
        from pkcs11 import Attribute

        if label in self.find(True, label) or label in self.find(False, label):
            raise KeyTokenError(f"the token {self.name!r} has a key {label!r}; keys are never overwritten")
        with self._errors("make a key"):
            parameters = self._session.create_domain_parameters(
                kind, {Attribute.EC_PARAMS: curve}, local=True
            )
            parameters.generate_keypair(
                store=True,
                label=label,
                capabilities=use,
                mechanism=mechanism,
                private_template={Attribute.SENSITIVE: True, Attribute.EXTRACTABLE: False},
            )

    @contextmanager
    def _errors(self, deed: str) -> Iterator[None]:
        from pkcs11.exceptions import PKCS11Error

        with self._lock:
            try:
                yield
            except PKCS11Error as error:
                reason = " ".join((type(error).__name__, str(error))).strip()
                raise KeyTokenError(f"the token {self.name!r} does not {deed}: {reason}") from error


class TokenSigner:
    """A `Signer` whose key is in a token."""

    def __init__(self, token: Token, label: str) -> None:
        self._token = token
        self._public_key = coincurve.PublicKey(token.point(label, _SECP256K1, 65))
        self._key = _private(token, label)
        self.address: Address = _address(self._public_key)

    def unsafe_sign_hash(self, message_hash: Hash32) -> SignedMessage:
        """Sign 32 bytes. A token draws its own random number: signing twice gives two signatures.

        Raises:
            KeyTokenError: the token refuses, or what came is no signature of this key.
        """
        from eth_account.datastructures import SignedMessage
        from hexbytes import HexBytes

        came = self._token.sign(self._key, message_hash)
        r, s = int.from_bytes(came[:32], "big"), int.from_bytes(came[32:], "big")
        s = (
            min(s, SECP256K1_ORDER - s) % SECP256K1_ORDER
        )  # contracts and nodes take the lower of the two alone
        short = came[:32] + s.to_bytes(32, "big")
        for recovery in (0, 1):
            if self._is_mine(short + bytes((recovery,)), message_hash):
                signature = HexBytes(short + bytes((27 + recovery,)))
                return SignedMessage(HexBytes(message_hash), r, s, 27 + recovery, signature)
        raise KeyTokenError(f"what the token {self._token.name!r} gave is no signature by {self.address}")

    def _is_mine(self, signature: bytes, digest: bytes) -> bool:
        try:
            found = coincurve.PublicKey.from_signature_and_message(signature, digest, hasher=None)
        except ValueError:
            return False
        return bool(found == self._public_key)

    def __repr__(self) -> str:
        return f"TokenSigner(address={self.address})"


class TokenIdentity:
    """An `Opener` whose keys are in a token: the current one, one that is being registered, and older ones.

    They are told apart by their labels: LABEL, "LABEL next", and "LABEL older 0123456789abcdef".
    """

    def __init__(self, token: Token, label: str) -> None:
        self._token = token
        names = token.find(True, label)
        current = [name for name in (label, _next(label)) if name in names]
        if not current:
            raise KeyTokenError(
                f"the token {token.name!r} has no private key with the label {label!r}: consilia keys new makes one"
            )
        older = sorted(name for name in names if name.startswith(f"{label} older "))
        self._keys = {token.point(name, _X25519, 32): names[name] for name in (*current, *older)}

    @property
    def recipients(self) -> tuple[bytes, ...]:
        """All public keys, the current one first."""
        return tuple(self._keys)

    @property
    def recipient(self) -> bytes:
        """The current public key, 32 bytes."""
        return self.recipients[0]

    def exchange(self, recipient: bytes, public_key: bytes) -> bytes:
        """The X25519 shared secret, computed in the token.

        Raises:
            EnvelopeError: the public key is no key, or of low order. It came from a peer, so it is looked at here:
                a token would say no more than that it failed.
            KeyTokenError: the token is gone.
        """
        try:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(public_key))
        except ValueError as error:
            raise EnvelopeError(
                f"a sealed key does not open: it came with {public_key.hex()}, of low order"
            ) from error
        return self._token.derive(self._keys[recipient], public_key)

    def __repr__(self) -> str:
        return f"TokenIdentity(recipients={[key.hex() for key in self.recipients]})"


def prepare_next(token: Token, label: str) -> bytes:
    """Make the identity that will follow the current one, unless it is there already; its public key.

    Raises:
        KeyTokenError: the token refuses.
    """
    following = _next(label)
    if following not in token.find(True, following):
        token.make_identity(following)
    return token.point(following, _X25519, 32)


def adopt_next(token: Token, label: str) -> None:
    """Make the prepared identity the current one, and the current one an older one. Repeatable after a crash.

    Raises:
        KeyTokenError: the token refuses.
    """
    if label in token.find(True, label):
        token.rename(label, f"{label} older {token.point(label, _X25519, 32).hex()[:16]}")
    token.rename(_next(label), label)


def _next(label: str) -> str:
    return f"{label} next"


def _private(token: Token, label: str) -> Any:
    key = token.find(True, label).get(label)
    if key is None:
        raise KeyTokenError(f"the token {token.name!r} has no private key with the label {label!r}")
    return key


def _address(public_key: coincurve.PublicKey) -> Address:
    from eth_utils.address import to_checksum_address

    return str(to_checksum_address(keccak(public_key.format(compressed=False)[1:])[12:]))


def _open_session(module: Path, label: str, pin: str, writable: bool) -> Session:
    import pkcs11
    from pkcs11.exceptions import NoSuchToken, UserAlreadyLoggedIn

    if not module.is_file():
        raise KeyTokenError(
            f"there is no PKCS#11 library {module}; SoftHSM's is /usr/lib/softhsm/libsofthsm2.so"
        )
    try:
        library = pkcs11.lib(str(module))
        token = library.get_token(token_label=label)
    except NoSuchToken as error:
        raise KeyTokenError(
            f"{module.name} knows no token {label!r}: is it plugged in, and its service up?"
        ) from error
    except RuntimeError as error:  # what the loader says of a file that is no library
        raise KeyTokenError(f"the PKCS#11 library {module} does not load: {error}") from error
    try:
        return token.open(rw=writable, user_pin=pin)
    except UserAlreadyLoggedIn:  # this process is, in another session: logins are by process
        return token.open(rw=writable)
