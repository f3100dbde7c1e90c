"""Keys in a PKCS#11 token, SoftHSM: the ledger takes what it signs, it opens what is sealed to it, none leaves it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from eth_account import Account
from eth_utils.crypto import keccak

from consilia.crypto import hpke
from consilia.crypto.envelope import SECP256K1_ORDER, open_envelope
from consilia.crypto.token import Token, TokenIdentity, TokenSigner, adopt_next, prepare_next
from consilia.errors import EnvelopeError, KeyTokenError
from consilia.values import Digest
from tests.crypto.sealing import CONTEXT, SERVER, seal_bytes
from tests.softhsm import SoftHsm

LOW_ORDER = [bytes(32), b"\x01" + bytes(31), bytes.fromhex("ec" + "ff" * 30 + "7f")]


@pytest.fixture(scope="module")
def token(softhsm: SoftHsm) -> Token:
    made = softhsm.log_in()
    made.make_account("signing")
    made.make_identity("opening")
    return made


@pytest.fixture(scope="module")
def signer(token: Token) -> TokenSigner:
    return TokenSigner(token, "signing")


@pytest.fixture(scope="module")
def opener(token: Token) -> TokenIdentity:
    return TokenIdentity(token, "opening")


def test_every_signature_is_low_and_gives_back_the_address(signer: TokenSigner) -> None:
    # a token draws s anywhere below the order: of 64 signatures about half had to be lowered
    for number in range(64):
        digest = keccak(number.to_bytes(4, "big"))
        signed = signer.unsafe_sign_hash(digest)
        assert signed.s <= SECP256K1_ORDER // 2 and signed.v in (27, 28)
        assert bytes(signed.signature) == (
            signed.r.to_bytes(32, "big") + signed.s.to_bytes(32, "big") + bytes([signed.v])
        )
        assert Account._recover_hash(digest, signature=signed.signature) == signer.address


def test_high_and_low_s_of_the_same_signature_become_the_same(
    signer: TokenSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = keccak(b"words")
    first = signer.unsafe_sign_hash(digest)
    for s in (first.s, SECP256K1_ORDER - first.s):
        came = first.r.to_bytes(32, "big") + s.to_bytes(32, "big")
        monkeypatch.setattr(signer._token, "sign", lambda key, message, came=came: came)
        assert signer.unsafe_sign_hash(digest) == first


@pytest.mark.parametrize("came", [bytes(64), b"\xff" * 64, bytes(range(64)), b"\x01" * 63, b""])
def test_what_is_no_signature_of_this_key_is_never_handed_on(
    signer: TokenSigner, monkeypatch: pytest.MonkeyPatch, came: bytes
) -> None:
    monkeypatch.setattr(signer._token, "sign", lambda key, digest: came)
    with pytest.raises(KeyTokenError, match="no signature by"):
        signer.unsafe_sign_hash(keccak(b"words"))


def test_another_keys_signature_is_not_handed_on(
    signer: TokenSigner, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = keccak(b"words")
    other = bytes(Account.create().unsafe_sign_hash(digest).signature)[:64]
    monkeypatch.setattr(signer._token, "sign", lambda key, message: other)
    with pytest.raises(KeyTokenError, match="no signature by"):
        signer.unsafe_sign_hash(digest)


def test_the_token_computes_x25519(opener: TokenIdentity) -> None:
    for _ in range(8):
        other = X25519PrivateKey.generate()
        expected = other.exchange(X25519PublicKey.from_public_bytes(opener.recipient))
        assert opener.exchange(opener.recipient, other.public_key().public_bytes_raw()) == expected


def test_what_is_sealed_to_a_token_opens_with_it_alone(token: Token, opener: TokenIdentity) -> None:
    recipients = [opener.recipient, SERVER.recipient]
    envelope, sealed = seal_bytes(b"weights" * 1000, recipients)
    plaintext = io.BytesIO()
    open_envelope(io.BytesIO(envelope), plaintext, opener, recipients, CONTEXT, sealed.root)
    assert plaintext.getvalue() == b"weights" * 1000
    token.make_identity("stranger")
    stranger = TokenIdentity(token, "stranger")
    with pytest.raises(EnvelopeError, match="not sealed for"):
        open_envelope(io.BytesIO(envelope), io.BytesIO(), stranger, recipients, CONTEXT, Digest(sealed.root))
    message = hpke.seal(opener.recipient, b"for the token", b"info")
    with pytest.raises(EnvelopeError, match="does not open"):
        hpke.open_sealed(message, stranger, stranger.recipient, b"info")


@pytest.mark.parametrize("public_key", [*LOW_ORDER, b"", bytes(31)], ids=bytes.hex)
def test_a_peers_bad_public_key_is_the_peers_fault_not_the_tokens(
    opener: TokenIdentity, public_key: bytes
) -> None:
    # as a KeyTokenError it would end the process: one hostile update would stop a server
    with pytest.raises(EnvelopeError, match="low order"):
        opener.exchange(opener.recipient, public_key)


def test_the_secrets_cannot_be_read_out_of_the_token(token: Token) -> None:
    from pkcs11 import Attribute
    from pkcs11.exceptions import PKCS11Error

    for label in ("signing", "opening"):
        key = token.find(True, label)[label]
        assert key[Attribute.SENSITIVE] is True and key[Attribute.EXTRACTABLE] is False
        with pytest.raises(PKCS11Error):
            key[Attribute.VALUE]


def test_a_derived_secret_does_not_stay_in_the_token(token: Token, opener: TokenIdentity) -> None:
    from pkcs11 import Attribute, ObjectClass

    opener.exchange(opener.recipient, SERVER.recipient)
    assert list(token._session.get_objects({Attribute.CLASS: ObjectClass.SECRET_KEY})) == []


def test_keys_in_a_token_are_never_overwritten(token: Token, signer: TokenSigner) -> None:
    for make in (token.make_account, token.make_identity):
        with pytest.raises(KeyTokenError, match="never overwritten"):
            make("signing")
    assert TokenSigner(token, "signing").address == signer.address


def test_a_replaced_identity_still_opens(token: Token) -> None:
    token.make_identity("turning")
    first = TokenIdentity(token, "turning")
    old = first.recipient
    envelope, sealed = seal_bytes(b"before", [old])
    following = prepare_next(token, "turning")
    assert prepare_next(token, "turning") == following, "repeated after a crash it makes no third key"
    between = TokenIdentity(token, "turning")
    assert between.recipients == (old, following), "what is sealed to the new key meanwhile must open too"
    adopt_next(token, "turning")
    after = TokenIdentity(token, "turning")
    assert after.recipients == (following, old)
    plaintext = io.BytesIO()
    open_envelope(io.BytesIO(envelope), plaintext, after, [old], CONTEXT, sealed.root)
    assert plaintext.getvalue() == b"before"


def test_a_rotation_that_died_between_two_renames_is_finished(token: Token) -> None:
    token.make_identity("dying")
    old = TokenIdentity(token, "dying").recipient
    following = prepare_next(token, "dying")
    token.rename("dying", f"dying older {old.hex()[:16]}")  # and then it dies
    assert TokenIdentity(token, "dying").recipients == (following, old)
    adopt_next(token, "dying")
    assert TokenIdentity(token, "dying").recipients == (following, old)


def test_what_is_missing_is_named(softhsm: SoftHsm, token: Token, tmp_path: Path) -> None:
    with pytest.raises(KeyTokenError, match="no PKCS#11 library"):
        Token(tmp_path / "absent.so", softhsm.label, softhsm.pin)
    with pytest.raises(KeyTokenError, match="knows no token 'elsewhere'"):
        Token(softhsm.module, "elsewhere", softhsm.pin)
    (tmp_path / "text.so").write_text("no library")
    with pytest.raises(KeyTokenError, match="does not load"):
        Token(tmp_path / "text.so", softhsm.label, softhsm.pin)
    for make in (TokenSigner, TokenIdentity):
        with pytest.raises(KeyTokenError, match="'absent'"):
            make(token, "absent")
    with pytest.raises(KeyTokenError, match="another curve"):
        TokenSigner(token, "opening")


def test_the_pin_is_not_shown(
    softhsm: SoftHsm, token: Token, signer: TokenSigner, opener: TokenIdentity
) -> None:
    for shown in (repr(token), repr(signer), repr(opener), str(vars(token))):
        assert softhsm.pin not in shown
    assert opener.recipient.hex() in repr(opener) and signer.address in repr(signer)
