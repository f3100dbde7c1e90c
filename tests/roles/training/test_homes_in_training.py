"""The homes behind a task: a node that takes no transaction, a full disk, two processes at one task."""

from __future__ import annotations

import errno

import pytest

from consilia.errors import HomeError, TransactionRefusedError
from consilia.protocols.task_spec import parse_toml
from consilia.roles import hospital as hospitals
from consilia.roles import server as servers
from tests.consortium import Consortium, spec_toml, write_first_model


def test_a_hospital_without_money_for_gas_waits_for_it(
    three: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer meets a task between the vote that admits it and the gift of the first gas."""

    def refuse(*_: object) -> None:
        raise TransactionRefusedError("insufficient funds for gas")

    three.start_server()
    three.until(lambda tasks: tasks)
    with monkeypatch.context() as patch:
        patch.setattr(three.hospitals[0].ledger, "enrol", refuse)
        three.step(0)
        three.step(0)
    said = three.steps["hospital-1"].named("the ledger's node refused a step")
    assert [facts["reason"] for facts in said] == ["insufficient funds for gas"]  # once, not with every block
    three.enrol(0, 1, 2)
    assert len(three.task().enrolled) == 3


def test_a_full_disk_costs_a_round_and_not_the_process(
    three: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/a/path/of/this/host")

    three.start_server()
    three.enrol(0, 1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(hospitals, "publish_artifact", full)
        three.step(0)
    (failed,) = three.steps["hospital-1"].named("round failed")
    assert failed["reason"] == "No space left on device"
    assert three.train(0).rounds[0].update_of(three.addresses[0])


def test_a_second_process_leaves_a_task_to_the_first(
    three: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both would write the same work files; once the first has ended, another may go on."""
    monkeypatch.setattr(servers, "HANDOVER_SECONDS", 0.2)
    three.start_server()
    three.enrol(0, 1, 2)
    spec = parse_toml(spec_toml(3))
    with pytest.raises(HomeError, match="another process"):
        three.new_server().run_task(spec, write_first_model)
    three.finish()
    assert three.new_server().run_task(spec, write_first_model).finished
