"""The network splits in two, both sides go on, and it rejoins: what of the losing side is left, and what it cost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from consilia.ledger.events import Claimed, Funded, TaskPublished, UpdateRegistered
from consilia.ledger.rpc import quantity
from consilia.roles.training.task_log import fold
from tests.consortium import REWARD_WEI
from tests.e2e.split import SplitTown, split_town, wait_for

pytestmark = [pytest.mark.network, pytest.mark.slow]


def outcomes(town: SplitTown) -> dict[str, Counter[str]]:
    """What became of every transaction that anybody has signed: in, refused, or lost."""
    told: dict[str, Counter[str]] = {}
    for name in town.members:
        told[name] = Counter()
        for entry in town.sent(name):
            found = town.rpc(0, "eth_getTransactionReceipt", "0x" + entry.signed.transaction_hash.hex())
            if found is None:
                told[name]["lost"] += 1
            else:
                told[name]["in" if quantity(found["status"]) else "refused"] += 1
    return told


def nothing_is_lost(town: SplitTown) -> bool:
    return not any(count["lost"] for count in outcomes(town).values())


def check_money(town: SplitTown, tasks: int) -> None:
    """Each reward was paid in once and out once."""
    events = town.ledger(0).events()
    funded = Counter(event.task_id for event in events if isinstance(event, Funded))
    assert funded == dict.fromkeys(funded, 1) and len(funded) == tasks
    claims = Counter((event.task_id, event.member) for event in events if isinstance(event, Claimed))
    assert set(claims.values()) == {1}
    for task in fold(events).values():
        paid = sum(e.amount_wei for e in events if isinstance(e, Claimed) and e.task_id == task.task_id)
        assert paid == REWARD_WEI == sum(task.shares_wei.values())
    assert town.ledger(0).open_wei() == 0


def all_claimed(town: SplitTown, tasks: int) -> bool:
    told = fold(town.ledger(0).events()).values()
    return len(told) == tasks and all(
        task.shares_wei and task.claimed == set(task.shares_wei) for task in told
    )


def test_the_smaller_side_believes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sends and mines, but hands out no key, no model and no money; afterwards it goes on with the others."""
    monkeypatch.setattr("consilia.roles.party.WAIT_SECONDS", 0.2)
    with split_town(tmp_path, heed_witnesses=True) as town:
        town.live(*range(5))
        common = town.serve(0, hospitals=5, quorum=3, grace_seconds=1.0, rounds=2)
        for index in range(5):
            wait_for(lambda index=index: town.steps[f"hospital-{index}"].named("training"), "training")
        town.split()
        town.go.set()
        other = town.serve(1, hospitals=2, quorum=2)
        # The larger side finishes alone.
        task = common.result()
        assert {update.hospital for update in task.rounds[1].updates} == set(town.addresses[:3])
        # The smaller one has mined an update of each of its hospitals, and a task of its server.
        wait_for(lambda: town.nonce(3, "server-b") == 1, "the other server's task")
        lonely = town.ledger(3).events()
        assert {e.hospital for e in lonely if isinstance(e, UpdateRegistered)} == set(town.addresses[3:])
        (published,) = [
            event
            for event in lonely
            if isinstance(event, TaskPublished) and event.server == town.members["server-b"].account.address
        ]
        # Nobody there takes it for true: no task key, no sealed model, no enrolment, no report of success.
        assert other.running
        assert town.servers[1].state.task_keys(published.task_id) == {}
        work = (town.home / "server-b" / "work").iterdir()
        assert all(path.suffix == ".lock" for path in work)  # it is at the task, and has made nothing
        assert not any(published.task_id in hospital.tasks() for hospital in town.hospitals[3:])
        assert [
            named for named in ("hospital-3", "hospital-4") if town.steps[named].named("update registered")
        ] == []
        assert town.height(0) > town.height(3)
        town.rejoin()
        other.result()
        wait_for(lambda: all_claimed(town, 2), "all claims")
        wait_for(lambda: nothing_is_lost(town), "every transaction")
        check_money(town, tasks=2)
        assert town.failures == []
        late = [town.steps[name].named("update late") for name in ("hospital-3", "hospital-4")]
        assert all(late), outcomes(town)


def test_two_sides_that_believed_themselves_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without witnesses both sides run a whole task to the last payment; one of the histories loses."""
    monkeypatch.setattr("consilia.roles.party.WAIT_SECONDS", 0.2)
    with split_town(tmp_path, heed_witnesses=False) as town:
        town.go.set()
        town.split()
        town.live(*range(5))
        large = town.serve(0, hospitals=3, quorum=3, rounds=3)
        small = town.serve(1, hospitals=2, quorum=2)
        tasks = [large.result().task_id, small.result().task_id]
        for node, hospitals in enumerate(((0, 1, 2), (3, 4))):
            for index in hospitals:
                wait_for(lambda index=index: town.steps[f"hospital-{index}"].named("done"), "claims")
            claims = [e for e in town.ledger((0, 3)[node]).events() if isinstance(e, Claimed)]
            assert sum(event.amount_wei for event in claims) == REWARD_WEI
        loser = 1 if town.height(0) > town.height(3) else 0
        town.rejoin()
        # Whoever ran the losing server runs it again; its hospitals are still there.
        town.servers[loser] = town.new_server(("server-a", "server-b")[loser])
        again = town.serve(loser, hospitals=(3, 2)[loser], quorum=(3, 2)[loser], rounds=(3, 1)[loser])
        assert (
            again.result().task_id == tasks[loser]
        )  # the same id, so the same keys, envelopes and enrolments
        wait_for(lambda: all_claimed(town, 2), "all claims")
        wait_for(lambda: nothing_is_lost(town), "every transaction")
        check_money(town, tasks=2)
        assert town.failures == []
        lost = [town.steps[f"hospital-{index}"] for index in town.sides[loser]]
        assert all(steps.named("history changed") for steps in lost)
