"""A new home's password: where it is taken from, and that the settings then written open the keys."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from consilia.crypto.keys import save_account, save_identity
from consilia.crypto.password_box import ScryptCost
from consilia.errors import InputError, KeyFileError, SettingsError
from consilia.passwords import PASSWORD_VARIABLE
from consilia.roles.keys import open_keys
from consilia.roles.membership import home as homes
from consilia.roles.membership.home import MemberKeys, Seat, make_member
from consilia.settings import SETTINGS_FILE, HospitalSettings, ServerSettings, load
from consilia.settings.sections import StoreSection


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scrypt at its usual cost takes half a second a key."""
    monkeypatch.delenv(PASSWORD_VARIABLE, raising=False)
    for function in (save_account, save_identity):
        monkeypatch.setattr(homes, function.__name__, partial(function, cost=ScryptCost.TESTS))


def opened(home: Path, keys: MemberKeys) -> str:
    """The account that a later command finds with the settings that are written for these keys."""
    seat = Seat(
        "one", "http://127.0.0.1:1", StoreSection(path=home / "store"), password_file=keys.password_file
    )
    (home / SETTINGS_FILE).write_text(seat.toml())
    account: str = open_keys(load(ServerSettings, home).keys).signer.address
    return account


def test_the_variable_is_the_password_and_nothing_lies_beside_the_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "of the environment")
    made = make_member(tmp_path, "one")
    assert made.password_file is None and not (tmp_path / "keys" / "password").exists()
    assert opened(tmp_path, made) == made.account.address == make_member(tmp_path, "one").account.address
    monkeypatch.setenv(PASSWORD_VARIABLE, "another one")
    with pytest.raises(KeyFileError, match="password is wrong"):
        make_member(tmp_path, "one")


def test_a_named_file_is_the_password_and_goes_into_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "secret"
    file.touch(mode=0o600)
    file.write_text("of the file\n")
    home = tmp_path / "home"
    made = make_member(home, "one", file)
    assert made.password_file == file and not (home / "keys" / "password").exists()
    assert opened(home, made) == made.account.address
    other = tmp_path / "other"
    other.touch(mode=0o600)
    with pytest.raises(InputError, match="says where the password is from"):
        make_member(home, "one", other)
    monkeypatch.setenv(PASSWORD_VARIABLE, "of the environment")
    with pytest.raises(InputError, match="once"):
        make_member(tmp_path / "second", "two", file)
    monkeypatch.delenv(PASSWORD_VARIABLE)
    file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod"):
        make_member(tmp_path / "third", "three", file)
    assert not list((tmp_path / "third").rglob("*.key"))


def test_a_person_types_it_twice_and_else_one_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = make_member(tmp_path / "drawn", "one")
    assert drawn.password_file == Path("keys/password")
    assert (tmp_path / "drawn" / "keys" / "password").stat().st_mode & 0o777 == 0o600
    assert opened(tmp_path / "drawn", drawn) == drawn.account.address
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    answers = iter(["typed", "typos", "typed", "typed"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(answers))
    monkeypatch.setattr("consilia.passwords._ask", lambda what: next(answers))
    with pytest.raises(SettingsError, match="differ"):
        make_member(tmp_path / "typed", "two", typed=True)
    assert make_member(tmp_path / "typed", "two", typed=True).password_file is None
    assert [path.name for path in sorted((tmp_path / "typed" / "keys").iterdir())] == [
        "account.json",
        "identity.key",
    ]


@pytest.mark.parametrize(
    "text", ['St "Mary"', "back\\slash", "圣玛丽 \N{HOSPITAL}", "del\x7f\ttab\nline", "'''"]
)
def test_settings_hold_names_and_paths_of_whatever_characters(tmp_path: Path, text: str) -> None:
    here = tmp_path / text
    seat = Seat(
        text,
        "http://127.0.0.1:1",
        StoreSection(path=here),
        data=here,
        port=7001,
        applications=(text,),
        password_file=here,
    )
    (tmp_path / SETTINGS_FILE).write_text(seat.toml(), "utf-8")
    settings = load(HospitalSettings, tmp_path)
    assert (settings.name, settings.policy.applications) == (text, (text,))
    assert settings.store.path == settings.data.path == settings.keys.password_file == here


def test_settings_hold_a_bucket_of_whatever_characters_and_no_bytes_that_are_no_text(tmp_path: Path) -> None:
    bucket = StoreSection(url='s3://b/"x"', endpoint="http://h\\", region='r"')
    (tmp_path / SETTINGS_FILE).write_text(Seat("one", "http://127.0.0.1:1", bucket).toml(), "utf-8")
    assert load(ServerSettings, tmp_path).store == bucket
    with pytest.raises(SettingsError, match="UTF-8"):
        Seat("one", "http://127.0.0.1:1", StoreSection(path=Path("\udcff"))).toml()
