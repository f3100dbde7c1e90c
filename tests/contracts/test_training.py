"""A task from its publication to the shares: each refusal stands beside what is accepted."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import boa
import pytest

from consilia.ledger.views import Phase
from tests.contracts.conftest import (
    DIGEST,
    ENROL_SECONDS,
    OTHER_ROOT,
    REWARD_WEI,
    ROOT,
    ROUND_SECONDS,
    SPEC,
    load,
)

if TYPE_CHECKING:
    from tests.contracts.conftest import Contracts

GRACE_SECONDS = 3 * 86400
SETTLE_SECONDS = 7 * 86400

POSITION_BITS_CALLER = """
# pragma evm-version london
import position_bits

@external
def count(positions: uint256[2]) -> uint256:
    return position_bits._count(positions)

@external
def all_below(positions: uint256[2], limit: uint256) -> bool:
    return position_bits._all_below(positions, limit)
"""


def pass_seconds(seconds: int) -> None:
    boa.env.evm.patch.timestamp += seconds


def now() -> int:
    return int(boa.env.evm.patch.timestamp)


def logged(contract: Any) -> list[tuple[str, dict[str, Any]]]:
    """What a contract's last call logged: names and values, those of its callees too."""
    events = contract.get_logs()
    return [
        (type(event).__name__, {f: getattr(event, f) for f in event._fields if f != "address"})
        for event in events
    ]


def phase(contracts: Contracts, task_id: int) -> Phase:
    return Phase(contracts.training.task(task_id).phase)


# Publish


def test_publish_puts_the_reward_into_escrow(contracts: Contracts) -> None:
    task_id = contracts.publish()
    events = dict(logged(contracts.training))
    assert events["TaskPublished"] == {
        "task_id": task_id,
        "server": contracts.server,
        "spec_digest": hashlib.sha256(SPEC).digest(),
        "spec": SPEC,
        "rounds": 2,
        "quorum": 2,
        "max_hospitals": 4,
        "enrol_deadline": now() + ENROL_SECONDS,
        "round_seconds": ROUND_SECONDS,
        "reward_wei": REWARD_WEI,
    }
    assert boa.env.get_balance(contracts.escrow.address) == REWARD_WEI == contracts.escrow.open_wei()
    assert contracts.escrow.pool(task_id).funder == contracts.server
    assert boa.env.get_balance(contracts.training.address) == 0
    task = contracts.training.task(task_id)
    assert (task.server, task.phase, task.rounds) == (contracts.server, Phase.ENROLLING, 2)
    assert task.spec_digest == hashlib.sha256(SPEC).digest()
    free = contracts.publish(value=0)  # a consortium may work for nothing
    assert len({task_id, free, contracts.publish(spec=b"x" * 8192)}) == 3 == contracts.training.task_count()


def test_publish_is_for_active_servers(contracts: Contracts) -> None:
    for other in (contracts.hospitals[0], contracts.auditor, contracts.stranger):
        with boa.reverts("training: not an active server"):
            contracts.publish(sender=other)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"spec": b""}, "training: empty spec"),
        ({"rounds": 0}, "training: rounds out of range"),
        ({"rounds": 10_001}, "training: rounds out of range"),
        ({"quorum": 0}, "training: quorum out of range"),
        ({"quorum": 5}, "training: quorum out of range"),
        ({"max_hospitals": 513}, "training: too many hospitals"),
        ({"enrol_seconds": 0}, "training: enrol time out of range"),
        ({"enrol_seconds": 2**256 - 1}, "training: enrol time out of range"),
        ({"round_seconds": 0}, "training: round time out of range"),
        ({"round_seconds": 365 * 86400 + 1}, "training: round time out of range"),
    ],
)
def test_publish_keeps_terms_in_range(contracts: Contracts, changes: dict[str, Any], reason: str) -> None:
    with boa.reverts(reason):
        contracts.publish(**changes)
    assert contracts.training.task_count() == 0 == contracts.escrow.open_wei()


def test_training_takes_its_own_escrow_only(contracts: Contracts) -> None:
    with boa.reverts("training: escrow of another controller"):
        load("training", contracts.registry.address, contracts.escrow.address)


# Enrol


def test_hospitals_enrol_in_order(contracts: Contracts) -> None:
    task_id = contracts.publish()
    for index, hospital in enumerate(contracts.hospitals):
        contracts.training.enrol(task_id, sender=hospital)
        ((name, values),) = logged(contracts.training)
        assert (name, values) == ("Enrolled", {"task_id": task_id, "hospital": hospital, "index": index})
        assert contracts.training.enrolment(task_id, hospital).position == index + 1
    assert contracts.training.task(task_id).enrolled == 4


def test_enrol_is_for_active_hospitals_once(contracts: Contracts) -> None:
    task_id = contracts.publish()
    for other in (contracts.server, contracts.auditor, contracts.stranger):
        with boa.reverts("training: not an active hospital"):
            contracts.training.enrol(task_id, sender=other)
    contracts.enrol(task_id, 1)
    with boa.reverts("training: already enrolled"):
        contracts.enrol(task_id, 1)
    with boa.reverts("training: enrolment closed"):
        contracts.enrol(task_id + 1)


def test_a_full_task_takes_nobody(contracts: Contracts) -> None:
    task_id = contracts.publish(max_hospitals=2)
    contracts.enrol(task_id, 2)
    with boa.reverts("training: task is full"):
        contracts.training.enrol(task_id, sender=contracts.hospitals[2])


def test_enrolment_ends_at_its_deadline(contracts: Contracts) -> None:
    task_id = contracts.publish()
    pass_seconds(ENROL_SECONDS - 1)
    contracts.enrol(task_id, 1)
    pass_seconds(1)
    with boa.reverts("training: enrolment closed"):
        contracts.training.enrol(task_id, sender=contracts.hospitals[1])


def test_enrolment_ends_with_the_start(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    with boa.reverts("training: enrolment closed"):
        contracts.training.enrol(task_id, sender=contracts.hospitals[3])


# Task keys


def test_each_hospital_gets_its_task_key(contracts: Contracts) -> None:
    task_id = contracts.publish()
    first, second, third = contracts.enrol(task_id)
    contracts.training.issue_keys(
        task_id, [third, first], [b"\x03" * 32, b"\x01" * 32], sender=contracts.server
    )
    assert logged(contracts.training) == [
        ("TaskKeyIssued", {"task_id": task_id, "hospital": third, "task_key": b"\x03" * 32}),
        ("TaskKeyIssued", {"task_id": task_id, "hospital": first, "task_key": b"\x01" * 32}),
    ]
    assert contracts.training.enrolment(task_id, third).keyed
    assert not contracts.training.enrolment(task_id, second).keyed
    assert contracts.training.task(task_id).keyed == 2


def test_task_keys_are_issued_once_to_the_enrolled(contracts: Contracts) -> None:
    task_id = contracts.publish()
    enrolled = contracts.enrol(task_id)
    issue = contracts.training.issue_keys
    with boa.reverts("training: not the task's server"):
        issue(task_id, enrolled[:1], [ROOT], sender=enrolled[0])
    with boa.reverts("training: not enrolled"):
        issue(task_id, [contracts.hospitals[3]], [ROOT], sender=contracts.server)
    with boa.reverts("training: lengths differ"):
        issue(task_id, enrolled, [ROOT], sender=contracts.server)
    with boa.reverts("training: empty task key"):
        issue(task_id, enrolled[:1], [b"\x00" * 32], sender=contracts.server)
    with boa.reverts("training: task key already issued"):
        issue(task_id, [enrolled[0]] * 2, [ROOT] * 2, sender=contracts.server)
    contracts.issue_keys(task_id, enrolled)
    with boa.reverts("training: task key already issued"):
        issue(task_id, enrolled[:1], [ROOT], sender=contracts.server)
    contracts.start(task_id)
    with boa.reverts("training: already started"):
        issue(task_id, enrolled[:1], [ROOT], sender=contracts.server)


# Start


def test_start_opens_round_0(contracts: Contracts) -> None:
    task_id = contracts.publish()
    contracts.issue_keys(task_id, contracts.enrol(task_id, 2))
    contracts.start(task_id)
    assert logged(contracts.training) == [
        ("TaskStarted", {"task_id": task_id, "key_string_root": ROOT, "key_string_size": 10}),
        ("RoundOpened", opened(task_id, 0, ROOT, 20)),
    ]
    assert phase(contracts, task_id) is Phase.TRAINING


def opened(task_id: int, round_index: int, root: bytes, size: int) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "round_index": round_index,
        "model_root": root,
        "model_size": size,
        "model_digest": DIGEST,
        "deadline": now() + ROUND_SECONDS,
    }


def test_start_needs_quorum_and_all_keys(contracts: Contracts) -> None:
    task_id = contracts.publish()
    contracts.issue_keys(task_id, contracts.enrol(task_id, 1))
    with boa.reverts("training: too few hospitals"):
        contracts.start(task_id)
    contracts.training.enrol(task_id, sender=contracts.hospitals[1])
    with boa.reverts("training: task keys missing"):
        contracts.start(task_id)
    contracts.issue_keys(task_id, [contracts.hospitals[1]])
    with boa.reverts("training: not the task's server"):
        contracts.start(task_id, sender=contracts.hospitals[0])
    contracts.start(task_id)
    with boa.reverts("training: already started"):
        contracts.start(task_id)


# Updates


def test_updates_are_registered_in_order(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    for position, hospital in enumerate(reversed(contracts.hospitals[:3])):
        contracts.register(task_id, 0, hospital, num_examples=7)
        assert logged(contracts.training) == [
            (
                "UpdateRegistered",
                {
                    "task_id": task_id,
                    "round_index": 0,
                    "hospital": hospital,
                    "position": position,
                    "root": ROOT,
                    "key_hash": OTHER_ROOT,
                    "size": 30,
                    "num_examples": 7,
                    "metrics_digest": DIGEST,
                    "trail": contracts.training.trails(task_id, position),
                },
            )
        ]
    assert contracts.training.task(task_id).registered == 3


def test_an_update_comes_once_from_the_enrolled_in_the_open_round(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    first, second, third, outsider = contracts.hospitals
    contracts.register(task_id, 0, first)
    with boa.reverts("training: update already registered"):
        contracts.register(task_id, 0, first)
    with boa.reverts("training: not enrolled"):
        contracts.register(task_id, 0, outsider)
    with boa.reverts("training: no examples"):
        contracts.register(task_id, 0, second, num_examples=0)
    with boa.reverts("training: round closed"):
        contracts.register(task_id, 1, second)  # too early
    contracts.register(task_id, 0, second)
    contracts.close(task_id, 0)
    with boa.reverts("training: round closed"):
        contracts.register(task_id, 0, third)  # too late
    contracts.register(task_id, 1, third)
    contracts.register(task_id, 1, first)


def test_an_update_after_the_deadline_is_late(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    pass_seconds(ROUND_SECONDS - 1)
    contracts.register(task_id, 0, contracts.hospitals[0])
    pass_seconds(1)
    with boa.reverts("training: round closed"):
        contracts.register(task_id, 0, contracts.hospitals[1])


def test_nobody_registers_before_the_start_or_after_the_end(contracts: Contracts) -> None:
    task_id = contracts.publish()
    contracts.enrol(task_id)
    with boa.reverts("training: round closed"):
        contracts.register(task_id, 0, contracts.hospitals[0])
    finished = contracts.finished_task()
    with boa.reverts("training: round closed"):
        contracts.register(finished, 1, contracts.hospitals[2])


# Close


def test_closing_a_round_opens_the_next(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    for hospital in contracts.hospitals[:3]:
        contracts.register(task_id, 0, hospital)
    pass_seconds(7)
    contracts.close(task_id, 0, 0b101)
    closed, next_opened = logged(contracts.training)
    assert closed == (
        "RoundClosed",
        {
            "task_id": task_id,
            "round_index": 0,
            "registered": 3,
            "included": [0b101, 0],
            "report_root": ROOT,
            "report_size": 40,
            "report_digest": DIGEST,
            "model_root": OTHER_ROOT,
            "model_size": 50,
            "model_digest": DIGEST,
        },
    )
    assert next_opened == ("RoundOpened", opened(task_id, 1, OTHER_ROOT, 50))
    assert contracts.training.task(task_id).registered == 0


def test_ids_of_tasks_belong_to_server_and_spec(contracts: Contracts) -> None:
    """After a re-org tasks come back in another order; an enrolment must land where it was meant to, or nowhere."""
    with boa.env.anchor():
        meant = contracts.publish()
        other = contracts.publish(spec=b"other")
    moved = contracts.publish(spec=b"other")
    assert moved not in (meant, other)
    with boa.reverts("training: enrolment closed"):
        contracts.training.enrol(meant, sender=contracts.hospitals[0])
    assert meant < 2**52


def test_a_closing_is_for_the_updates_that_were_judged(contracts: Contracts) -> None:
    """The server judged two updates; a re-org brings them back in another order, or another one among them."""
    task_id = contracts.training_task()
    one, two, three = contracts.hospitals[:3]
    with boa.env.anchor():
        for hospital in (one, two):
            contracts.register(task_id, 0, hospital)
        trail = contracts.training.trails(task_id, 1)
    signed = (task_id, 0, trail, 2, [0b11, 0], ROOT, 40, DIGEST, OTHER_ROOT, 50, DIGEST)
    for order in ((two, one), (one, three), (one,), ()):
        with boa.env.anchor():
            for hospital in order:
                contracts.register(task_id, 0, hospital)
            with boa.reverts("training: other updates than judged"):
                contracts.training.close_round(*signed, sender=contracts.server)
    for hospital in (one, two, three):  # the third came too late
        contracts.register(task_id, 0, hospital)
    with boa.reverts("training: included was never registered"):
        contracts.training.close_round(*signed[:4], [0b101, 0], *signed[5:], sender=contracts.server)
    contracts.training.close_round(*signed, sender=contracts.server)


def test_a_trail_of_an_earlier_round_closes_no_later_one(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    contracts.run_round(task_id, 0)
    old = contracts.training.trails(task_id, 1)
    for hospital in contracts.hospitals[:2]:
        contracts.register(task_id, 1, hospital)
    with boa.reverts("training: other updates than judged"):
        contracts.training.close_round(
            *(task_id, 1, old, 2, [0b11, 0], ROOT, 40, DIGEST, OTHER_ROOT, 50, DIGEST),
            sender=contracts.server,
        )


def test_the_last_round_finishes_the_task(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    contracts.run_round(task_id, 0)
    contracts.run_round(task_id, 1)
    assert [name for name, _ in logged(contracts.training)] == ["RoundClosed", "TaskFinished"]
    assert phase(contracts, task_id) is Phase.FINISHED
    with boa.reverts("training: round closed"):
        contracts.close(task_id, 1)


def test_a_round_is_closed_by_its_server_over_enough_updates(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    contracts.register(task_id, 0, contracts.hospitals[0])
    with boa.reverts("training: too few updates"):
        contracts.close(task_id, 0, 0b1)
    with boa.reverts("training: included was never registered"):
        contracts.close(task_id, 0, 0b11)
    contracts.register(task_id, 0, contracts.hospitals[1])
    for beyond in (0b111, 1 << 255 | 0b11, 1 << 256 | 0b11, 1 << 511 | 0b11):
        with boa.reverts("training: included was never registered"):
            contracts.close(task_id, 0, beyond)
    with boa.reverts("training: too few updates"):
        contracts.close(task_id, 0, 0b10)
    with boa.reverts("training: round closed"):
        contracts.close(task_id, 1)
    with boa.reverts("training: not the task's server"):
        contracts.close(task_id, 0, sender=contracts.hospitals[0])
    contracts.close(task_id, 0)
    with boa.reverts("training: round closed"):
        contracts.close(task_id, 0)


def test_a_round_may_be_closed_after_its_deadline(contracts: Contracts) -> None:
    task_id = contracts.training_task()
    for hospital in contracts.hospitals[:2]:
        contracts.register(task_id, 0, hospital)
    pass_seconds(ROUND_SECONDS + 1)
    contracts.close(task_id, 0)


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


@pytest.mark.parametrize(
    "positions", [(), (0,), (255,), (256,), (511,), (0, 255, 256, 511), tuple(range(512))]
)
def test_a_set_of_positions_is_counted_right(positions: tuple[int, ...]) -> None:
    bits = boa.loads(POSITION_BITS_CALLER)
    number = sum(1 << position for position in positions)
    words = [number % 2**256, number >> 256]
    assert bits.count(words) == len(positions)
    for limit in (0, 1, 255, 256, 257, 511, 512):
        assert bits.all_below(words, limit) == (max(positions, default=-1) < limit)


def test_a_second_task_never_takes_the_place_of_one_that_is_there(contracts: Contracts) -> None:
    """Two ids of 52 bits can be equal; here the counter is put back, so that they are."""
    task_id = contracts.publish()
    contracts.training.eval(f"self.published[{contracts.server}] = 0")
    with boa.reverts("training: id taken"):
        contracts.publish()
    assert contracts.publish(spec=b"{}") != task_id
