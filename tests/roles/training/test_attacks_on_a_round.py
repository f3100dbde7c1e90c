"""Late, missing, lying and silent parties: each costs the round its own update and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from consilia.artifact import artifact_root
from consilia.crypto.key_string import open_key_string
from consilia.errors import EnvelopeError, TaskFailedError
from consilia.ledger.events import Refunded
from consilia.protocols.training import Outcome, RoundReport
from consilia.roles.artifacts import fetch_artifact
from consilia.roles.training.task_log import TaskLog
from tests.consortium import REWARD_WEI, Consortium, newest, read_weights


def round_report(town: Consortium, task: TaskLog, round_index: int = 0) -> dict[str, tuple[Outcome, str]]:
    """The server's account of a round, opened by the first hospital with its task key: name, outcome, reason."""
    hospital = town.hospitals[0]
    closed = task.rounds[round_index].closed
    assert closed is not None
    path = town.home / "report"
    context = hospital.contexts(task).round_report(round_index)
    key = hospital._task_key(task)
    fetch_artifact(hospital.store, closed.report_root, key, hospital.model_recipients(task), context, path)
    report = RoundReport.from_bytes(path.read_bytes())
    assert report.digest == closed.report_digest
    names = dict(zip(town.addresses, town.names, strict=True))
    return {names[line.hospital]: (line.outcome, line.reason) for line in report.updates}


def final_scale(town: Consortium) -> float:
    """One weight of the newest global model."""
    return float(read_weights(max((town.home / "server" / "models").glob("*/round-*.safetensors")))["scale"])


ATTACKS = {
    "send_nan": "head.bias holds a number that is not finite",
    "send_wrong_shapes": "head.bias: expected shape (3,), got (4,)",
    "send_far_away": "beyond the task's bound of 1000",
    "forge_metrics": "not those whose digest was registered",
    "forge_size": "size",
    "forge_key_hash": "secret",
    "register_what_is_not_there": "no object",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_bad_update_is_rejected_with_its_reason(three: Consortium, attack: str) -> None:
    getattr(three, attack)(2)
    three.start_server()
    task = three.finish()
    lines = round_report(three, task)
    assert [lines[name][0] for name in three.names] == [Outcome.INCLUDED, Outcome.INCLUDED, Outcome.REJECTED]
    assert ATTACKS[attack] in lines["hospital-3"][1]
    assert final_scale(three) == pytest.approx(0.5 + 50 / 30)
    assert set(task.shares_wei) == set(three.addresses[:2]) and sum(task.shares_wei.values()) == REWARD_WEI


def test_swapped_updates_are_both_rejected(four: Consortium) -> None:
    four.swap_updates(2, 3)
    four.start_server()
    task = four.finish()
    lines = round_report(four, task)
    assert [lines[name][0].value for name in four.names] == ["included", "included", "rejected", "rejected"]
    assert final_scale(four) == pytest.approx(0.5 + 50 / 30)


def test_last_rounds_update_again_is_rejected(three: Consortium) -> None:
    three.replay_update_of_last_round(2)
    three.start_server(rounds=2)
    task = three.finish()
    assert round_report(three, task, 0)["hospital-3"] == (Outcome.INCLUDED, "")
    outcome, reason = round_report(three, task, 1)["hospital-3"]
    assert outcome is Outcome.REJECTED and "context" in reason
    assert task.shares_wei[three.addresses[2]] == pytest.approx(REWARD_WEI * 30 / 90)


def test_a_lost_and_a_damaged_update_are_rejected(four: Consortium) -> None:
    four.start_server()
    four.enrol()
    four.silence_the_server()  # it has not opened anything yet
    for index in (2, 3):
        four.step(index)
    updates = {update.hospital: update for update in four.task().rounds[0].updates}
    four.lose_object(updates[four.addresses[2]].root)
    four.damage_object(updates[four.addresses[3]].root)
    four.server = four.new_server()
    four.start_server()
    task = four.finish()
    lines = round_report(four, task)
    assert [lines[name][0].value for name in four.names] == ["included", "included", "rejected", "rejected"]
    assert "no object" in lines["hospital-3"][1]


def test_one_who_claims_too_many_examples_gets_what_it_claims(three: Consortium) -> None:
    """FedAvg takes n_k on trust; the ledger only makes the claim public. The bound on the norm still holds."""
    three.claim_examples(2, 970)
    three.start_server()
    task = three.finish()
    assert task.shares_wei[three.addresses[2]] == pytest.approx(REWARD_WEI * 0.97)
    assert final_scale(three) == pytest.approx(0.5 + (10 + 40 + 3 * 970) / 1000)


def test_a_missing_hospital_costs_the_round_the_grace_and_no_more(three: Consortium) -> None:
    three.start_server(grace_seconds=0.2)
    three.enrol()
    task = three.finish(0, 1)
    assert round_report(three, task)["hospital-3"][0] is Outcome.MISSING
    assert three.addresses[2] not in task.shares_wei


def test_a_late_hospital_is_named_late(three: Consortium) -> None:
    three.hand_in_after_the_count(2)
    three.start_server(grace_seconds=0.2)
    three.enrol()
    task = three.finish(0, 1)
    assert round_report(three, task)["hospital-3"][0] is Outcome.LATE
    assert three.addresses[2] not in task.shares_wei


def test_one_who_is_later_still_is_told_and_goes_on(three: Consortium) -> None:
    three.start_server(rounds=2, grace_seconds=5)
    task = three.enrol()
    stale = three.tasks()[task.task_id]
    three.until(lambda tasks: newest(tasks).rounds[0].closed, 0, 1)
    three.hospitals[2].advance(stale)  # it still believes that round 0 is open
    assert three.steps["hospital-3"].named("update late")[0]["reason"] == "training: round closed"
    task = three.finish()
    assert [len(current.updates) for current in task.rounds] == [2, 3]


def test_too_few_hospitals_and_the_reward_comes_back(three: Consortium) -> None:
    thread = three.start_server(quorum=3)
    three.until(lambda tasks: len(newest(tasks).enrolled) == 2, 0, 1)
    three.let_pass(601)
    with pytest.raises(TaskFailedError, match=r"too few hospitals.* after 0 paid rounds"):
        thread.result()
    events = three.hospitals[0].ledger.events()
    assert [event.amount_wei for event in events if isinstance(event, Refunded)] == [REWARD_WEI]
    three.step()
    done = {"task_id": three.task().task_id, "share_wei": "0", "died": True}
    assert three.steps["hospital-1"].named("done")[0] == done


def test_too_few_updates_and_only_closed_rounds_are_paid(three: Consortium) -> None:
    thread = three.start_server(rounds=3, quorum=3)
    three.enrol()
    three.train(0)
    three.step(0)
    three.step(1)
    three.let_pass(601)
    with pytest.raises(TaskFailedError, match=r"too few updates.* after 1 paid rounds"):
        thread.result()
    three.step()
    task = three.task()
    assert task.died and task.died.refund_wei == REWARD_WEI - REWARD_WEI // 3
    assert sum(task.shares_wei.values()) == REWARD_WEI // 3
    assert task.claimed == set(three.addresses)
    assert three.hospitals[0].ledger.open_wei() == 0


def test_a_dead_task_is_dead_for_a_restarted_server_too(three: Consortium) -> None:
    for _ in range(2):
        thread = three.start_server(quorum=3)
        three.until(lambda tasks: tasks)
        three.let_pass(601)
        with pytest.raises(TaskFailedError):
            thread.result()
        three.server = three.new_server()
    assert len(three.tasks()) == 1
    assert three.hospitals[0].ledger.open_wei() == 0


def test_a_round_of_rejected_updates_does_not_kill_the_server_unheard(three: Consortium) -> None:
    """One liar, and the quorum is everybody: the round can never close. The ledger frees the pool days later."""
    three.send_nan(2)
    thread = three.start_server(quorum=3)
    three.enrol()
    three.step()
    three.until(lambda tasks: three.server_said("update rejected"))
    three.let_pass(601)
    with pytest.raises(TaskFailedError, match="rejected"):
        thread.result()
    three.let_pass(3 * 86_400)
    three.server = three.new_server()
    with pytest.raises(TaskFailedError, match="server silent"):
        three.start_server(quorum=3).result()


def test_another_hospitals_secrets_do_not_open(three: Consortium, tmp_path: Path) -> None:
    three.start_server()
    task = three.enrol()
    liar, victim = three.hospitals[0], three.hospitals[1]
    three.step(1)
    update = next(u for u in three.task().rounds[0].updates if u.hospital == victim.address)
    recipients = [task.task_keys[victim.address], three.server.identity.recipient]
    context = victim.contexts(task).update(0, victim.address)
    for key in (liar.identity, liar._task_key(task)):
        with pytest.raises(EnvelopeError):
            fetch_artifact(liar.store, update.root, key, recipients, context, tmp_path / "stolen")
        assert not (tmp_path / "stolen").exists()
    fetch_artifact(victim.store, update.root, victim._task_key(task), recipients, context, tmp_path / "own")
    # the key string: the liar can open the envelope, and in it only its own entry
    assert task.started
    members = [*task.enrolled, task.published.server]
    keys = {member.account: member.recipient_key for member in liar.ledger.members()}
    context = liar.contexts(task).key_string()
    path = tmp_path / "keys"
    fetch_artifact(
        liar.store, task.started.key_string_root, liar.identity, [keys[m] for m in members], context, path
    )
    own = open_key_string(path.read_bytes(), liar.identity, context.encode())
    assert own.recipient == task.task_keys[liar.address]
    assert victim._task_key(task).secret_bytes not in path.read_bytes()


def test_a_model_is_refused_in_another_round(three: Consortium, tmp_path: Path) -> None:
    three.start_server(rounds=2)
    three.enrol()
    task = three.train(0)
    hospital = three.hospitals[0]
    for index, root in enumerate(current.opened.model_root for current in task.rounds):
        for claimed in range(2):
            context = hospital.contexts(task).model(claimed)
            arguments = (hospital.model_recipients(task), context, tmp_path / "model")
            if claimed == index:
                fetch_artifact(hospital.store, root, hospital._task_key(task), *arguments)
            else:
                with pytest.raises(EnvelopeError, match="context"):
                    fetch_artifact(hospital.store, root, hospital._task_key(task), *arguments)


def test_the_store_holds_envelopes_and_nothing_else(three: Consortium) -> None:
    three.start_server()
    three.finish()
    files = [path for path in (three.home / "store").rglob("*") if path.is_file()]
    assert len(files) == 1 + 2 + 3 + 1  # key string, models, updates, report
    for path in files:
        with path.open("rb") as file:
            assert artifact_root(file).hex() == path.name
        data = path.read_bytes()
        assert (
            b"head.weight" not in data
            and b"broken.dcm" not in data
            and np.float32(0.5).tobytes() * 3 not in data
        )


def test_a_hospital_whose_policy_says_no_stays_out(three: Consortium) -> None:
    settings = three.hospitals[2].settings
    refusing = settings.model_copy(
        update={"policy": settings.policy.model_copy(update={"minimum_quorum": 3})}
    )
    three.hospitals[2].settings = refusing
    three.start_server(max_hospitals=2)
    task = three.finish()
    assert set(task.enrolled) == set(three.addresses[:2])
    refused = three.steps["hospital-3"].named("refused")
    assert len(refused) == 1 and "terms.quorum is 2, the policy wants at least 3" in refused[0]["reason"]


def test_a_lost_model_costs_its_round_and_not_the_hospital(three: Consortium) -> None:
    three.start_server()
    task = three.enrol()
    root = task.rounds[0].opened.model_root
    path = three.object_path(root)
    data = path.read_bytes()
    three.lose_object(root)
    three.step(0)
    assert "no object" in three.steps["hospital-1"].named("round failed")[0]["reason"]
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    three.step(0)
    assert len(three.steps["hospital-1"].named("round failed")) == 2
    path.write_bytes(data)  # the store has it again
    assert len(three.finish().rounds[0].updates) == 3


def test_the_server_may_fall_silent_and_the_hospitals_are_paid_for_their_work(three: Consortium) -> None:
    three.start_server(rounds=2)
    three.enrol()
    three.train(0)
    three.silence_the_server()
    three.step()
    three.let_pass(600 + 3 * 86_400)
    three.step()
    assert three.task().died
    three.let_pass(7 * 86_400 + 1)
    three.step()
    three.step()
    task = three.task()
    assert task.died and task.died.reason == "server silent"
    assert task.claimed == set(three.addresses)
