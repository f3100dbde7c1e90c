"""An exchange between real processes with real nodes: a data set and an update change hands though all are killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from consilia.ledger.exchange_events import DealClosed, Requested
from consilia.protocols.exchange import DealState
from tests.e2e.running import RunningConsortium, audit, consilia
from tests.roles.trading import write_images

pytestmark = [pytest.mark.network, pytest.mark.slow]

BY_POLICY = '\n[exchange]\ndecide = "policy"\n'


def say(*words: str) -> list[dict[str, Any]]:
    """Run a command that must succeed; what it said."""
    done = consilia(*words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_and_an_update_change_hands(tmp_path: Path) -> None:
    with RunningConsortium(tmp_path / "town", hospitals=2, rounds=1) as town:
        seller, buyer = (town.home / name for name in town.names)
        write_images(seller / "data")
        settings = seller / "consilia.toml"
        settings.write_text(settings.read_text() + BY_POLICY)
        town.start()
        town.finish_work()
        words = ("--name", "heads", "--title", "CT heads", "--price-wei", "1000")
        say("data", "register", "--home", str(seller), *words)
        offers = say("exchange", "offers", "--home", str(buyer))
        roots = {offer["kind"]: offer["root"] for offer in offers if offer["owner"] == town.addresses[0]}
        assert set(roots) == {"dataset", "update"}
        deals = {}
        for kind, root in roots.items():
            asked = say("exchange", "request", root, "--price-wei", "1000", "--home", str(buyer))
            deals[kind] = next(line["deal"] for line in asked if line["step"] == "requested")
            for index, step in ((0, "offered"), (1, "confirmed")):  # each dies in the middle of each deal
                town.parties[town.names[index]].wait_for(step)
                town.parties[town.names[index]].kill()
                town.start_hospital(town.names[index])
                town.parties[town.names[index]].wait_for("ready")
            done = say("exchange", "fetch", deals[kind], "--wait-seconds", "120", "--home", str(buyer))
            assert done[-1]["step"] in ("added to the training data", "update delivered")
            receipt = tmp_path / f"{kind}.json"
            receipt.write_bytes((buyer / "receipts" / f"{deals[kind]}.json").read_bytes())
        ledger = town.ledger(town.ports[1])
        while sum(isinstance(event, DealClosed) for event in ledger.events()) < 2:
            ledger.wait(ledger.confirmed_block().number, 5.0)
        events = ledger.events()
        town.stop()
    assert sum(isinstance(event, Requested) for event in events) == 2
    assert {event.state for event in events if isinstance(event, DealClosed)} == {DealState.PAID}
    for kind, root in roots.items():  # a third party, with the file alone
        (proven,) = say("exchange", "receipt", "--verify", str(tmp_path / f"{kind}.json"))
        assert proven["root"] == root and proven["verdict"] == "as_registered"
    assert len(list((buyer / "exchanged" / deals["dataset"] / "images").iterdir())) == 4
    done = audit(town.home)
    assert done.returncode == 0, done.stderr
