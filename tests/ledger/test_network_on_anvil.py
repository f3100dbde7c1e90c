"""`consilia network` on another EVM: founded, joined and voted on anvil, by commands alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from consilia.errors import InputError
from consilia.ledger.rpc import Rpc
from consilia.roles.audit.export import export
from consilia.roles.audit.home import audit
from consilia.roles.audit.view import open_view
from consilia.settings import load_party
from consilia.settings.network import Network
from tests.consortium import make_member

pytestmark = pytest.mark.network


def network(*arguments: str | Path, code: int = 0) -> Any:
    """A `consilia network` command; what it said, or its message where it fails."""
    command = [sys.executable, "-m", "consilia", "network", *map(str, arguments), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()] if code == 0 else done.stderr


def test_a_consortium_on_another_evm(anvil: str, tmp_path: Path) -> None:
    store = ["--store", tmp_path / "store"]
    server, hospital = tmp_path / "server", tmp_path / "hospital"
    members = {home: make_member(home, home.name) for home in (server, hospital)}
    create = ["create", "--home", server, "--role", "server", "--engine", "rpc", "--url", anvil, *store]
    create += ["--confirmations", "2"]
    Rpc(anvil).call("anvil_mine", "0x2")
    assert "insufficient funds" in network(*create, code=1).lower()  # the founder's account is new
    for member in members.values():
        Rpc(anvil).call("anvil_setBalance", member.account.address, hex(10**18))
    founded = network(*create)[-1]
    assert founded["step"] == "consortium founded" and founded["engine"] == "rpc"
    invite = tmp_path / "invite.json"
    network("invite", "--home", server, "--to", invite)
    request = network("join", invite, "--home", hospital, "--data", tmp_path)[0]["request"]
    depths = [load_party(home).ledger.confirmations for home in (server, hospital)]
    assert depths == [2, 2], "what the founder said of its network holds for who joins by its invite"
    Rpc(anvil).call("evm_setIntervalMining", 1)
    said = network("vote", "--home", server, "--request", request)
    assert [line["step"] for line in said] == ["voted", "decided"]
    listed = network("members", "--home", hospital)
    assert [(line["account"], line["standing"]) for line in listed] == [
        (members[home].account.address, "active") for home in (server, hospital)
    ]
    subject = members[hospital].account.address
    waiting = network("vote", "--home", server, "--suspend", subject)
    assert [line["step"] for line in waiting] == ["voted", "waiting"] and waiting[1]["still_needed"] == 1
    assert "one thing at a time" in network("vote", "1", "--home", server, "--remove", subject, code=2)
    assert "was carried out" in network("vote", "1", "--home", hospital, code=4)
    assert "registry: the last hospital" in network("leave", "--home", hospital, "--yes", code=1)
    assert network("leave", "--home", server, "--yes")[0]["step"] == "left"
    assert network("show", "--home", hospital)[0]["electorate"] == 1
    for home in (server, hospital):  # each member audits by itself, against the node that it asks
        result = audit(home, lambda step, **facts: None)
        assert result.chain is None and result.height > 5
        assert Network.load(home).confirmations == 2
        with open_view(home, None, None) as view:
            assert view.source == anvil
        with pytest.raises(InputError, match="only that chain can be exported"):
            export(home, tmp_path / "export.zip")


def test_options_that_do_not_fit_are_usage_errors(tmp_path: Path) -> None:
    common = ["--home", tmp_path / "home", "--store", tmp_path / "store"]
    for options, message in (
        (["--engine", "rpc", "--role", "server"], "--url goes with --engine rpc"),
        (
            ["--engine", "rpc", "--url", "http://127.0.0.1:1", "--role", "server"],
            "--confirmations: expected finality",
        ),
        (["--role", "server"], "the first founder of an embedded chain is a hospital"),
        (["--role", "king"], "expected hospital, server or auditor"),
        ([], "--data FOLDER"),
    ):
        assert message in network("create", *common, *options, code=2)
    assert "NODIR" in network("create", *common, "--data", tmp_path / "NODIR", code=2)
    assert not (tmp_path / "home").exists()
    assert "--yes" in network("leave", "--home", tmp_path, code=2)
    assert "INVITE" in network("join", "--home", tmp_path / "home", code=2)
