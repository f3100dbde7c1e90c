"""The exchange by its commands, from registering to the receipt that a stranger checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.values import Digest
from tests.cli.running import Cli, step
from tests.consortium import Consortium, consortium
from tests.roles.trading import PATIENT, write_images


@pytest.fixture
def town(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Consortium]:
    """Two hospitals and a server; the first has four images."""
    with consortium(tmp_path, monkeypatch, 2) as made:
        write_images(made.home / "hospital-1" / "data")
        yield made


@pytest.fixture
def cli(town: Consortium, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line on the homes of `town`."""
    return Cli(town, monkeypatch, capsys)


def register(cli: Cli) -> str:
    words = ("data", "register", "--name", "heads", "--title", "CT heads", "--price-wei", "1000")
    return str(cli(*words)[-1]["root"])


def test_from_registering_to_the_receipt(town: Consortium, cli: Cli, tmp_path: Path) -> None:
    root = register(cli)
    (offer,) = cli("exchange", "offers", home="hospital-2")
    assert offer["root"] == root and offer["price_wei"] == "1000" and offer["attested"] == "by nobody"
    assert "4 images of 2 patients" in offer["description"] and PATIENT not in json.dumps(offer)
    deal = str(step(cli("exchange", "request", root[:12], home="hospital-2"), "requested")["deal"])
    (again,) = cli("exchange", "request", root[:12], home="hospital-2")
    assert again["step"] == "asked already" and again["deal"] == deal
    for terms in (("--arbiter", "0x12"), ("--arbiter", f"0x{'12' * 20}"), ("--price-wei", str(10**40))):
        cli("exchange", "request", root[:12], *terms, home="hospital-2", code=2)
        assert "expected" in cli.errors
    (asked,) = cli("exchange", "inbox")
    assert asked["deal"] == deal and asked["policy"] == "admits it" and asked["price_wei"] == "1000"
    cli("exchange", "fetch", deal[:8], home="hospital-2", code=6)  # the owner has not decided
    step(cli("exchange", "grant", deal[:8]), "offered")
    cli("exchange", "fetch", deal, home="hospital-2", code=6)  # confirmed; the owner has to reveal
    town.hospitals[0].exchange.advance()
    said = cli("exchange", "fetch", deal, home="hospital-2")
    folder = Path(step(said, "added to the training data")["folder"])
    assert folder.is_dir() and folder.parent == town.home / "hospital-2" / "exchanged"
    cli("exchange", "fetch", deal, home="hospital-2")  # again changes nothing
    file = step(cli("exchange", "receipt", deal, home="hospital-2"), "receipt")["file"]
    good = cli("exchange", "receipt", "--verify", file, home=None)[0]
    assert good["step"] == "receipt is good" and good["root"] == root and good["verdict"] == "as_registered"
    forged = tmp_path / "forged.json"
    forged.write_bytes(Path(file).read_bytes().replace(b'"price_wei":1000', b'"price_wei":1001'))
    cli("exchange", "receipt", "--verify", str(forged), home=None, code=5)
    cli("exchange", "attest", deal, "--note", "clean boxes", home="hospital-2")
    assert "as_registered" in cli("exchange", "offers")[0]["attested"]
    for home, side in (("hospital-1", "seller"), ("hospital-2", "buyer")):
        (line,) = cli("exchange", "ls", home=home)
        assert (line["side"], line["state"], line["title"]) == (side, "paid", "CT heads")


def test_denied_and_disputed(town: Consortium, cli: Cli) -> None:
    root = register(cli)
    first = str(cli("exchange", "request", root, home="hospital-2")[-1]["deal"])
    cli("exchange", "deny", first, "--reason", "ethics board")
    cli("exchange", "fetch", first, home="hospital-2", code=1)
    assert "ethics board" in cli.errors
    second = str(cli("exchange", "request", root, home="hospital-2")[-1]["deal"])
    cli("exchange", "grant", second)
    cli("exchange", "fetch", second, home="hospital-2", code=6)
    town.hospitals[0].exchange.advance()
    cli("exchange", "dispute", second, code=2)
    assert "the buyer alone can complain" in cli.errors
    cli("exchange", "dispute", first, home="hospital-2", code=2)
    assert "is refunded" in cli.errors
    step(cli("exchange", "dispute", second, home="hospital-2"), "disputed")
    assert cli("exchange", "offers", home="server")[0]["root"] == root  # a server reads, and judges
    (waiting,) = cli("exchange", "inbox", home="server")
    assert (waiting["step"], waiting["deal"], waiting["side"]) == ("to judge", second, "arbiter")
    looked = step(cli("exchange", "rule", "--look", home="server"), "would rule")
    assert looked["for_buyer"] is False and cli("exchange", "inbox", home="server") != []
    assert {line["state"] for line in cli("exchange", "ls", home="server")} == {"refunded", "disputed"}
    ruled = step(cli("exchange", "rule", home="server"), "ruled")
    assert ruled["deal"] == second and ruled["for_buyer"] is False
    assert cli("exchange", "rule", home="server")[-1]["step"] == "nothing to judge"
    assert cli("exchange", "inbox", home="server")[-1]["step"] == "nothing waits"
    cli("exchange", "attest", root, home="server", code=2)  # a data set is not sealed to it
    assert {line["state"] for line in cli("exchange", "ls")} == {"refunded", "paid"}


def test_words_that_lead_nowhere(cli: Cli) -> None:
    assert cli("exchange", "inbox")[-1]["step"] == "nothing waits"
    assert cli("exchange", "ls")[-1]["step"] == "no deals"
    assert cli("exchange", "offers")[-1]["step"] == "nothing on offer"
    cli("exchange", "request", "abcdef", code=2)
    cli("exchange", "grant", "abcdef", code=2)
    cli("exchange", "receipt", home=None, code=2)
    cli("exchange", "receipt", "--verify", "/nowhere.json", home=None, code=2)
    cli("data", "register", "--name", "u", "--title", "t", "--update", "one", code=2)
    cli("data", "register", "--name", "u", "--title", "t", "--update", "1/0", code=2)
    root = register(cli)
    cli("exchange", "request", root, code=2)  # one's own


def test_what_is_withdrawn_takes_nobodys_money(town: Consortium, cli: Cli) -> None:
    root = register(cli)
    cli("exchange", "withdraw", root, home="hospital-2", code=2)  # not its own
    step(cli("exchange", "withdraw", root[:12]), "withdrawn")
    cli("exchange", "withdraw", root, code=2)
    assert "already" in cli.errors
    assert cli("exchange", "offers", home="hospital-2")[-1]["step"] == "nothing on offer"
    cli("exchange", "request", root, home="hospital-2", code=2)


def test_nothing_is_erased_that_a_buyer_waits_for(town: Consortium, cli: Cli) -> None:
    root = register(cli)
    deal = str(step(cli("exchange", "request", root, home="hospital-2"), "requested")["deal"])
    path = town.object_path(Digest.from_hex(root))
    said = cli("data", "erase", root, "--yes", code=4)
    assert step(said, "owed to a buyer")["deal"] == deal and "--force" in cli.errors and path.exists()
    town.hospitals[0].state.close()  # the process has to stop first
    said = cli("data", "erase", root, "--yes", "--force")
    assert [line["step"] for line in said] == ["owed to a buyer", "withdrawn", "erased"] and not path.exists()
    assert cli("exchange", "offers", home="hospital-2")[-1]["step"] == "nothing on offer"
    town.restart_hospital(0).exchange.advance()  # it denies by itself what it cannot deliver any more
    (line,) = cli("exchange", "ls", home="hospital-2")
    assert (line["state"], line["reason"]) == ("refunded", "the owner does not have it any more")


def test_erasing_asks_a_ledger_that_is_away_first(town: Consortium, cli: Cli) -> None:
    root = register(cli)
    settings = town.home / "hospital-1" / "consilia.toml"
    settings.write_text(settings.read_text().replace(town.url, "http://127.0.0.1:1"))
    town.hospitals[0].state.close()
    cli("data", "erase", root, "--yes", code=3)
    assert town.object_path(Digest.from_hex(root)).exists()
    said = cli("data", "erase", root, "--yes", "--force")
    assert root in step(said, "still on offer")["hint"] and step(said, "erased")
