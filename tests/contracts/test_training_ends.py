"""A task's end: the shares that a server sets or that are set without it, and the ways to die."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boa

from consilia.ledger.views import Phase
from tests.contracts.conftest import (
    ENROL_SECONDS,
    REWARD_WEI,
    ROUND_SECONDS,
)
from tests.contracts.task_steps import GRACE_SECONDS, SETTLE_SECONDS, logged, pass_seconds, phase

if TYPE_CHECKING:
    from tests.contracts.conftest import Contracts

# Shares


def test_the_server_sets_the_shares_in_batches(contracts: Contracts) -> None:
    task_id = contracts.finished_task()
    first, second, third, _ = contracts.hospitals
    contracts.training.settle(task_id, [first, second], [600_000, 300_000], sender=contracts.server)
    contracts.training.settle(task_id, [third], [100_000], sender=contracts.server)
    assert contracts.escrow.pool(task_id).unshared_wei == 0
    before_wei = boa.env.get_balance(first)
    contracts.escrow.claim(task_id, sender=first)
    assert boa.env.get_balance(first) == before_wei + 600_000


def test_shares_are_for_enrolled_hospitals_within_the_pool(contracts: Contracts) -> None:
    running = contracts.training_task()
    first, second, _, outsider = contracts.hospitals
    settle = contracts.training.settle
    with boa.reverts("training: not over"):
        settle(running, [first], [1], sender=contracts.server)
    task_id = contracts.finished_task()
    with boa.reverts("training: not enrolled"):
        settle(task_id, [outsider], [1], sender=contracts.server)
    with boa.reverts("training: not the task's server"):
        settle(task_id, [first], [1], sender=first)
    with boa.reverts("escrow: shares exceed the pool"):
        settle(task_id, [first, second], [REWARD_WEI, 1], sender=contracts.server)
    with boa.reverts():  # the sum overflows: no way round the pool's limit
        settle(task_id, [first, second], [2**256 - 1, 2], sender=contracts.server)
    settle(task_id, [first], [REWARD_WEI], sender=contracts.server)
    with boa.reverts("escrow: share already set"):
        settle(task_id, [first], [0], sender=contracts.server)


def test_a_server_that_never_settles_is_replaced_by_the_count_of_updates(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    first, second, third, outsider = contracts.hospitals
    contracts.run_round(task_id, 0)
    for hospital in (first, second, third):
        contracts.register(task_id, 1, hospital)
    contracts.close(task_id, 1)  # 5 updates: 2 of first, 2 of second, 1 of third
    settle = contracts.training.settle_by_updates
    pass_seconds(SETTLE_SECONDS - 1)
    with boa.reverts("training: the server may still settle"):
        settle(task_id, first)
    pass_seconds(1)
    for hospital in (third, first, second):
        settle(task_id, hospital, sender=contracts.stranger)
    with boa.reverts("escrow: share already set"):
        settle(task_id, first)
    with boa.reverts("training: no updates"):
        settle(task_id, outsider)
    shares = [contracts.escrow.share_wei(task_id, hospital) for hospital in (first, second, third)]
    assert shares == [400_000, 400_000, 200_000]


def test_a_server_that_settled_in_part_cannot_overdraw_the_pool(contracts: Contracts) -> None:
    task_id = contracts.finished_task()
    first, second, third, _ = contracts.hospitals
    contracts.training.settle(task_id, [third], [900_000], sender=contracts.server)
    pass_seconds(SETTLE_SECONDS)
    contracts.training.settle_by_updates(task_id, first)
    contracts.training.settle_by_updates(task_id, second)
    assert contracts.escrow.share_wei(task_id, first) == 100_000
    assert contracts.escrow.share_wei(task_id, second) == 0


# Death


def died(contracts: Contracts) -> dict[str, Any]:
    return dict(logged(contracts.training))["TaskDied"]


def test_a_task_without_quorum_dies_at_the_deadline(contracts: Contracts) -> None:
    task_id = contracts.publish()
    contracts.enrol(task_id, 1)
    pass_seconds(ENROL_SECONDS - 1)
    with boa.reverts("training: still alive"):
        contracts.training.abort(task_id, sender=contracts.stranger)
    pass_seconds(1)
    contracts.training.abort(task_id, sender=contracts.stranger)
    assert died(contracts) == {
        "task_id": task_id,
        "reason": "too few hospitals",
        "paid_rounds": 0,
        "refund_wei": REWARD_WEI,
    }
    assert phase(contracts, task_id) is Phase.DEAD
    before_wei = boa.env.get_balance(contracts.server)
    contracts.escrow.refund(task_id, sender=contracts.server)
    assert boa.env.get_balance(contracts.server) == before_wei + REWARD_WEI


def test_a_task_that_its_server_never_starts_dies_after_the_grace(contracts: Contracts) -> None:
    task_id = contracts.publish()
    contracts.issue_keys(task_id, contracts.enrol(task_id))
    pass_seconds(ENROL_SECONDS + GRACE_SECONDS - 1)
    with boa.reverts("training: still alive"):
        contracts.training.abort(task_id)
    pass_seconds(1)
    contracts.training.abort(task_id)
    assert (died(contracts)["reason"], died(contracts)["paid_rounds"]) == ("never started", 0)
    with boa.reverts("training: already started"):
        contracts.start(task_id)


def test_a_round_without_quorum_kills_but_closed_rounds_are_paid(contracts: Contracts) -> None:
    task_id = contracts.training_task(rounds=4)
    contracts.run_round(task_id, 0)
    contracts.register(task_id, 1, contracts.hospitals[0])
    pass_seconds(ROUND_SECONDS - 1)
    with boa.reverts("training: still alive"):
        contracts.training.abort(task_id)
    pass_seconds(1)
    contracts.training.abort(task_id)
    assert (died(contracts)["reason"], died(contracts)["paid_rounds"]) == ("too few updates", 1)
    pool = contracts.escrow.pool(task_id)
    assert (pool.unshared_wei, pool.refundable_wei) == (REWARD_WEI // 4, REWARD_WEI * 3 // 4)
    contracts.training.settle(task_id, contracts.hospitals[:1], [REWARD_WEI // 4], sender=contracts.server)
    with boa.reverts("training: round closed"):
        contracts.register(task_id, 1, contracts.hospitals[1])


def test_a_server_saves_nothing_by_silence_once_the_updates_are_in(contracts: Contracts) -> None:
    task_id = contracts.training_task(rounds=1)
    for hospital in contracts.hospitals[:2]:
        contracts.register(task_id, 0, hospital)
    pass_seconds(ROUND_SECONDS + GRACE_SECONDS - 1)
    with boa.reverts("training: still alive"):
        contracts.training.abort(task_id)
    pass_seconds(1)
    contracts.training.abort(task_id)
    assert died(contracts)["reason"] == "server silent"
    assert died(contracts)["refund_wei"] == 0
    pass_seconds(SETTLE_SECONDS)
    for hospital in contracts.hospitals[:2]:
        contracts.training.settle_by_updates(task_id, hospital)
        assert contracts.escrow.share_wei(task_id, hospital) == REWARD_WEI // 2


def test_what_is_over_cannot_die(contracts: Contracts) -> None:
    finished = contracts.finished_task()
    dead = contracts.publish()
    pass_seconds(10 * GRACE_SECONDS)
    with boa.reverts("training: not running"):
        contracts.training.abort(finished)
    contracts.training.abort(dead)
    for task_id in (dead, 99):
        with boa.reverts("training: not running"):
            contracts.training.abort(task_id)


def test_an_expired_member_can_do_nothing(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    boa.env.evm.patch.timestamp = 2**40 - 1
    late = contracts.publish()
    contracts.enrol(late)
    boa.env.evm.patch.timestamp = 2**40  # everybody's valid_to
    with boa.reverts("training: not an active server"):
        contracts.publish()
    with boa.reverts("training: not an active hospital"):
        contracts.training.enrol(late, sender=contracts.hospitals[3])
    with boa.reverts("training: not an active server"):
        contracts.close(task_id, 0)
