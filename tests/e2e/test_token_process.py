"""Real processes, and a hospital without a key file: its process, its node and its restart live on a token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from consilia.ledger.events import UpdateRegistered
from tests.e2e.running import RunningConsortium, audit
from tests.softhsm import SoftHsm

pytestmark = [pytest.mark.network, pytest.mark.slow]


def test_a_hospital_process_with_its_keys_in_a_token(tmp_path: Path, softhsm: SoftHsm) -> None:
    with RunningConsortium(tmp_path, hospitals=2, rounds=1, softhsm=softhsm) as town:
        town.start()
        ready = town.parties["hospital-2"].wait_for("ready")
        assert ready["account"] == town.addresses[1] and not (tmp_path / "hospital-2" / "keys").exists()
        town.parties["hospital-2"].wait_for("enrolled")
        town.parties["hospital-2"].kill()
        town.start_hospital("hospital-2")
        town.finish_work()
        events = town.ledger(town.ports[0]).events()
        updates = [event.hospital for event in events if isinstance(event, UpdateRegistered)]
        assert sorted(updates) == sorted(town.addresses)
        town.stop()
        done = audit(town.home)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["models_rederived"] == 1
        for log in tmp_path.glob("*/**/*.log"):
            assert softhsm.pin not in log.read_text()
