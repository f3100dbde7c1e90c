"""The audit of one chain file: attacks that only the server's or a member's own keys make possible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from consilia.crypto.keys import Identity
from consilia.errors import AuditError, InputError
from consilia.federation.aggregate import WeightedUpdate
from consilia.federation.contribution import shares_by_samples
from consilia.federation.rules import AggregationRule, next_global_model
from consilia.ledger.chain import Chain
from consilia.ledger.registry import NOBODY, Application
from consilia.ledger.rpc import Rpc
from consilia.ledger.sender import Call, Sender
from consilia.roles.artifacts import file_digest
from consilia.roles.audit.export import export
from consilia.roles.audit.export_check import check_export
from consilia.roles.audit.home import ExaminerKeys, audit
from consilia.roles.server import Server
from consilia.settings import ServerSettings, load
from consilia.values import Digest, Role
from tests.consortium import Consortium, Steps, make_member, newest


def quiet(step: str, **facts: Any) -> None:
    """Report to nobody."""


def one_byte_better(
    rule: AggregationRule, updates: Sequence[WeightedUpdate], model: Path, out: Path, *, first: bool
) -> Digest:
    """The model that the rule asks for, with one byte of the server's own."""
    next_global_model(rule, updates, model, out, first=first)
    data = bytearray(out.read_bytes())
    data[-1] ^= 1
    out.write_bytes(data)
    return file_digest(out)


def test_a_finished_home_is_in_order(three: Consortium) -> None:
    three.start_server(rounds=2)
    task = three.finish()
    result = audit(three.home, quiet)
    assert (result.models_rederived, result.objects) == (2, 1 + 3 + 6 + 2)
    assert len(result.reports[task.task_id, 1].included) == 3
    # the same home with a deployment file that names a registry of somebody else's
    file = three.home / "deployment.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"registry": three.deployment.exchange}))
    with pytest.raises(AuditError, match="no event of the registry admits it"):
        audit(three.home, quiet)


def publish_garbage(town: Consortium, server: Server) -> None:
    """A task whose spec is none: the contract takes any bytes, and no hospital is needed."""
    terms = {"rounds": 1, "quorum": 2, "max_hospitals": 2, "enrol_seconds": 600, "round_seconds": 600}
    server.ledger.publish_task("garbage", b"\xff garbage", **terms, reward_wei=10**15)


def test_a_task_that_is_none_does_not_end_the_audit(three: Consortium) -> None:
    said = Steps()
    three.start_server()
    three.finish()
    publish_garbage(three, three.server)
    result = audit(three.home, said)
    assert (result.models_rederived, result.tasks_not_derived) == (1, 1)
    (left_out,) = said.named("models not derived")
    assert left_out["task_id"] == three.task().task_id and left_out["server"] == three.server_address


@pytest.mark.slow
def test_another_servers_task_is_not_taken_for_a_broken_one(three: Consortium, tmp_path: Path) -> None:
    """This home's identity opens nothing of it; the audit says so, and goes on with what it opens."""
    said = Steps()
    three.start_server()
    own = three.finish()
    honest, three.server = three.server, second_server(three)
    publish_garbage(three, three.server)
    three.start_server(reward_wei=10**16)
    other = three.finish()
    result = audit(three.home, said)
    assert set(result.reports) == {(own.task_id, 0)} and result.tasks_not_derived == 2
    left_out = {facts["task_id"]: facts["server"] for facts in said.named("models not derived")}
    assert left_out[other.task_id] == three.server.address != honest.address
    assert len(left_out) == 2 and own.task_id not in left_out

    # the same through an export, with the keys of either, and of nobody
    export(three.home, tmp_path / "export.zip")
    for party in (honest, three.server):
        keys = ExaminerKeys(party.identity)
        checked = check_export(tmp_path / "export.zip", quiet, three.home / "store", keys)
        assert (checked.models_rederived, checked.tasks_not_derived) == (1, 2)
    with pytest.raises(InputError, match="opens none of the tasks"):
        nobody = ExaminerKeys(Identity.generate())
        check_export(tmp_path / "export.zip", quiet, three.home / "store", nobody)


def second_server(town: Consortium) -> Server:
    """Another server, admitted by everybody, with a home of its own."""
    home = town.home / "server-2"
    keys = make_member(home, "server-2")
    now = int(town.clock.time())
    application = Application(
        account=keys.account.address,
        recipient_key=keys.identity.recipient,
        role=Role.SERVER,
        certificate_digest=Digest.of(b"server-2"),
        valid_from=now - 3600,
        valid_to=now + 10**7,
        replaces=NOBODY,
        proofs_digest=Digest.of(b""),
    )
    signature = application.sign(keys.account, town.deployment.chain_id, town.deployment.registry)
    town.hospitals[0].ledger.registry.propose_application("server-2", application, signature, b"")
    town.agree()
    town.server.ledger.pay("gift", keys.account.address, 10**18)
    shutil.copy(town.home / "server" / "consilia.toml", home)
    server = Server(home, load(ServerSettings, home), town.steps["server"])
    town._started.append(server)
    return server


@pytest.mark.parametrize("attack", ["register_what_is_not_there", "forge_size", "forge_key_hash", "send_nan"])
def test_one_liar_does_not_make_every_audit_fail(three: Consortium, attack: str) -> None:
    getattr(three, attack)(2)
    three.start_server()
    three.finish()
    assert audit(three.home, quiet).models_rederived == 1


def test_wei_forced_upon_the_escrow_does_not_make_every_audit_fail(three: Consortium) -> None:
    three.start_server()
    three.finish()
    hospital = three.hospitals[0].ledger._sender
    assert hospital
    destroy_into_escrow = (
        b"\x73" + bytes.fromhex(three.deployment.escrow[2:]) + b"\xff"
    )  # PUSH20, SELFDESTRUCT
    sender = Sender(Chain(Rpc(three.url), 1), three.deployment.chain_id, hospital._account, hospital._outbox)
    sender.send("attack", Call(None, destroy_into_escrow, 200_000, value_wei=5))
    assert three.hospitals[0].ledger.balance_wei(three.deployment.escrow) == 5
    audit(three.home, quiet)


def test_a_dead_task_is_audited_too(three: Consortium) -> None:
    three.start_server(rounds=2, quorum=3)
    three.enrol()
    three.train(0)
    three.let_pass(601)
    three.until(lambda tasks: newest(tasks).died)
    three.until(lambda tasks: newest(tasks).settled, 0, 1, 2)
    assert audit(three.home, quiet).models_rederived == 1


def test_a_server_that_publishes_another_average_is_found(
    three: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server trains a little on its own behalf between averaging and sealing: nobody but an audit sees it."""

    monkeypatch.setattr("consilia.roles.server.next_global_model", one_byte_better)
    three.start_server()
    three.finish()
    with pytest.raises(AuditError, match=r"task \d+, round 0: the model derived from the updates has digest"):
        audit(three.home, quiet)


def test_a_forged_share_is_found(three: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contract lets a server divide as it likes; one wei taken from a hospital and given to another is seen."""

    def cheat(samples: dict[str, int], pool_wei: int) -> dict[str, int]:
        honest = shares_by_samples(samples, pool_wei)
        return honest | {
            three.addresses[0]: honest[three.addresses[0]] + 1,
            three.addresses[1]: honest[three.addresses[1]] - 1,
        }

    monkeypatch.setattr("consilia.roles.server.shares_by_samples", cheat)
    three.start_server()
    three.finish()
    with pytest.raises(
        AuditError, match=r"task \d+, block \d+: the share of 0x.* its registered examples give"
    ):
        audit(three.home, quiet)


def test_shares_that_hospitals_drew_after_the_servers_time_are_right(three: Consortium) -> None:
    """Nobody judged the updates: everybody gets a part by updates, also who would have got less by examples."""
    said = Steps()
    three.server._reward = lambda task_id: None
    three.start_server()
    three.until(lambda tasks: newest(tasks).finished, 0, 1, 2)
    audit(three.home, said)
    assert len(said.named("share not yet set")) == 3
    three.let_pass(8 * 86_400)
    task = three.until(lambda tasks: newest(tasks).settled or len(newest(tasks).shares_wei) == 3, 0, 1, 2)
    assert len(set(task.shares_wei.values())) <= 2, "equal parts, but for the rounding"
    assert audit(three.home, quiet).shares == 3


def test_a_share_by_updates_before_the_servers_time_is_over_is_a_forgery(
    three: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal parts are right only where the server fell silent."""
    monkeypatch.setattr(
        "consilia.roles.server.shares_by_samples",
        lambda samples, wei: {h: wei // len(samples) for h in samples},
    )
    three.start_server()
    three.finish()
    with pytest.raises(AuditError, match="the share of 0x"):
        audit(three.home, quiet)


def test_two_tasks_from_one_initial_model_are_not_each_others_copies(three: Consortium) -> None:
    three.start_server()
    three.finish()
    three.trainers[0].number += 1
    three.start_server(reward_wei=10**16)
    three.until(lambda tasks: len(tasks) == 2)
    three.finish()
    assert audit(three.home, quiet).models_rederived == 2
    for copy in (three.home / "server" / "models").glob("*/round-000.safetensors"):
        copy.unlink()  # as on a new disk, where a server that only serves has its last model alone
    assert audit(three.home, quiet).models_rederived == 2


def test_the_servers_copy_is_compared(three: Consortium, tmp_path: Path) -> None:
    three.start_server()
    three.finish()
    for name in ("round-000", "round-001"):
        copy = tmp_path.parent / f"{tmp_path.name}-{name}"
        shutil.copytree(three.home, copy)
        path = next((copy / "server" / "models").glob(f"*/{name}.safetensors"))
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)
        with pytest.raises(AuditError, match=rf"the server's copy .*/{name}\.safetensors is not the model"):
            audit(copy, quiet)
