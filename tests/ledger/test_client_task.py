"""The whole life of a task through the client, on each engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from consilia.errors import LedgerError, SettingsError, TransactionRevertedError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.event_log import EventLog
from consilia.ledger.events import (
    Claimed,
    Enrolled,
    Event,
    Funded,
    MemberAdmitted,
    Refunded,
    Released,
    RoundClosed,
    RoundOpened,
    SharesSettled,
    TaskDied,
    TaskFinished,
    TaskKeyIssued,
    TaskPublished,
    TaskStarted,
    UpdateRegistered,
)
from consilia.ledger.registry import Application, Kind
from consilia.ledger.views import Phase
from consilia.values import Digest, Role

if TYPE_CHECKING:
    from tests.ledger.conftest import Consortium

SPEC = b'{"title":"lesions"}'
REWARD_WEI = 10**18
ADDRESS = "0x000000000000000000000000000000000000dEaD"


def digest(text: str) -> Digest:
    return Digest.of(text.encode())


def id_of_task(server: str, earlier: int = 0, spec: bytes = SPEC) -> int:
    """The id that a server's next task will have, as docs/contracts.md tells it."""
    named = encode(["address", "uint256", "bytes32"], [server, earlier, Digest.of(spec)])
    return int.from_bytes(keccak(named)[:7]) >> 4


def publish(server: Ledger, key: str = "publish/1", **changes: int) -> int:
    terms = {"rounds": 2, "quorum": 2, "max_hospitals": 3, "enrol_seconds": 600, "round_seconds": 600}
    return server.publish_task(key, SPEC, reward_wei=REWARD_WEI, **{**terms, **changes})


def start(server: Ledger, task_id: int, hospitals: list[str]) -> None:
    server.issue_keys(f"keys/{task_id}", task_id, {h: digest(h) for h in hospitals})
    server.start_task(
        f"start/{task_id}",
        task_id,
        key_string_root=digest("keys"),
        key_string_size=300,
        model_root=digest("root 0"),
        model_size=1000,
        model_digest=digest("model 0"),
    )


def register(hospital: Ledger, task_id: int, round_index: int, num_examples: int = 10) -> None:
    hospital.register_update(
        f"update/{task_id}/{round_index}",
        task_id,
        round_index,
        root=digest(f"update {round_index}"),
        key_hash=digest("key hash"),
        size=2000,
        num_examples=num_examples,
        metrics_digest=digest("metrics"),
    )


def judged(ledger: Ledger, task_id: int, round_index: int) -> tuple[Digest, int]:
    """The trail of a round's updates, and how many they are."""
    updates = [e for e in ledger.events(task_id=task_id) if isinstance(e, UpdateRegistered)]
    trails = [event.trail for event in updates if event.round_index == round_index]
    return trails[-1], len(trails)


def close(server: Ledger, task_id: int, round_index: int, included: tuple[int, int]) -> None:
    trail, counted = judged(server, task_id, round_index)
    server.close_round(
        f"close/{task_id}/{round_index}",
        task_id,
        round_index,
        trail=trail,
        counted=counted,
        included=included,
        report_root=digest("report root"),
        report_size=500,
        report_digest=digest("report"),
        model_root=digest(f"root {round_index + 1}"),
        model_size=1000,
        model_digest=digest(f"model {round_index + 1}"),
    )


def test_a_task_from_its_publication_to_the_last_claim(consortium: Consortium) -> None:
    server, hospitals = consortium.server, consortium.hospitals
    addresses = [account.address for account in consortium.hospital_accounts]
    task_id = publish(server)
    for hospital in hospitals:
        hospital.enrol("enrol/1", task_id)
    start(server, task_id, addresses)
    for round_index in range(2):
        for hospital in hospitals[:2]:
            register(hospital, task_id, round_index)
        close(server, task_id, round_index, (0b11, 0))
    assert server.task(task_id).phase is Phase.FINISHED
    shares = dict(zip(addresses, (REWARD_WEI // 2, REWARD_WEI // 2, 0), strict=True))
    server.settle("settle/1", task_id, shares)
    before_wei = server.balance_wei(addresses[1])
    receipt = hospitals[1].claim("claim/1", task_id)
    assert server.balance_wei(addresses[1]) > before_wei + REWARD_WEI // 2 - 10**16  # less the gas
    assert receipt.gas_used > 21_000
    assert server.pool(task_id).unclaimed_wei == REWARD_WEI // 2 == server.open_wei()
    assert server.share_wei(task_id, addresses[0]) == REWARD_WEI // 2
    assert server.balance_wei(consortium.deployment.escrow) == server.open_wei()

    told = [event for event in server.events() if not isinstance(event, MemberAdmitted)]
    one_round: list[type[Event]] = [RoundOpened, UpdateRegistered, UpdateRegistered, RoundClosed]
    assert [type(event) for event in told] == [
        *(TaskPublished, Funded, Enrolled, Enrolled, Enrolled),
        *(TaskKeyIssued, TaskKeyIssued, TaskKeyIssued, TaskStarted),
        *one_round,
        *one_round,
        *(TaskFinished, SharesSettled, Claimed),
    ]
    assert told == server.events(task_id=task_id)
    published, closed, settled = told[0], told[-4], told[-2]
    assert isinstance(published, TaskPublished)
    assert (published.spec, published.spec_digest) == (SPEC, Digest.of(SPEC))
    assert published.server == consortium.server_account.address
    assert isinstance(closed, RoundClosed)
    assert (closed.round_index, closed.included, closed.registered) == (1, (3, 0), 2)
    assert closed.model_digest == digest("model 2") and isinstance(closed.model_digest, Digest)
    assert isinstance(settled, SharesSettled)
    assert dict(zip(settled.hospitals, settled.shares_wei, strict=True)) == shares


def test_members_are_those_who_signed(consortium: Consortium) -> None:
    members = consortium.ledger().members()
    assert [m.account for m in members] == [f.account for f in consortium.founders]
    assert [m.role for m in members] == [Role.SERVER, Role.HOSPITAL, Role.HOSPITAL, Role.HOSPITAL]
    assert consortium.ledger().member(members[1].account) == members[1]
    with pytest.raises(LedgerError, match="is none"):
        consortium.ledger().member(consortium.deployment.escrow)


def test_the_members_decide_through_the_client(consortium: Consortium) -> None:
    (first, second, third), server = consortium.hospitals, consortium.server
    own = consortium.founders[1]
    application = Application(
        own.account,
        b"\x77" * 32,
        own.role,
        own.certificate_digest,
        0,
        own.valid_to,
        own.account,
        Digest.of(b""),
    )
    deployment = consortium.deployment
    signature = application.sign(consortium.hospital_accounts[0], deployment.chain_id, deployment.registry)
    first.registry.propose_application("propose/1", application, signature, b"")
    (proposal,) = first.registry.proposals()
    assert (proposal.kind, proposal.subject) == (Kind.CHANGE, own.account)
    assert (proposal.approvals, proposal.needed, proposal.enacted) == (1, 3, False)
    assert first.registry.application(1) == application
    for ledger in (second, server):
        ledger.registry.vote("vote/1", 1)
    assert first.member(own.account).recipient_key == b"\x77" * 32
    third.registry.propose("propose/2", Kind.SUSPENSION, own.account)
    third.registry.propose_quorum("propose/3", 60, 25)
    for ledger in (second, server):
        ledger.registry.vote("vote/2", 2)
    assert not first.registry.is_active(own.account, Role.HOSPITAL)
    with pytest.raises(TransactionRevertedError, match="registry: not a voting member"):
        first.registry.vote("vote/3", 3)
    third.registry.leave("leave")
    told = [type(event).__name__ for event in server.events() if event.block_number > deployment.block + 2]
    assert told == [
        *("Proposed", "ApplicationFiled", "Voted", "Voted", "Voted", "Enacted"),
        *("RecipientKeyChanged", "ValidityChanged", "Proposed", "Voted", "Proposed", "Voted"),
        *("Voted", "Voted", "Enacted", "MemberSuspended", "MemberRemoved"),
    ]
    with pytest.raises(LedgerError, match="expected a proposal with id 4"):
        first.registry.proposal(4)


def test_a_refused_call_says_why_and_may_be_tried_again(consortium: Consortium) -> None:
    server, hospital = consortium.server, consortium.hospitals[0]
    task_id = id_of_task(consortium.server_account.address)
    with pytest.raises(TransactionRevertedError, match="training: enrolment closed") as refused:
        hospital.enrol("enrol/1", task_id)  # there is no task yet
    assert refused.value.reason == "training: enrolment closed"
    assert publish(server) == task_id
    hospital.enrol("enrol/1", task_id)  # the refused one did nothing: its key is free
    assert server.task(task_id).enrolled == 1


def test_a_task_of_another_server_is_refused(consortium: Consortium) -> None:
    task_id = publish(consortium.server)
    with pytest.raises(TransactionRevertedError) as refused:
        start(consortium.hospitals[0], task_id, [consortium.hospital_accounts[0].address])
    assert refused.value.reason == "training: not the task's server"


def test_a_dead_task_gives_the_reward_back(consortium: Consortium) -> None:
    server = consortium.server
    lively = publish(server, "publish/lively")
    with pytest.raises(TransactionRevertedError, match="training: still alive"):
        server.abort("abort/lively", lively)
    task_id = publish(server, "publish/doomed", enrol_seconds=1)
    await_death(server, task_id)
    server.refund("refund/1", task_id)
    assert server.open_wei() == REWARD_WEI  # the lively one's
    kinds = [type(event) for event in server.events(task_id=task_id)]
    assert kinds == [TaskPublished, Funded, TaskDied, Released, Refunded]


def await_death(server: Ledger, task_id: int) -> None:
    while server.task(task_id).phase is not Phase.DEAD:
        server.wait(server.confirmed_block().number, 0.3)
        try:
            server.abort("abort/doomed", task_id)
        except TransactionRevertedError as error:
            assert error.reason == "training: still alive"


def test_the_log_reads_each_event_once(consortium: Consortium) -> None:
    log = EventLog(consortium.ledger())
    assert [type(event) for event in log.refresh()] == [MemberAdmitted] * 4
    publish(consortium.server)
    once = log.refresh()
    assert [type(event) for event in once[4:]] == [TaskPublished, Funded]
    assert log.refresh() == once == consortium.ledger().events()
    assert log.reorganisations == 0


def test_waiting_returns_with_the_block(consortium: Consortium) -> None:
    reader = consortium.ledger()
    before = reader.confirmed_block().number
    assert reader.wait(before, 0.01) == before
    publish(consortium.server)
    assert reader.wait(before, 60.0) > before


def test_a_deployment_file_comes_back_as_it_was(tmp_path: Path) -> None:
    Deployment(5, ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS, 9).save(tmp_path / "deployment.json")
    assert Deployment.load(tmp_path / "deployment.json") == Deployment(
        5, ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS, 9
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"registry": ADDRESS.lower()},
        {"escrow": 5},
        {"chain_id": "5"},
        {"block": -1},
        {"block": True},
        {"surplus": 1},
    ],
)
def test_a_deployment_file_is_read_strictly(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "deployment.json"
    fields = {"chain_id": 5, "registry": ADDRESS, "escrow": ADDRESS, "training": ADDRESS, "block": 9}
    path.write_text(json.dumps({**fields, **changes}))
    with pytest.raises(SettingsError, match=r"deployment\.json"):
        Deployment.load(path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}"])
def test_what_is_no_deployment_file_is_refused(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "deployment.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match="expected a deployment file at"):
        Deployment.load(path)
