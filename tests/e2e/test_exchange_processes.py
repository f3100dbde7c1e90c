"""An exchange between real processes with real nodes on a real S3 server: a data set and an update change hands though
each process is killed, and the store vanishes, is slow, cuts its answers short, and refuses a buyer's credentials."""

from __future__ import annotations

import json
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from consilia.ledger.exchange_events import DealClosed, Requested
from consilia.protocols.exchange import DealState
from tests.ceph import S3Server
from tests.e2e.running import RunningConsortium, audit, consilia
from tests.faulty_wire import FaultyWire
from tests.roles.trading import write_images

pytestmark = [pytest.mark.network, pytest.mark.slow]

BY_POLICY = '\n[exchange]\ndecide = "policy"\n'


def say(*words: str) -> list[dict[str, Any]]:
    """Run a command that must succeed; what it said."""
    done = consilia(*words)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def refuse_credentials(home: Path, buyer: Path, root: str) -> None:
    """With a wrong secret a command says so, and not a word of the secret; nothing is asked for."""
    file = home / "secret-key"
    right = file.read_text()
    file.write_text("not-the-secret\n")
    done = consilia("exchange", "request", root, "--price-wei", "1000", "--home", str(buyer))
    file.write_text(right)
    assert done.returncode == 1 and "refuses these credentials" in done.stderr
    assert "not-the-secret" not in done.stdout + done.stderr


def spoil(wire: FaultyWire, kind: str) -> None:
    """While the buyer fetches: the store goes away for a while, or ends its answers in the middle."""
    if kind == "dataset":
        wire.refuse = True
        wire.hang_up()
        threading.Timer(3.0, wire.mend).start()
    else:
        wire.lost_requests_left = 3
        wire.cut_answers_after = 700


def test_a_data_set_and_an_update_change_hands(tmp_path: Path, s3_server: S3Server) -> None:
    (tmp_path / "town").mkdir()
    with ExitStack() as stack:
        wire = stack.enter_context(FaultyWire(s3_server.endpoint))
        bucket = s3_server.new_bucket()
        store = s3_server.section(tmp_path / "town", bucket, patience_seconds=120, endpoint=wire.url)
        town = stack.enter_context(RunningConsortium(tmp_path / "town", hospitals=2, rounds=1, store=store))
        seller, buyer = (town.home / name for name in town.names)
        write_images(seller / "data")
        settings = seller / "consilia.toml"
        settings.write_text(settings.read_text() + BY_POLICY)
        town.start()
        town.finish_work()
        wire.bytes_a_second = 400_000.0  # slow
        words = ("--name", "heads", "--title", "CT heads", "--price-wei", "1000")
        say("data", "register", "--home", str(seller), *words)
        offers = say("exchange", "offers", "--home", str(buyer))
        roots = {offer["kind"]: offer["root"] for offer in offers if offer["owner"] == town.addresses[0]}
        assert set(roots) == {"dataset", "update"}
        deals = {}
        wire.mend()
        for kind, root in roots.items():
            refuse_credentials(tmp_path / "town", buyer, root)
            asked = say("exchange", "request", root, "--price-wei", "1000", "--home", str(buyer))
            deals[kind] = next(line["deal"] for line in asked if line["step"] == "requested")
            for index, step in ((0, "offered"), (1, "confirmed")):  # each dies in the middle of each deal
                town.parties[town.names[index]].wait_for(step)
                town.parties[town.names[index]].kill()
                town.start_hospital(town.names[index])
                town.parties[town.names[index]].wait_for("ready")
            spoil(wire, kind)
            done = say("exchange", "fetch", deals[kind], "--wait-seconds", "120", "--home", str(buyer))
            assert done[-1]["step"] in ("added to the training data", "update delivered")
            receipt = tmp_path / f"{kind}.json"
            receipt.write_bytes((buyer / "receipts" / f"{deals[kind]}.json").read_bytes())
        ledger = town.ledger(town.ports[1])
        while sum(isinstance(event, DealClosed) for event in ledger.events()) < 2:
            ledger.wait(ledger.confirmed_block().number, 5.0)
        events = ledger.events()
        town.stop()
    assert not (town.home / "store").exists()  # all of it went through the bucket
    assert sum(isinstance(event, Requested) for event in events) == 2
    assert {event.state for event in events if isinstance(event, DealClosed)} == {DealState.PAID}
    for kind, root in roots.items():  # a third party, with the file alone
        (proven,) = say("exchange", "receipt", "--verify", str(tmp_path / f"{kind}.json"))
        assert proven["root"] == root and proven["verdict"] == "as_registered"
    assert len(list((buyer / "exchanged" / deals["dataset"] / "images").iterdir())) == 4
    done = audit(town.home)
    assert done.returncode == 0, done.stderr
