"""Members that attack with what they are allowed to write: specs, keys, and their own silence."""

from __future__ import annotations

import json
from typing import Any

import pytest

from consilia.errors import DatasetError, SpecError, TransactionRevertedError
from consilia.ledger.registry import Kind
from consilia.protocols.task_spec import parse_toml
from consilia.values import Digest
from tests.consortium import REWARD_WEI, Consortium, newest, spec_toml

DIGEST = Digest.of(b"")


def publish_raw(town: Consortium, spec: bytes, **terms: int) -> int:
    """Publish through the contract alone, as a hostile server would."""
    kept = {"rounds": 1, "quorum": 2, "max_hospitals": 3, "enrol_seconds": 600, "round_seconds": 600} | terms
    return town.server.ledger.publish_task("raw", spec, **{"reward_wei": 0} | kept)


def honest_spec(**changes: Any) -> bytes:
    spec = parse_toml(spec_toml(3))
    model = spec.model.model_copy(update={"initial_digest": "0" * 64})
    return spec.model_copy(update={"model": model}).to_bytes()


HOSTILE = {
    "not JSON": b"\xff\xfe",
    "nested deep": b"[" * 8000,
    "a long number": b'{"title":' + b"9" * 5000 + b"}",
    "not a number": honest_spec().replace(b'"learning_rate":0.001', b'"learning_rate":NaN'),
    "beyond all bounds": honest_spec().replace(b'"max_update_norm":1000.0', b'"max_update_norm":Infinity'),
    "half a character": honest_spec().replace(b'"three tensors"', b'"\\ud800"'),
    "half a character in a key": honest_spec().replace(b'"title"', b'"\\ud800"'),
    "a key twice": honest_spec().replace(b'"title"', b'"title":"x","title"'),
    "another spelling": honest_spec().replace(b",", b", ", 1),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_spec_is_refused_and_ends_nobody(three: Consortium, name: str) -> None:
    publish_raw(three, HOSTILE[name])
    three.step(0)
    refused = three.steps["hospital-1"].named("refused")
    assert len(refused) == 1
    json.dumps(refused, ensure_ascii=False).encode()  # what it says can be printed
    with pytest.raises(SpecError):
        _ = three.task().spec


@pytest.mark.parametrize(
    ("terms", "named"),
    [
        ({}, "terms.reward_wei"),
        ({"reward_wei": REWARD_WEI, "quorum": 1}, "terms.quorum"),
        ({"reward_wei": REWARD_WEI, "rounds": 2}, "training.rounds"),
        ({"reward_wei": REWARD_WEI, "round_seconds": 5}, "terms.round_seconds"),
        ({"reward_wei": REWARD_WEI, "max_hospitals": 2}, "terms.max_hospitals"),
    ],
)
def test_a_spec_that_promises_more_than_the_contract_is_refused(
    three: Consortium, terms: dict[str, int], named: str
) -> None:
    """The policy is asked about the spec, but the money and the quorum are the contract's."""
    publish_raw(three, honest_spec(), **terms)
    three.step(0)
    assert named in three.steps["hospital-1"].named("refused")[0]["reason"]
    assert not three.task().enrolled


def test_a_change_of_key_in_the_middle_locks_nobody_out(three: Consortium) -> None:
    three.start_server(rounds=2)
    three.enrol()
    three.change_recipient_key(2, b"\x07" + bytes(31))
    three.step(0)
    three.restart_hospital(1)  # it must open the key string once more
    task = three.finish()
    assert [len(current.updates) for current in task.rounds] == [3, 3]


@pytest.mark.parametrize("key", [b"\x01" + bytes(31), b"\xff" * 32], ids=["of low order", "not canonical"])
def test_a_useless_key_costs_its_owner_alone(three: Consortium, key: bytes) -> None:
    three.change_recipient_key(2, key)  # members who vote without looking
    three.start_server(grace_seconds=0.2)
    task = three.finish()
    assert {update.hospital for update in task.rounds[0].updates} == set(three.addresses[:2])
    assert three.steps["hospital-3"].named("round failed")


def test_another_members_key_is_listed_by_nobody(three: Consortium) -> None:
    for other in (three.hospitals[0].identity.recipient, three.server.identity.recipient):
        with pytest.raises(TransactionRevertedError, match="recipient key already listed"):
            three.change_recipient_key(2, other)


def test_a_suspended_hospital_is_refused_from_the_next_block_on(three: Consortium) -> None:
    three.start_server(grace_seconds=0.2)
    three.enrol()
    three.decide(Kind.SUSPENSION, 2)
    with pytest.raises(TransactionRevertedError, match="training: not an active hospital"):
        three.hospitals[2].ledger.register_update(
            "late",
            three.task().task_id,
            0,
            root=DIGEST,
            key_hash=DIGEST,
            size=1,
            num_examples=1,
            metrics_digest=DIGEST,
        )
    assert not three.trainers[2].weights
    three.step(2)  # nor does it train in vain
    assert three.steps["hospital-3"].named("not in good standing") and not three.trainers[2].weights
    task = three.finish(0, 1)
    assert [update.hospital for update in task.rounds[0].updates] == three.addresses[:2]


def test_the_money_of_a_suspended_hospital_waits(three: Consortium) -> None:
    thread = three.start_server()
    three.enrol()
    three.step()
    task = three.until(lambda tasks: newest(tasks).shares_wei)
    thread.result()
    three.decide(Kind.SUSPENSION, 2)
    hospital = three.hospitals[2]
    with pytest.raises(TransactionRevertedError, match="escrow: not an active member"):
        hospital.ledger.claim("stolen", task.task_id)
    three.step(2)
    assert three.addresses[2] not in three.task().claimed and not three.steps["hospital-3"].named("done")
    three.decide(Kind.LIFTING, 2)
    three.step(2)
    assert three.addresses[2] in three.task().claimed


def test_a_task_for_other_data_is_refused_and_ends_nobody(three: Consortium) -> None:
    def other_classes(spec: Any, seed: int) -> Any:
        raise DatasetError("the task's classes are lesion, the data has nodule")

    three.hospitals[0]._new_trainer = other_classes
    publish_raw(three, honest_spec(), reward_wei=REWARD_WEI)
    three.step(0)
    assert "nodule" in three.steps["hospital-1"].named("refused")[0]["reason"]


def test_somebody_enrols_while_the_server_starts(three: Consortium) -> None:
    """The server's view of the ledger may be a block old: then the contract refuses to start, and it goes again."""
    issue = three.server.ledger.issue_keys
    seen: list[int] = []

    def issue_late(key: str, task_id: int, keys: Any) -> Any:
        if not seen:
            three.step(2)
        seen.append(len(keys))
        return issue(key, task_id, keys)

    three.server.ledger.issue_keys = issue_late
    max_hospitals, three.server._enrol = 3, lambda task_id: None
    enrolled = three.server._publish

    def publish_and_wait(*arguments: Any) -> int:
        task_id = enrolled(*arguments)
        three.step(0)
        three.step(1)
        return task_id

    three.server._publish = publish_and_wait
    three.start_server(max_hospitals=max_hospitals)
    three.until(lambda tasks: tasks and newest(tasks).rounds)
    task = three.finish()
    assert seen == [2, 1] and len(task.rounds[0].updates) == 3


def test_a_pinned_initial_model_must_be_the_one(three: Consortium) -> None:
    pinned = spec_toml(3).replace("image_size = 64", f'image_size = 64\ninitial_digest = "{"ab" * 32}"')
    from tests.consortium import write_first_model

    with pytest.raises(SpecError, match="initial_digest"):
        three.server.run_task(parse_toml(pinned), write_first_model)
    assert not three.tasks()
