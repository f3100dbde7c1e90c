"""`consilia data register`: what it says is registered is registered so, and no plaintext stays behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.errors import LedgerUnreachableError
from consilia.ledger.exchange import ExchangeContract
from consilia.protocols.card import MAX_CARD_BYTES
from consilia.roles.exchange import datasets
from tests.cli.running import Cli, step
from tests.consortium import Consortium, consortium
from tests.roles.trading import write_images

WORDS = ("data", "register", "--name", "heads", "--title", "CT heads", "--price-wei", "7")


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


def other(words: tuple[str, ...], option: str, value: str) -> tuple[str, ...]:
    place = words.index(option) + 1
    return (*words[:place], value, *words[place + 1 :])


def test_what_is_registered_stays_as_it_is(town: Consortium, cli: Cli) -> None:
    root = step(cli(*WORDS), "data set registered")["root"]
    (before,) = cli("exchange", "offers")
    assert step(cli(*WORDS), "data set registered")["root"] == root  # again changes nothing
    for words in (other(WORDS, "--title", "CT chests"), other(WORDS, "--price-wei", "9")):
        cli(*words, code=2)
        assert root in cli.errors and "'CT heads'" in cli.errors and "7 wei" in cli.errors
    chests = write_images(town.home / "chests", seed=9)
    cli(*WORDS, "--data", str(chests), code=2)
    assert root in cli.errors and "stands for other data" in cli.errors
    (after,) = cli("exchange", "offers")
    assert {name: after[name] for name in after if name != "time"} == {
        name: before[name] for name in before if name != "time"
    }
    cli("exchange", "withdraw", root)
    cli(*WORDS, code=2)
    assert "withdrawn" in cli.errors and "another name" in cli.errors
    step(cli(*other(WORDS, "--name", "heads again")), "data set registered")


def test_words_may_change_until_they_are_on_the_ledger(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(ExchangeContract, "register", ledger_is_away)
        cli(*WORDS, code=3)
    step(cli(*other(other(WORDS, "--title", "CT chests"), "--price-wei", "9")), "data set registered")
    (offer,) = cli("exchange", "offers")
    assert offer["price_wei"] == "9" and offer["description"].startswith("CT chests")


def test_the_package_is_its_owners_alone_and_goes_also_where_registering_fails(
    town: Consortium, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, modes = datasets.pack, []

    def pack(*arguments):
        work = town.home / "hospital-1" / "work"
        modes.extend(path.stat().st_mode & 0o777 for path in work.iterdir())
        return honest(*arguments)

    monkeypatch.setattr(datasets, "pack", pack)
    monkeypatch.setattr(ExchangeContract, "register", ledger_is_away)
    cli(*WORDS, code=3)
    assert modes == [0o600] and list((town.home / "hospital-1" / "work").iterdir()) == []


def ledger_is_away(*_: object, **__: object) -> None:
    raise LedgerUnreachableError("nobody answers")


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--title", ""),
        ("--title", "x" * 201),
        ("--title", "\udcff"),
        ("--name", ""),
        ("--price-wei", str(2**128)),
        ("--price-wei", str(10**80)),
        ("--description", "x" * 4001),
        ("--description", "\N{HEAVY BLACK HEART}" * (MAX_CARD_BYTES // 3)),
    ],
)
def test_what_no_card_can_say_is_refused_before_anything_is_packed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, option: str, value: str
) -> None:
    monkeypatch.setattr(datasets, "pack", None)
    words = other((*WORDS, "--description", ""), option, value)
    cli(*words, code=2)
    assert "expected a" in cli.errors or "shorten it" in cli.errors


@pytest.mark.parametrize("update", ["²/0", "1", "1/", "/0", "1/0/0", "-1/0", "9" * 5000 + "/0", "1/0\n"])
def test_an_update_is_named_by_two_numbers(cli: Cli, update: str) -> None:
    cli("data", "register", "--name", "u", "--title", "t", "--update", update, code=2)
    assert "--update TASK/ROUND" in cli.errors
