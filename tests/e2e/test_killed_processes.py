"""kill -9 of real processes with real nodes, whenever they have said a certain thing; the task still finishes."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import psutil
import pytest

from consilia.ledger.events import Claimed, TaskPublished, UpdateRegistered
from tests.e2e.running import RunningConsortium, audit

pytestmark = [pytest.mark.network, pytest.mark.slow]


def check(town: RunningConsortium, rounds: int) -> None:
    """Everything happened once, and the audit passes."""
    town.finish_work()
    events = town.ledger(town.ports[0]).events()
    updates = Counter((e.round_index, e.hospital) for e in events if isinstance(e, UpdateRegistered))
    assert updates == {(index, address): 1 for index in range(rounds) for address in town.addresses}
    claims = Counter(event.member for event in events if isinstance(event, Claimed))
    assert claims == dict.fromkeys(town.addresses, 1)
    assert sum(isinstance(event, TaskPublished) for event in events) == 1
    town.stop()
    done = audit(town.home)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["models_rederived"] == rounds


def test_the_server_is_killed_at_every_step(tmp_path: Path) -> None:
    with RunningConsortium(tmp_path, hospitals=3, rounds=3) as town:
        town.start()
        for step in ("published", "started", "update opened", "round closed"):
            town.parties["server"].wait_for(step)
            town.parties["server"].kill()
            town.start_server()
        check(town, rounds=3)
        assert town.parties["server"].process.returncode == 0


def test_hospitals_are_killed_at_every_step(tmp_path: Path) -> None:
    with RunningConsortium(tmp_path, hospitals=3, rounds=3) as town:
        town.start()
        for name, step in (
            ("hospital-2", "enrolled"),
            ("hospital-3", "training"),
            ("hospital-2", "update registered"),
            ("hospital-3", "update registered"),
        ):
            town.parties[name].wait_for(step)
            town.parties[name].kill()
            town.start_hospital(name)
        check(town, rounds=3)


def test_everybody_is_killed_at_once(tmp_path: Path) -> None:
    with RunningConsortium(tmp_path, hospitals=3, rounds=2) as town:
        town.start()
        town.parties["server"].wait_for("update opened")
        for party in town.parties.values():
            party.kill()
        for name in town.names:
            town.start_hospital(name)
        for name in town.names:
            town.parties[name].wait_for("node ready")
        town.start_server()
        check(town, rounds=2)


def test_a_terminated_hospital_takes_its_node_along(tmp_path: Path) -> None:
    with RunningConsortium(tmp_path, hospitals=2, rounds=1) as town:
        hospital = town.start_hospital("hospital-1")
        hospital.wait_for("node ready")
        family = psutil.Process(hospital.process.pid).children(recursive=True)
        assert family
        hospital.process.send_signal(signal.SIGTERM)
        assert hospital.process.wait(60) == 0
        assert not [process for process in family if process.is_running()]
