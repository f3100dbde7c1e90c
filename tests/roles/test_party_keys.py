"""A party's keys through their life: made, replaced, lost with the machine, restored from a backup."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from eth_account import Account

from consilia.crypto.envelope import open_envelope
from consilia.crypto.keys import Identity, load_account, load_identity, save_account, save_identity
from consilia.crypto.password_box import ScryptCost
from consilia.errors import EnvelopeError, KeyFileError, SettingsError
from consilia.roles.backup import read_backup, restore_backup, take_backup, write_backup
from consilia.roles.keys import make_keys, open_keys, show_keys
from consilia.roles.membership.joining import NEXT_ACCOUNT
from consilia.roles.membership.rotation import FileRotation
from consilia.roles.state import SealedArtifact, State
from consilia.settings.sections import KeysSection
from consilia.values import Digest
from tests.crypto.sealing import CONTEXT, seal_bytes

PASSWORD, NEW_PASSWORD, BACKUP_PASSWORD = "old machine", "new machine", "in the safe"
CHEAP = ScryptCost.TESTS


def keys_in(home: Path, password: str) -> KeysSection:
    """A home's settings, with the password in a file."""
    (home / "keys").mkdir(parents=True, exist_ok=True, mode=0o700)
    password_file = home / "password"
    password_file.touch(mode=0o600)
    password_file.write_text(password + "\n")
    return KeysSection(
        account=home / "keys" / "account.json",
        identity=home / "keys" / "identity.key",
        password_file=password_file,
    )


@pytest.fixture
def old(tmp_path: Path) -> KeysSection:
    keys = keys_in(tmp_path / "old", PASSWORD)
    save_account(keys.account, Account.create(), PASSWORD, cost=CHEAP)
    save_identity(keys.identity, Identity.generate(), PASSWORD, cost=CHEAP)
    return keys


def turn(keys: KeysSection) -> bytes:
    """Replace the identity, as if the registry had taken it."""
    replacement = FileRotation(keys.identity, PASSWORD, CHEAP)
    recipient = replacement.prepare()
    replacement.adopt()
    return recipient


def opens(keys: KeysSection, envelope: bytes, recipients: list[bytes], root: Digest) -> bytes:
    plaintext = io.BytesIO()
    open_envelope(io.BytesIO(envelope), plaintext, open_keys(keys).opener, recipients, CONTEXT, root)
    return plaintext.getvalue()


def test_an_artifact_from_before_the_rotation_opens_on_a_new_machine(
    tmp_path: Path, old: KeysSection
) -> None:
    first = show_keys(old).recipient
    envelope, sealed = seal_bytes(b"an old model", [first])
    second = turn(old)
    newer, newer_sealed = seal_bytes(b"a new model", [second])
    state = State(tmp_path / "old" / "state.sqlite")
    state.keep_task_keys(7, {"0xhospital": b"\x05" * 32})
    state.keep_artifact(
        "update/7/0", SealedArtifact(sealed.root, sealed.key_hash, sealed.size, sealed.secret)
    )
    # taken while the party runs: its database is open, and not all of it has left the write-ahead log
    write_backup(
        tmp_path / "backup", take_backup(tmp_path / "old", "h", old, PASSWORD, 1), BACKUP_PASSWORD, CHEAP
    )
    state.close()

    new = keys_in(tmp_path / "new", NEW_PASSWORD)
    restore_backup(
        tmp_path / "new", new, read_backup(tmp_path / "backup", BACKUP_PASSWORD), NEW_PASSWORD, CHEAP
    )
    assert show_keys(new) == show_keys(old)
    assert open_keys(new).signer.address == open_keys(old).signer.address
    assert opens(new, envelope, [first], sealed.root) == b"an old model"
    assert opens(new, newer, [second], newer_sealed.root) == b"a new model"
    restored = State(tmp_path / "new" / "state.sqlite")
    assert restored.task_keys(7) == {"0xhospital": b"\x05" * 32}
    assert restored.artifact("update/7/0") is not None
    restored.close()
    with pytest.raises(KeyFileError, match="password"):
        load_identity(new.identity, PASSWORD)


@pytest.mark.parametrize("mode", [0o1777, 0o770])
def test_no_backup_is_left_where_others_could_put_another(
    tmp_path: Path, old: KeysSection, mode: int
) -> None:
    backup = take_backup(tmp_path / "old", "h", old, PASSWORD, 1)
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    with pytest.raises(KeyFileError, match=f"others may write to {shared}"):
        write_backup(shared / "backup", backup, BACKUP_PASSWORD, CHEAP)
    with pytest.raises(KeyFileError, match="cannot be used"):
        write_backup(tmp_path / "nowhere" / "backup", backup, BACKUP_PASSWORD, CHEAP)
    assert list(shared.iterdir()) == []


def test_what_is_missing_is_made_and_what_is_there_stays(old: KeysSection) -> None:
    address = show_keys(old).address
    with pytest.raises(KeyFileError, match="never overwritten"):
        make_keys(old, PASSWORD, CHEAP)
    old.identity.unlink()  # as after a crash between the two
    make_keys(old, PASSWORD, CHEAP)
    assert open_keys(old).signer.address == address
    with pytest.raises(KeyFileError, match="never overwritten"):
        make_keys(old, PASSWORD, CHEAP)


def test_restored_files_are_for_their_owner_alone(tmp_path: Path, old: KeysSection) -> None:
    State(tmp_path / "old" / "state.sqlite").close()
    turn(old)
    backup = take_backup(tmp_path / "old", "h", old, PASSWORD, 1)
    before = os.umask(0)
    try:
        keys = KeysSection(
            account=tmp_path / "n" / "k" / "account.json", identity=tmp_path / "n" / "k" / "id.key"
        )
        restore_backup(tmp_path / "n", keys, backup, NEW_PASSWORD, CHEAP)
    finally:
        os.umask(before)
    made = sorted((tmp_path / "n").rglob("*"))
    assert [path.name for path in made] == [
        "k",
        "account.json",
        "id.key",
        "older",
        made[4].name,
        "state.sqlite",
    ]
    for path in [tmp_path / "n", *made]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_what_waits_for_a_vote_comes_back_as_what_waits(tmp_path: Path, old: KeysSection) -> None:
    """The members may agree while the disk is lost: then the new account is the member, and the new identity its."""
    first, oldest = turn(old), show_keys(old).older_recipients
    account = Account.create()
    save_account(tmp_path / "old" / NEXT_ACCOUNT, account, PASSWORD, cost=CHEAP)
    waiting = FileRotation(old.identity, PASSWORD, CHEAP).prepare()
    write_backup(
        tmp_path / "backup", take_backup(tmp_path / "old", "h", old, PASSWORD, 1), BACKUP_PASSWORD, CHEAP
    )
    backup = read_backup(tmp_path / "backup", BACKUP_PASSWORD)

    new = keys_in(tmp_path / "new", NEW_PASSWORD)
    restore_backup(tmp_path / "new", new, backup, NEW_PASSWORD, CHEAP)
    assert load_account(tmp_path / "new" / NEXT_ACCOUNT, NEW_PASSWORD).address == account.address
    assert show_keys(new) == show_keys(old)
    again = FileRotation(new.identity, NEW_PASSWORD, CHEAP)
    assert again.prepare() == waiting, "a third key would be proposed, and the registered one never adopted"
    again.adopt()
    assert show_keys(new).recipient == waiting
    assert set(show_keys(new).older_recipients) == {first, *oldest}

    # settings that were copied after the vote name the new account: it goes where they say, and the old one is kept
    later = keys_in(tmp_path / "later", NEW_PASSWORD)
    later = later.model_copy(update={"account": tmp_path / "later" / NEXT_ACCOUNT})
    restore_backup(tmp_path / "later", later, backup, NEW_PASSWORD, CHEAP)
    assert show_keys(later).address == account.address
    replaced = later.account.with_name("account-replaced.json")
    assert load_account(replaced, NEW_PASSWORD).address == show_keys(old).address
    adopted = take_backup(tmp_path / "later", "h", later, NEW_PASSWORD, 1)
    assert (adopted.account, adopted.next_account) == (bytes(account.key), None)
    (tmp_path / "later").rename(tmp_path / "lost")
    keys_in(tmp_path / "later", NEW_PASSWORD)
    restore_backup(tmp_path / "later", later, adopted, NEW_PASSWORD, CHEAP)
    assert show_keys(later).address == account.address


def test_what_waited_in_the_home_before_is_moved_away_too(tmp_path: Path, old: KeysSection) -> None:
    backup = take_backup(tmp_path / "old", "h", old, PASSWORD, 1)
    new = keys_in(tmp_path / "new", NEW_PASSWORD)
    for path in (tmp_path / "new" / NEXT_ACCOUNT, new.identity.with_name("identity.key.next")):
        path.touch()
        with pytest.raises(KeyFileError, match=f"move away first: {path}"):
            restore_backup(tmp_path / "new", new, backup, NEW_PASSWORD, CHEAP)
        path.unlink()


def test_a_restore_overwrites_nothing(tmp_path: Path, old: KeysSection) -> None:
    backup = take_backup(tmp_path / "old", "h", old, PASSWORD, 1)
    held = {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()}
    with pytest.raises(KeyFileError, match="move away first"):
        restore_backup(tmp_path / "old", old, backup, NEW_PASSWORD, CHEAP)
    assert {path: path.read_bytes() for path in (tmp_path / "old").rglob("*") if path.is_file()} == held


@pytest.mark.parametrize("name", ["h#1", "h?1", "h%41", "h 1"])
def test_a_home_of_any_name_is_backed_up(tmp_path: Path, name: str) -> None:
    """A name is no part of an URL: with `#` SQLite once made an empty database elsewhere, and that was the backup."""
    keys = keys_in(tmp_path / name, PASSWORD)
    save_account(keys.account, Account.create(), PASSWORD, cost=CHEAP)
    save_identity(keys.identity, Identity.generate(), PASSWORD, cost=CHEAP)
    state = State(tmp_path / name / "state.sqlite")
    state.keep_task_keys(7, {"0xhospital": b"\x05" * 32})
    backup = take_backup(tmp_path / name, "h", keys, PASSWORD, 1)
    state.close()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    new = keys_in(tmp_path / "new", NEW_PASSWORD)
    restore_backup(tmp_path / "new", new, backup, NEW_PASSWORD, CHEAP)
    restored = State(tmp_path / "new" / "state.sqlite")
    assert restored.task_keys(7) == {"0xhospital": b"\x05" * 32}
    restored.close()


def test_no_log_of_a_killed_party_is_played_over_what_is_restored(tmp_path: Path, old: KeysSection) -> None:
    home = tmp_path / "old"
    State(home / "state.sqlite").close()
    backup = take_backup(home, "h", old, PASSWORD, 1)
    die = "import os, sys; from pathlib import Path; from consilia.roles.state import State\n"
    die += "State(Path(sys.argv[1])).remember('late', 'after the backup'); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", die, str(home / "state.sqlite")], check=False)
    assert (home / "state.sqlite-wal").stat().st_size > 0
    with pytest.raises(KeyFileError, match="move away first") as refused:
        restore_backup(home, old, backup, PASSWORD, CHEAP)
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in str(refused.value).partition("move away first: ")[2].split(", "):
        Path(path).rename(moved / Path(path).name)
    assert {"state.sqlite", "state.sqlite-wal", "state.sqlite-shm"} <= {path.name for path in moved.iterdir()}
    # one that was forgotten is reason enough
    (moved / "state.sqlite-wal").rename(home / "state.sqlite-wal")
    with pytest.raises(KeyFileError, match=r"state\.sqlite-wal"):
        restore_backup(home, old, backup, PASSWORD, CHEAP)
    assert not (home / "state.sqlite").exists() and not old.account.exists()
    (home / "state.sqlite-wal").unlink()
    restore_backup(home, old, backup, PASSWORD, CHEAP)
    state = State(home / "state.sqlite")
    assert state.fact("late") is None
    state.close()


@pytest.mark.parametrize("dies", ["before registering", "after the link"])
def test_a_rotation_goes_on_after_a_crash(
    old: KeysSection, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    first = show_keys(old).recipient
    second = FileRotation(old.identity, PASSWORD, CHEAP).prepare()
    if dies == "after the link":
        with monkeypatch.context() as patch:

            def die(self: Path, target: Path) -> None:
                raise KeyboardInterrupt

            patch.setattr(Path, "replace", die)
            with pytest.raises(KeyboardInterrupt):
                FileRotation(old.identity, PASSWORD, CHEAP).adopt()
    # a party that starts now opens what is sealed to either key: the registry may have taken the new one
    assert open_keys(old).opener.recipients == (first, second)
    again = FileRotation(old.identity, PASSWORD, CHEAP)
    assert again.prepare() == second
    again.adopt()
    assert open_keys(old).opener.recipients == (second, first)
    assert show_keys(old).older_recipients == (first,)


def test_each_replaced_identity_is_kept(old: KeysSection) -> None:
    recipients = [show_keys(old).recipient, turn(old), turn(old), turn(old)]
    opener = open_keys(old).opener
    assert opener.recipient == recipients[-1] and set(opener.recipients) == set(recipients)
    for recipient in recipients:
        envelope, sealed = seal_bytes(b"data", [recipient])
        assert opens(old, envelope, [recipient], sealed.root) == b"data"


def test_a_lost_older_identity_is_lost(old: KeysSection) -> None:
    first = show_keys(old).recipient
    envelope, sealed = seal_bytes(b"data", [first])
    turn(old)
    next((old.identity.parent / "older").iterdir()).unlink()
    with pytest.raises(EnvelopeError, match="not sealed for"):
        opens(old, envelope, [first], sealed.root)


def test_rotation_with_another_password_changes_nothing(old: KeysSection) -> None:
    held = sorted(old.identity.parent.rglob("*"))
    with pytest.raises(KeyFileError, match="password"):
        FileRotation(old.identity, "wrong", CHEAP).prepare()
    assert sorted(old.identity.parent.rglob("*")) == held


def test_the_password_comes_from_the_environment_the_file_or_a_person(
    old: KeysSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = old.model_copy(update={"password_file": None})
    monkeypatch.delenv("CONSILIA_PASSWORD", raising=False)
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)
    with pytest.raises(SettingsError, match="CONSILIA_PASSWORD"):
        asked.password()
    monkeypatch.setattr("consilia.passwords.sys.stdin", type("Terminal", (), {"isatty": lambda self: True})())
    monkeypatch.setattr("consilia.passwords._ask", lambda what: PASSWORD)
    assert open_keys(asked).signer.address == show_keys(old).address
    monkeypatch.setenv("CONSILIA_PASSWORD", "wrong")
    with pytest.raises(KeyFileError, match="password"):
        open_keys(asked)
    monkeypatch.setenv("CONSILIA_PASSWORD", PASSWORD)
    assert open_keys(asked).signer.address == show_keys(old).address
    monkeypatch.delenv("CONSILIA_PASSWORD")
    assert old.password_file is not None
    old.password_file.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        old.password()
