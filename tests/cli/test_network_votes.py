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
