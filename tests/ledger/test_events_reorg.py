"""The event log follows the chain: whatever is re-organised, it tells what the chain tells now."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING

import pytest

from consilia.errors import LedgerError
from consilia.ledger import event_log
from consilia.ledger.contracts import contract_abi
from consilia.ledger.event import Event
from consilia.ledger.event_log import EventLog
from consilia.ledger.events import ESCROW_WORDS, EVENT_TYPES, TaskPublished, decode_event
from consilia.ledger.rpc import Rpc
from tests.ledger.test_client_task import id_of_task, publish

if TYPE_CHECKING:
    from tests.ledger.conftest import Consortium

CONTRACTS = ("registry", "training", "escrow", "exchange", "diagnosis")


def rounds_told(log: EventLog) -> list[int]:
    """The tasks in a log, by their number of rounds."""
    return [event.rounds for event in log.refresh() if isinstance(event, TaskPublished)]


def test_every_event_of_every_contract_has_its_type() -> None:
    for contract in CONTRACTS:
        for event in contract_abi(contract).events:
            kind = EVENT_TYPES[contract, event.name]
            words = ESCROW_WORDS if contract == "escrow" else {}
            told = {words.get(parameter.name, parameter.name) for parameter in event.inputs}
            assert told == {field.name for field in fields(kind)} - {field.name for field in fields(Event)}
    assert len(EVENT_TYPES) == sum(len(contract_abi(contract).events) for contract in CONTRACTS)


def test_a_log_of_no_known_event_is_refused() -> None:
    for topics in ([], ["0x" + "11" * 32]):
        with pytest.raises(LedgerError, match="expected an event of training"):
            decode_event("training", {"topics": topics, "data": "0x"})


def test_events_of_a_lost_block_are_taken_back(on_anvil: Consortium) -> None:
    rpc = Rpc(on_anvil.url)
    log = EventLog(on_anvil.ledger())
    publish(on_anvil.server, "publish/kept", rounds=3)
    assert rounds_told(log) == [3]
    before = rpc.call("evm_snapshot")
    publish(on_anvil.server, "publish/lost", rounds=4)
    assert rounds_told(log) == [3, 4]
    rpc.call("evm_revert", before)
    assert rounds_told(log) == [3]  # the chain is shorter now
    assert log.reorganisations == 1
    rpc.call("evm_mine")
    publish(on_anvil.server, "publish/other", rounds=5)  # the lost one is sent again, before it
    assert rounds_told(log) == [3, 4, 5]
    assert log.refresh() == EventLog(on_anvil.ledger()).refresh() == on_anvil.ledger().events()
    assert log.reorganisations == 1


def test_a_block_replaced_at_the_same_height_is_noticed(on_anvil: Consortium) -> None:
    rpc = Rpc(on_anvil.url)
    log = EventLog(on_anvil.ledger())
    before = rpc.call("evm_snapshot")
    publish(on_anvil.server, "publish/lost", rounds=4)
    assert rounds_told(log) == [4]
    height = log.block
    rpc.call("evm_revert", before)
    rpc.call("evm_mine")
    assert rounds_told(log) == []
    assert (log.block, log.reorganisations) == (height, 1)


def test_a_deep_reorganisation_is_read_afresh(on_anvil: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "KEPT_BLOCKS", 3)
    rpc = Rpc(on_anvil.url)
    log = EventLog(on_anvil.ledger())
    publish(on_anvil.server, "publish/kept", rounds=3)
    log.refresh()
    before = rpc.call("evm_snapshot")
    for number in range(5):  # more heads than the log remembers
        publish(on_anvil.server, f"publish/{number}", rounds=4 + number)
        log.refresh()
    assert rounds_told(log) == [3, 4, 5, 6, 7, 8]
    rpc.call("evm_revert", before)
    assert rounds_told(log) == [3]
    assert log.refresh() == on_anvil.ledger().events()


def test_a_reorganisation_of_anvils_own_making(on_anvil: Consortium) -> None:
    log = EventLog(on_anvil.ledger())
    publish(on_anvil.server, "publish/1", rounds=3)
    publish(on_anvil.server, "publish/2", rounds=4)
    assert rounds_told(log) == [3, 4]
    Rpc(on_anvil.url).call("anvil_reorg", 1, [])
    assert rounds_told(log) == [3]


def test_one_tasks_events_alone(on_anvil: Consortium) -> None:
    log = EventLog(on_anvil.ledger(), task_id=id_of_task(on_anvil.server_account.address, earlier=1))
    publish(on_anvil.server, "publish/1", rounds=3)
    publish(on_anvil.server, "publish/2", rounds=4)
    assert rounds_told(log) == [4]
    assert {event.task_id for event in log.refresh() if hasattr(event, "task_id")} == {log._task_id}


def test_a_range_of_blocks(consortium: Consortium) -> None:
    ledger = consortium.server
    for number in range(3):
        publish(ledger, f"publish/{number}", rounds=number + 1)
    first, second, third = (e for e in ledger.events() if isinstance(e, TaskPublished))
    assert first.block_number < second.block_number < third.block_number
    told = ledger.events(second.block_number, second.block_number)
    assert [type(event).__name__ for event in told] == ["TaskPublished", "Funded"] and told[0] == second
    assert ledger.events(third.block_number + 1) == []
    assert ledger.block(second.block_number).hash == second.block_hash
    assert second.transaction_hash in ledger.block(second.block_number).transactions
