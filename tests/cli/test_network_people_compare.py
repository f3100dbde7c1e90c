"""What people compare before they vote is shown whole: accounts, keys and the digests of certificates."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.roles.membership.requests import JoinRequest
from consilia.values import Digest
from tests.cli.running import Cli, step
from tests.consortium import PAST_SECONDS, Consortium, consortium

CERTIFICATE = b"a licence"


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """Two hospitals and a server, at the time that their clocks say."""
    with consortium(tmp_path, monkeypatch, 2) as made:
        made.let_pass(PAST_SECONDS)
        yield made


@pytest.fixture
def cli(town: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on the homes of `town`."""
    monkeypatch.setenv("COLUMNS", "80")
    return Cli(town, monkeypatch, capsys)


def test_members_fit_80_columns_and_cut_nothing_off(town: Consortium, cli: Cli) -> None:
    said = cli.text("network", "members")
    assert max(map(len, said.splitlines())) <= 80 and "…" not in said
    members = cli("network", "members")
    assert len(members) == 3
    for member in members:
        assert all(
            member[name] in said for name in ("account", "role", "recipient_key", "certificate_digest")
        )
        assert len(member["recipient_key"]) == len(member["certificate_digest"]) == 64
    account = re.findall("^0x[0-9a-fA-F]{40}", said, re.MULTILINE)[
        1
    ]  # as it stands there, it can be voted on
    assert step(cli("network", "vote", "--suspend", account), "voted")["to"].endswith(account)


def test_a_new_record_is_seen_whole_before_anybody_votes_for_it(
    town: Consortium, cli: Cli, tmp_path: Path
) -> None:
    """Who sees the first digits alone votes for whatever key was ground to begin like the right one."""
    (tmp_path / "licence.pdf").write_bytes(CERTIFICATE)
    certificate = ("--certificate", str(tmp_path / "licence.pdf"), "--days", "30")
    made = cli("network", "join", "--change", "--new-account", *certificate, home="hospital-2")[-1]
    request = JoinRequest.load(Path(made["request"]))
    whole = {
        "account": request.account,
        "recipient_key": town.hospitals[1].identity.recipient.hex(),
        "certificate_digest": Digest.of(CERTIFICATE).hex(),
    }
    proposed = cli.text("network", "vote", "--request", made["request"])
    waiting, said = cli("network", "vote", home="server")[0], cli.text("network", "vote", home="server")
    assert request.account != town.addresses[1]
    assert whole.items() <= waiting.items()
    for text in (proposed, said):
        assert all(f"{name}={value}" in text for name, value in whole.items())
    voted = cli("network", "vote", str(waiting["proposal"]), home="server")
    assert whole.items() <= voted[0].items() and step(voted, "decided")
    assert request.account in cli.text("network", "members", home="server")
