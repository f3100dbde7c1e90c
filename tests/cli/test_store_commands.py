"""`consilia store` and `consilia data erase` as a person or a script meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.roles.storekeeping import own_roots
from consilia.values import Digest
from tests.consortium import Consortium, consortium


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Consortium]:
    """Two hospitals have trained one round; the chain still runs."""
    with (
        pytest.MonkeyPatch.context() as patch,
        consortium(tmp_path_factory.mktemp("town"), patch, 2) as made,
    ):
        made.start_server(rounds=1)
        made.enrol()
        made.train(0)
        made.finish()
        yield made


def consilia(*arguments: str | Path, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "consilia", *map(str, arguments), "--format", "json"]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=120)


def last(done: subprocess.CompletedProcess[str]) -> dict[str, object]:
    said: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return said


def object_path(town: Consortium, root: Digest) -> Path:
    return town.home / "store" / root.hex()[:2] / root.hex()


def test_status_and_fsck_tell_what_is_there(town):
    home = town.home / "hospital-1"
    done = consilia("store", "status", "--home", home)
    assert done.returncode == 0, done.stderr
    objects = last(done)["objects"]
    done = consilia("store", "fsck", "--home", town.home / "server")
    assert done.returncode == 0, done.stderr
    assert last(done)["good"] == objects == last(done)["of"]


def test_a_lost_object_is_exit_code_5_and_a_copy_brings_it_back(town, tmp_path):
    home = town.home / "hospital-1"
    (tmp_path / "copy.toml").write_text('[store]\npath = "copy"\n')
    done = consilia("store", "copy", "--home", home, "--to", tmp_path / "copy.toml")
    assert done.returncode == 0, done.stderr
    path = object_path(town, town.task().rounds[0].opened.model_root)
    path.unlink()
    done = consilia("store", "fsck", "--home", home)
    assert done.returncode == 5 and path.name in done.stdout and "store copy --from" in done.stderr
    done = consilia("store", "copy", "--home", home, "--from", tmp_path / "copy.toml")
    assert done.returncode == 0 and last(done)["objects"] == 1
    assert consilia("store", "fsck", "--home", home).returncode == 0


def test_gc_only_says_what_would_go(town):
    done = consilia("store", "gc", "--home", town.home / "server")
    assert done.returncode == 0 and "--delete" in str(last(done)["step"])
    done = consilia("store", "gc", "--home", town.home / "server", "--older-than-hours", "0.5")
    assert done.returncode == 4 and "Traceback" not in done.stderr


def test_wrong_use_is_exit_code_2(town, tmp_path):
    home = town.home / "server"
    assert consilia("store", "copy", "--home", home).returncode == 2
    (tmp_path / "more.toml").write_text('name = "x"\n[store]\npath = "copy"\n')
    done = consilia("store", "copy", "--home", home, "--to", tmp_path / "more.toml")
    assert done.returncode == 2 and "[store] alone" in done.stderr
    assert consilia("store", "status", "--home", tmp_path).returncode == 2
    (tmp_path / "consilia.toml").write_text(
        (home / "consilia.toml").read_text().replace("../store", "typo/store")
    )
    done = consilia("store", "status", "--home", tmp_path)
    assert done.returncode == 3 and "is it mounted" in done.stderr and not (tmp_path / "typo").exists()
    assert consilia("data", "erase", "nonsense", "--home", home, "--yes").returncode == 2
    done = consilia("data", "erase", "00" * 32, "--home", home, "--yes")
    assert done.returncode == 2 and "that this home sealed" in done.stderr


def test_a_store_that_is_not_there_is_exit_code_3_or_said_so(town, tmp_path):
    text = (town.home / "server" / "consilia.toml").read_text()
    bucket = 'url = "s3://bucket/x"\nendpoint = "http://127.0.0.1:1"\npatience_seconds = 0.5'
    (tmp_path / "consilia.toml").write_text(text.replace('path = "../store"', bucket))
    done = consilia("store", "status", "--home", tmp_path)
    assert done.returncode == 2 and "AWS_ACCESS_KEY_ID" in done.stderr
    for name in ("access", "secret"):
        (tmp_path / name).touch(mode=0o600)
        (tmp_path / name).write_text("hidden\n")
    keys = '\naccess_key_file = "access"\nsecret_key_file = "secret"'
    (tmp_path / "consilia.toml").write_text(text.replace('path = "../store"', bucket + keys))
    done = consilia("store", "status", "--home", tmp_path)
    assert done.returncode == 3 and "did not answer" in done.stderr and "hidden" not in done.stderr


def test_erasing_asks_first_and_says_what_it_cannot_undo(town):
    home = town.home / "hospital-2"
    update = town.task().rounds[0].update_of(town.addresses[1])
    assert update is not None and update.root in own_roots(home)
    for typed in ("", "n\n"):
        done = consilia("data", "erase", str(update.root), "--home", home, typed=typed)
        assert done.returncode == 1 and "cannot undo" in done.stderr
        assert object_path(town, update.root).exists() and update.root in own_roots(home)
    town.hospitals[1].state.close()
    done = consilia("data", "erase", str(update.root), "--home", home, "--reason", "asked for", typed="y\n")
    assert done.returncode == 0, done.stderr
    assert last(done)["step"] == "erased"
    assert not object_path(town, update.root).exists() and update.root not in own_roots(home)

    # everybody misses it, who has no tombstone; with it, it was erased and not lost
    stone = home / "tombstones" / f"{update.root}.json"
    (stone.parent / "damaged.json").write_text("{}")
    done = consilia("store", "fsck", "--home", home)
    assert done.returncode == 0, done.stderr  # what is no tombstone excuses nothing, and ends no check
    assert "damaged.json: expected a tombstone" in done.stdout and last(done)["step"] == "checked"
    other = town.home / "hospital-1"
    assert consilia("store", "fsck", "--home", other).returncode == 5
    (other / "tombstones").mkdir()
    (other / "tombstones" / stone.name).write_bytes(stone.read_bytes())
    done = consilia("store", "fsck", "--home", other)
    assert done.returncode == 0 and '"erased"' in done.stdout
    forged = json.loads(stone.read_text()) | {"reason": "lost"}
    (other / "tombstones" / stone.name).write_text(json.dumps(forged))
    assert consilia("store", "fsck", "--home", other).returncode == 5
