"""`consilia network vote`: what it says when something is decided, asked again, or asked by halves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.roles.membership.requests import JoinRequest
from tests.cli.running import Cli, step
from tests.consortium import PAST_SECONDS, consortium, make_member


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """The command line on the homes of two hospitals and a server."""
    with consortium(tmp_path, monkeypatch, 2) as made:
        made.let_pass(PAST_SECONDS)
        yield Cli(made, monkeypatch, capsys)


def admit(cli: Cli, town: Path) -> str:
    """Somebody joins by the commands; the request file."""
    invite = str(town / "invite.json")
    cli("network", "invite", "--to", invite)
    make_member(town / "newcomer", "newcomer")
    return str(
        step(cli("network", "join", invite, "--data", str(town), home="newcomer"), "ready to join")["request"]
    )


def test_a_decision_does_not_say_how_many_more_it_would_need_now(cli: Cli, tmp_path: Path) -> None:
    request = admit(cli, tmp_path)
    said = cli("network", "vote", "--request", request)
    assert (step(said, "waiting")["needed"], step(said, "waiting")["still_needed"]) == (2, 1)
    said = cli("network", "vote", "--request", request, home="hospital-2")
    assert step(said, "voted")["approvals"] == 2 and step(said, "decided")["kind"] == "admission"
    assert not any("needed" in line for line in said), "of four members three are needed, but it is decided"
    said = cli("network", "vote", "--request", request)  # a script that asks again
    assert [line["step"] for line in said[:2]] == ["had voted already", "decided"]
    cli("network", "vote", "--request", request, home="server", code=4)
    assert "was carried out" in cli.errors


@pytest.mark.parametrize(
    ("node", "is_asked"), [("http://127.0.0.1:7001", True), ("http://10.0.0.7:7001", False)]
)
def test_whoever_proposes_a_newcomer_is_told_to_name_its_node(
    cli: Cli, tmp_path: Path, node: str, is_asked: bool
) -> None:
    file = Path(admit(cli, tmp_path))
    JoinRequest.load(file).model_copy(update={"node": node}).save(file)
    told = step(cli("network", "vote", "--request", str(file)), "its node")
    assert told["address"] == node and ("witnesses of [ledger]" in told["hint"]) == is_asked


def test_a_quorum_for_emergencies_alone_is_refused(cli: Cli) -> None:
    cli("network", "vote", "--emergency-quorum", "30", code=2)
    assert "--quorum" in cli.errors
    assert step(cli("network", "vote"), "nothing to vote on")
    said = cli("network", "vote", "--quorum", "60", "--emergency-quorum", "30")
    assert "60 %" in step(said, "voted")["to"] and "30 %" in step(said, "voted")["to"]


def test_numbers_that_the_ledger_cannot_hold_are_wrong_use(cli: Cli, tmp_path: Path) -> None:
    for number in ("9" * 83, "0"):
        cli("network", "vote", number, code=2)
        assert "expected a proposal's number" in cli.errors
        cli("server", "withdraw", number, home="server", code=2)
        assert "expected an offer's number" in cli.errors
    cli("network", "vote", "1", "--gift-wei", "9" * 83, code=2)
    for command in (("create", "--store", str(tmp_path / "s")), ("join", "invite.json")):
        cli("network", *command, "--data", str(tmp_path), "--days", "9" * 20, home="new", code=2)
        assert "--days" in cli.errors and not (tmp_path / "new").exists()


def test_places_that_cannot_be_written_are_told_and_nobodys_files_are_written_over(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "taken").mkdir()
    cli("network", "invite", "--to", str(tmp_path / "taken"), code=2)
    assert "taken is a folder" in cli.errors and not list(tmp_path.glob("*.partial"))
    mine = tmp_path / "for-you" / "invite.partial"
    mine.parent.mkdir()
    mine.write_text("mine")
    invite = str(mine.with_suffix(".json"))
    cli("network", "invite", "--to", invite)
    assert mine.read_text() == "mine" and len(list(mine.parent.iterdir())) == 2
    cli("network", "invite", "--to", str(tmp_path / "new" / "invite.json"))  # the folder is made
    (tmp_path / "file").touch()
    data = ("--data", str(tmp_path))
    cli("network", "join", invite, *data, home="file", code=2)
    assert "file is a file" in cli.errors
    cli("network", "create", "--store", str(tmp_path / "s"), *data, home="file", code=2)
    assert "file is a file" in cli.errors
    for command in (("create", "--store", str(tmp_path / "s")), ("join", invite)):
        cli("network", *command, *data, "--certificate", str(tmp_path / "taken"), home="other", code=2)
        assert "--certificate" in cli.errors
    cli("demo", "--data", str(tmp_path), home="file/within", code=2)
    assert "expected a folder" in cli.errors
