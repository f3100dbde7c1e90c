"""The whole training on another engine: contracts, rounds, a kill -9, rewards and the audit on Foundry's anvil."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import Claimed, TaskPublished, UpdateRegistered
from consilia.ledger.rpc import Rpc
from consilia.roles.training.task_log import fold
from tests.consortium import CHAIN_ID, REWARD_WEI, flip_bit
from tests.e2e.running import RunningConsortium, audit
from tests.ledger.conftest import anvil_binary, running_anvil

pytestmark = [pytest.mark.network, pytest.mark.slow]
__all__ = ["anvil_binary"]  # a fixture of the ledger's tests

ROUNDS = 2


@pytest.fixture(params=[(), ("--block-time", "1")], ids=["a block a transaction", "a block a second"])
def network(anvil_binary: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    with running_anvil(anvil_binary, "--chain-id", str(CHAIN_ID), *request.param) as url:
        yield url


def test_a_whole_training_on_anvil(network: str, tmp_path: Path) -> None:
    with RunningConsortium(tmp_path, hospitals=3, rounds=ROUNDS) as town:
        town.use_network(network)
        for member in town.members:
            Rpc(network).call("anvil_setBalance", member.account.address, hex(100 * 10**18))
        town.start()
        for name, step in (("server", "started"), ("hospital-2", "update registered")):
            town.parties[name].wait_for(step)
            town.parties[name].kill()
            town.start_server() if name == "server" else town.start_hospital(name)
        town.finish_work()
        ledger = Ledger(network, Deployment.load(tmp_path / "deployment.json"))
        events = ledger.events()
        updates = Counter((e.round_index, e.hospital) for e in events if isinstance(e, UpdateRegistered))
        assert updates == {(index, hospital): 1 for index in range(ROUNDS) for hospital in town.addresses}
        assert sum(isinstance(event, TaskPublished) for event in events) == 1
        paid = Counter({e.member: e.amount_wei for e in events if isinstance(e, Claimed)})
        (task,) = fold(events).values()
        assert paid == task.shares_wei and paid.total() == REWARD_WEI and ledger.open_wei() == 0
        assert not (tmp_path / "hospital-1" / "node").exists()

        done = audit(tmp_path)
        assert done.returncode == 0, done.stderr
        said = [json.loads(line) for line in done.stdout.splitlines()]
        assert any(line["step"] == "ledger read, not replayed" for line in said)
        assert (said[-1]["replayed"], said[-1]["models_rederived"]) == (False, ROUNDS)
        root = task.rounds[0].updates[0].root.hex()
        flip_bit(tmp_path / "store" / root[:2] / root, -60)
        assert audit(tmp_path).returncode == 5
