"""A task from its publication to the last round: each refusal stands beside what is accepted."""

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
from tests.contracts.task_steps import logged, now, pass_seconds, phase

if TYPE_CHECKING:
    from tests.contracts.conftest import Contracts

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


def test_a_second_task_never_takes_the_place_of_one_that_is_there(contracts: Contracts) -> None:
    """Two ids of 52 bits can be equal; here the counter is put back, so that they are."""
    task_id = contracts.publish()
    contracts.training.eval(f"self.published[{contracts.server}] = 0")
    with boa.reverts("training: id taken"):
        contracts.publish()
    assert contracts.publish(spec=b"{}") != task_id
