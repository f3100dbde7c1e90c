"""Keys in memory and on disk."""

from __future__ import annotations

import copy
import json
import os
import pickle
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from eth_account import Account

from consilia.crypto.keys import (
    Identity,
    ScryptCost,
    load_account,
    load_identity,
    save_account,
    save_identity,
)
from consilia.errors import KeyFileError
from tests.crypto.sealing import HOSPITAL, flipped

PASSWORD = "correct horse battery staple ü"
CHEAP = ScryptCost.TESTS


@pytest.fixture
def identity_path(tmp_path: Path) -> Path:
    path = tmp_path / "identity.key"
    save_identity(path, HOSPITAL, PASSWORD, cost=CHEAP)
    return path


@pytest.fixture
def account_path(tmp_path: Path) -> Path:
    path = tmp_path / "account.json"
    save_account(path, Account.from_key(b"\x01" * 32), PASSWORD, cost=CHEAP)
    return path


def test_identity_comes_back(identity_path):
    loaded = load_identity(identity_path, PASSWORD)
    assert (loaded.secret_bytes, loaded.recipient) == (HOSPITAL.secret_bytes, HOSPITAL.recipient)
    assert len(identity_path.read_bytes()) == 119
    assert identity_path.read_bytes()[39:71] == HOSPITAL.recipient
    assert HOSPITAL.secret_bytes not in identity_path.read_bytes()


def test_account_comes_back_and_opens_in_other_ethereum_tools(account_path):
    assert load_account(account_path, PASSWORD).key == b"\x01" * 32
    assert Account.decrypt(account_path.read_text(), PASSWORD) == b"\x01" * 32
    assert json.loads(account_path.read_text())["version"] == 3


def test_the_default_cost_is_the_strong_one(tmp_path):
    save_identity(tmp_path / "identity", HOSPITAL, PASSWORD)
    assert (tmp_path / "identity").read_bytes()[8:11] == bytes((17, 8, 1))
    assert load_identity(tmp_path / "identity", PASSWORD).recipient == HOSPITAL.recipient
    save_account(tmp_path / "account", Account.from_key(b"\x01" * 32), PASSWORD)
    params = json.loads((tmp_path / "account").read_text())["crypto"]["kdfparams"]
    assert (params["n"], params["r"], params["p"]) == (1 << 17, 8, 1)


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_files_are_for_their_owner_alone(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_identity(tmp_path / "identity", HOSPITAL, PASSWORD, cost=CHEAP)
        save_account(tmp_path / "account", Account.create(), PASSWORD, cost=CHEAP)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_keys_are_never_overwritten_and_nothing_is_left_beside_them(identity_path, account_path):
    identity_bytes, account_bytes = identity_path.read_bytes(), account_path.read_bytes()
    with pytest.raises(KeyFileError, match="never overwritten"):
        save_identity(identity_path, Identity.generate(), PASSWORD, cost=CHEAP)
    with pytest.raises(KeyFileError, match="never overwritten"):
        save_account(account_path, Account.create(), PASSWORD, cost=CHEAP)
    assert (identity_path.read_bytes(), account_path.read_bytes()) == (identity_bytes, account_bytes)
    assert sorted(identity_path.parent.iterdir()) == sorted({identity_path, account_path})


@pytest.mark.parametrize("failing", ["fsync", "link"])
def test_a_failing_disk_leaves_no_key_file(tmp_path, monkeypatch, failing):
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(KeyFileError, match="No space left"):
        save_identity(tmp_path / "identity", HOSPITAL, PASSWORD, cost=CHEAP)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(KeyFileError, match="nowhere"):
        save_identity(tmp_path / "nowhere" / "identity", HOSPITAL, PASSWORD, cost=CHEAP)


@pytest.mark.parametrize("password", ["", "wrong", PASSWORD + " "])
def test_another_password_is_refused(identity_path, account_path, password):
    with pytest.raises(KeyFileError, match="password"):
        load_identity(identity_path, password)
    with pytest.raises(KeyFileError, match="password"):
        load_account(account_path, password)


def test_an_empty_password_protects_nothing_and_is_refused(tmp_path):
    with pytest.raises(KeyFileError, match="password"):
        save_identity(tmp_path / "identity", HOSPITAL, "", cost=CHEAP)
    with pytest.raises(KeyFileError, match="password"):
        save_account(tmp_path / "account", Account.create(), "", cost=CHEAP)
    assert list(tmp_path.iterdir()) == []


def test_every_changed_byte_of_an_identity_file_is_noticed(identity_path):
    data = identity_path.read_bytes()
    spoiled = [flipped(data, at) for at in range(len(data))]
    for bad in [*spoiled, data[:-1], data + b"\x00", b"", data[:8]]:
        identity_path.write_bytes(bad)
        with pytest.raises(KeyFileError):
            load_identity(identity_path, PASSWORD)


def test_an_identity_file_that_shows_another_public_key_is_refused(identity_path):
    data = identity_path.read_bytes()
    head = data[:39] + Identity.generate().recipient
    key = Scrypt(data[11:27], 32, 1 << CHEAP.value, 8, 1).derive(PASSWORD.encode())
    identity_path.write_bytes(head + AESGCM(key).encrypt(data[27:39], HOSPITAL.secret_bytes, head))
    with pytest.raises(KeyFileError, match="another secret"):
        load_identity(identity_path, PASSWORD)


@pytest.mark.parametrize(("at", "value"), [(8, 21), (8, 63), (8, 0), (9, 255), (10, 200)])
def test_an_identity_file_cannot_ask_for_gigabytes(identity_path, at, value):
    data = bytearray(identity_path.read_bytes())
    data[at] = value
    identity_path.write_bytes(data)
    with pytest.raises(KeyFileError, match="refused"):
        load_identity(identity_path, PASSWORD)


def _with_kdf(keystore: dict, **params: object) -> dict:
    changed = copy.deepcopy(keystore)
    changed["crypto"]["kdfparams"].update(params)
    return changed


@pytest.mark.parametrize(
    "spoil",
    [
        lambda keystore: {**keystore, "address": "00" * 20},
        lambda keystore: {**keystore, "crypto": {**keystore["crypto"], "ciphertext": "00" * 32}},
        lambda keystore: {**keystore, "crypto": {**keystore["crypto"], "kdf": "pbkdf2"}},
        lambda keystore: {**keystore, "version": 4},
        lambda keystore: _with_kdf(keystore, n=1 << 30),
        lambda keystore: _with_kdf(keystore, p=1 << 20),
        lambda keystore: _with_kdf(keystore, n=0),
        lambda keystore: _with_kdf(keystore, n="many"),
        lambda keystore: {"crypto": 1},
        lambda keystore: [],
    ],
    ids=["address", "ciphertext", "kdf", "version", "n", "p", "no n", "text n", "shape", "list"],
)
def test_a_spoiled_account_file_is_refused(account_path, spoil: Callable[[dict], object]):
    account_path.write_text(json.dumps(spoil(json.loads(account_path.read_text()))))
    with pytest.raises(KeyFileError):
        load_account(account_path, PASSWORD)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"null", b"7"])
def test_what_is_no_json_is_refused(account_path, data):
    account_path.write_bytes(data)
    with pytest.raises(KeyFileError):
        load_account(account_path, PASSWORD)


def test_a_missing_file_is_named(tmp_path):
    for load in (load_identity, load_account):
        with pytest.raises(KeyFileError, match="absent"):
            load(tmp_path / "absent", PASSWORD)


def test_an_identity_does_not_leak():
    for shown in (repr(HOSPITAL), str(HOSPITAL), f"{[HOSPITAL]}"):
        assert HOSPITAL.secret_bytes.hex() not in shown
        assert HOSPITAL.recipient.hex() in shown
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(HOSPITAL)
    with pytest.raises(TypeError):
        copy.copy(HOSPITAL)


def test_generated_identities_differ():
    assert len({Identity.generate().recipient for _ in range(10)}) == 10


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_secret_of_another_size_is_refused(size):
    with pytest.raises(KeyFileError, match="32 bytes"):
        Identity.from_bytes(bytes(size))
