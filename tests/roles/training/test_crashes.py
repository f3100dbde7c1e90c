"""Server and hospitals die before and after every step that leaves a trace, and go on from their homes."""

from __future__ import annotations

from typing import Any

import pytest

from consilia.ledger.events import Claimed, TaskPublished, UpdateRegistered
from consilia.roles.audit.home import audit
from tests.consortium import REWARD_WEI, Consortium

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """As kill -9: nobody catches it."""


def die_at(owner: Any, method: str, after: bool) -> None:
    """The first call of a method ends its party, before or after it was done."""
    honest = getattr(owner, method)

    def fatal(*arguments: Any, **named: Any) -> Any:
        setattr(owner, method, honest)
        if after:
            honest(*arguments, **named)
        raise Killed(method)

    setattr(owner, method, fatal)


SERVER_STEPS = [
    ("ledger", "publish_task"),
    ("state", "remember"),
    ("state", "keep_task_keys"),
    ("ledger", "issue_keys"),
    ("state", "keep_artifact"),
    ("store", "writer"),
    ("ledger", "start_task"),
    ("ledger", "close_round"),
    ("ledger", "settle"),
]
HOSPITAL_STEPS = [
    ("ledger", "enrol"),
    ("state", "remember"),
    ("state", "keep_artifact"),
    ("store", "writer"),
    ("ledger", "register_update"),
    ("ledger", "claim"),
]


def in_order(town: Consortium) -> None:
    """Everything happened once, everybody has been paid, and an auditor agrees."""
    events = town.hospitals[0].ledger.events()
    updates = [(e.round_index, e.hospital) for e in events if isinstance(e, UpdateRegistered)]
    assert sorted(updates) == sorted((index, hospital) for index in range(2) for hospital in town.addresses)
    assert sum(isinstance(event, TaskPublished) for event in events) == 1
    assert sum(event.amount_wei for event in events if isinstance(event, Claimed)) == REWARD_WEI
    assert audit(town.home, lambda step, **facts: None).models_rederived == 2


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("part", "method"), SERVER_STEPS)
def test_a_server_that_dies_goes_on(three: Consortium, part: str, method: str, after: bool) -> None:
    die_at(getattr(three.server, part), method, after)
    thread = three.start_server(rounds=2)
    while thread.running:
        three.step()
    with pytest.raises(Killed):
        thread.result()
    three.server = three.new_server()
    three.start_server(rounds=2)
    three.finish()
    in_order(three)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("part", "method"), HOSPITAL_STEPS)
def test_a_hospital_that_dies_goes_on(three: Consortium, part: str, method: str, after: bool) -> None:
    die_at(getattr(three.hospitals[2], part), method, after)
    three.start_server(rounds=2)
    with pytest.raises(Killed):
        three.finish()
    three.restart_hospital(2)
    three.finish()
    in_order(three)


def test_a_decision_stands_though_another_update_came_after_the_crash(three: Consortium) -> None:
    """Two were counted, the server died, the third came: counting again would register another model."""
    die_at(three.server.ledger, "close_round", after=False)
    thread = three.start_server(grace_seconds=0.2)
    three.enrol()
    while thread.running:
        three.step(0, 1)
    three.step(2)
    three.server = three.new_server()
    three.start_server(grace_seconds=0.2)
    task = three.finish()
    assert task.rounds[0].closed and task.rounds[0].closed.included == (0b11, 0)
    assert set(task.shares_wei) == set(three.addresses[:2])
    assert audit(three.home, lambda step, **facts: None).models_rederived == 1
