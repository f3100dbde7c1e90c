"""Settings: unknown keys are refused by path, paths start at the home, the environment outranks the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from consilia.errors import SettingsError
from consilia.settings import HospitalSettings, ServerSettings, load
from consilia.settings.network import Network
from consilia.settings.sections import StoreSection
from consilia.store.bucket import Bucket, Credentials, connect

FILE = """
name = "hospital-1"
[ledger]
url = "http://127.0.0.1:8545"
deployment = "../deployment.json"
[store]
path = "/elsewhere/store"
[keys]
account = "keys/account.json"
identity = "keys/identity.key"
password_file = "keys/password"
[data]
path = "data"
patients = "patients.txt"
[node]
genesis = "../genesis.json"
port = 8545
"""


def home_with(folder: Path, text: str) -> Path:
    home = folder / "home"
    home.mkdir(exist_ok=True)
    (home / "consilia.toml").write_text(text)
    return home


def test_relative_paths_start_at_the_home(tmp_path: Path) -> None:
    home = home_with(tmp_path, FILE)
    settings = load(HospitalSettings, home)
    assert settings.ledger.deployment.resolve() == tmp_path / "deployment.json"
    assert settings.store.path == Path("/elsewhere/store")
    assert settings.data.path == home / "data" and settings.data.patients == home / "patients.txt"
    assert settings.node and settings.node.genesis.resolve() == tmp_path / "genesis.json"
    assert settings.policy.minimum_quorum == 2 and settings.ledger.depth == 3


def test_a_server_needs_neither_data_nor_node(tmp_path: Path) -> None:
    text = FILE[: FILE.index("[data]")]
    assert load(ServerSettings, home_with(tmp_path, text)).name == "hospital-1"
    with pytest.raises(SettingsError, match=r"consilia.toml: data"):
        load(HospitalSettings, home_with(tmp_path, text))
    with pytest.raises(SettingsError, match=r"consilia.toml: data: Extra"):
        load(ServerSettings, home_with(tmp_path, FILE))


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ("url =", "uri =", "ledger.uri"),
        ('"http://127.0.0.1:8545"', '"http://[::1"', "ledger.url"),
        ('"http://127.0.0.1:8545"', '"http://127.0.0.1:99999"', "ledger.url"),
        ("port = 8545", 'port = 8545\npeers = ["http://[::1"]', "node.peers.0"),
        ("[store]", "[shop]", "shop"),
        ("port = 8545", "port = 0", "node.port"),
        ("port = 8545", 'port = 8545\ncolour = "red"', "node.colour"),
        ("[data]", "[policy]\nminimum_quorum = 0\n[data]", "policy.minimum_quorum"),
        ("[data]", '[policy]\nprivacy = ["none"]\n[data]', "policy.privacy.0"),
        ('name = "hospital-1"', "", "name"),
        ("[data]", "[data", "expected TOML"),
    ],
)
def test_a_mistake_is_named_by_its_path(tmp_path: Path, old: str, new: str, path: str) -> None:
    assert old in FILE
    with pytest.raises(SettingsError) as refused:
        load(HospitalSettings, home_with(tmp_path, FILE.replace(old, new)))
    assert path in str(refused.value)


def test_no_file_and_no_text_are_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"consilia\.toml"):
        load(HospitalSettings, tmp_path)
    (tmp_path / "consilia.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingsError, match=r"consilia\.toml"):
        load(HospitalSettings, tmp_path)


def test_the_environment_outranks_the_file_key_by_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIA_LEDGER__URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CONSILIA_POLICY__APPLICATIONS", '["MR"]')
    monkeypatch.setenv("CONSILIA_PARENT", "something else's")
    settings = load(HospitalSettings, home_with(tmp_path, FILE))
    assert settings.ledger.url == "http://127.0.0.1:1"
    assert settings.ledger.deployment.name == "deployment.json"
    assert settings.policy.applications == ("MR",) and settings.policy.purposes == ("research",)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CONSILIA_LEDGER__CONFIRMATIONS", "many"),
        ("CONSILIA_POLICY__APPLICATIONS", "CT"),
        ("CONSILIA_LEDGER", "{"),
    ],
)
def test_a_bad_variable_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError):
        load(HospitalSettings, home_with(tmp_path, FILE))


def test_the_password_is_the_first_line(tmp_path: Path) -> None:
    home = home_with(tmp_path, FILE)
    keys = load(HospitalSettings, home).keys
    (home / "keys").mkdir()
    keys.password_file.touch(mode=0o600)
    for text in ("", "\n"):
        keys.password_file.write_text(text)
        with pytest.raises(SettingsError, match=r"keys\.password_file"):
            keys.password()
    keys.password_file.write_text("secret\nnot this\n")
    assert keys.password() == "secret"
    assert "secret" not in repr(keys)


def test_a_network_is_read_as_it_was_written(tmp_path: Path) -> None:
    network = Network(
        genesis=Path("g"),
        deployment=Path("d"),
        store=Path("s"),
        server=Path("v"),
        hospitals=(Path("h1"), Path("h2")),
    )
    network.save(tmp_path)
    read = Network.load(tmp_path)
    assert read.genesis == tmp_path / "g" and read.hospitals == (tmp_path / "h1", tmp_path / "h2")
    for text in (b"{", b"{}", b'{"genesis": 1}', b"\xff\xfe", b'{"url": "http://[::1", "deployment": "d"}'):
        (tmp_path / "network.json").write_bytes(text)
        with pytest.raises(SettingsError, match=r"network\.json"):
            Network.load(tmp_path)
    (tmp_path / "network.json").unlink()
    with pytest.raises(SettingsError, match=r"network\.json"):
        Network.load(tmp_path)


def store_of(tmp_path: Path, section: str) -> StoreSection:
    text = FILE[: FILE.index("[store]")] + f"[store]\n{section}\n" + FILE[FILE.index("[keys]") :]
    return load(HospitalSettings, home_with(tmp_path, text)).store


def test_a_bucket_is_named_by_url_and_its_credentials_by_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    store = store_of(tmp_path, 'url = "s3://bucket/a"\naccess_key_file = "a"\nsecret_key_file = "s"')
    with pytest.raises(SettingsError, match=r"store\.access_key_file"):
        store.credentials()
    for name, text in (("a", "AK\n"), ("s", "hidden\n")):
        (tmp_path / "home" / name).write_text(text)
        with pytest.raises(SettingsError, match=r"store\..*_key_file"):
            store.credentials()  # others may read it
        (tmp_path / "home" / name).chmod(0o600)
    assert store.credentials() == ("AK", "hidden", None)
    assert "hidden" not in repr(store) and "hidden" not in repr(Credentials(*store.credentials()))
    store = store_of(tmp_path, 'url = "s3://bucket"')
    with pytest.raises(SettingsError, match="AWS_ACCESS_KEY_ID"):
        store.credentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AK2")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden2")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "token")
    assert store.credentials() == ("AK2", "hidden2", "token")


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ('path = "s"\nurl = "s3://b"', "either path"),
        ("", "either path"),
        ('path = "s"\nendpoint = "http://x"', "endpoint"),
        ('url = "s3://b"\nsecret_key = "never here"', "secret_key"),
        ('url = "s3://b"\npatience_seconds = 0', "patience_seconds"),
    ],
)
def test_a_store_is_in_one_place(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        store_of(tmp_path, section)
    assert "never here" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://b", "s3://", "s3://key:secret@bucket/x", "s3://b?x=1", "bucket"])
def test_a_url_holds_a_bucket_and_no_credentials(url: str) -> None:
    with pytest.raises(SettingsError, match=r"store\.url") as caught:
        connect(Bucket(url, "http://127.0.0.1:1", "us-east-1", 1.0), Credentials("a", "b"))
    assert "secret@" not in str(caught.value)
