"""The commands as a person or a script meets them: exit codes, one message, JSON lines."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from consilia.protocols.task_spec import parse_toml
from tests.consortium import consortium, spec_toml, write_first_model


def consilia(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command."""
    return subprocess.run(
        [sys.executable, "-m", "consilia", *arguments], capture_output=True, text=True, timeout=120
    )


def refused(done: subprocess.CompletedProcess[str], code: int, message: str) -> None:
    assert done.returncode == code, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.startswith("consilia: ")


def test_the_version_is_told() -> None:
    done = consilia("--version")
    assert done.returncode == 0 and done.stdout.startswith("consilia ")


@pytest.mark.parametrize("group", [[], ["server"], ["hospital"], ["audit"], ["store"], ["data"]])
def test_a_group_alone_shows_its_commands(group: list[str]) -> None:
    done = consilia(*group)
    assert "Usage:" in done.stdout + done.stderr and done.returncode in (0, 2)


def test_a_home_without_settings_is_wrong_use(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(spec_toml(2))
    home, spec = ["--home", str(tmp_path)], ["--spec", str(tmp_path / "task.toml")]
    refused(consilia("server", "run", *home, *spec), 2, "consilia.toml")
    refused(consilia("hospital", "run", *home), 2, "consilia.toml")
    refused(consilia("audit", "verify", *home), 2, "network.json")


def test_what_is_wrong_with_a_party_has_its_own_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with consortium(tmp_path, monkeypatch, 2):
        pass  # the homes stay, the ledger is gone
    home, spec = tmp_path / "server", tmp_path / "task.toml"
    run = ("server", "run", "--home", str(home), "--spec", str(spec), "--initial-model", str(tmp_path / "w"))
    refused(consilia(*run[:-2]), 2, "task.toml")
    spec.write_bytes(b"\xff\xfe")
    refused(consilia(*run[:-2]), 2, "expected a TaskSpec in TOML")
    spec.write_text(spec_toml(2))
    missing = consilia(*run)
    assert missing.returncode == 2 and "--initial-model" in missing.stderr
    (tmp_path / "w").touch()
    spec.write_text(spec_toml(2).replace("rounds", "round"))
    refused(consilia(*run), 2, "training.round: unknown key")
    spec.write_text(spec_toml(2))
    (tmp_path / "w").write_bytes(b"no weights")
    refused(consilia(*run), 5, "expected a safetensors file")
    refused(consilia(*run[:-2], "--pretrained", run[-1]), 2, "model.pretrained_digest")
    assert not list((home / "models").glob("*/round-000.safetensors"))
    write_first_model(parse_toml(spec_toml(2)), tmp_path / "w")
    alone = consilia(*run, "--wait-seconds", "0")
    refused(alone, 3, "no ledger node answers")
    assert "no window in the TaskSpec" in alone.stdout
    (home / "keys" / "password").write_text("another\n")
    refused(consilia(*run), 2, "password is wrong")
