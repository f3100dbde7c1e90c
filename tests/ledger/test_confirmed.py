"""What is true: what is deep enough and what most nodes tell; and what becomes of transactions that a re-org drops."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from consilia.errors import TransactionRevertedError, TransactionTimeoutError
from consilia.ledger.rpc import Rpc, quantity
from tests.ledger.conftest import running_anvil
from tests.ledger.test_client_task import id_of_task, publish

if TYPE_CHECKING:
    from tests.ledger.conftest import Consortium


def silent_url() -> str:
    """An address at which nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def nonce(consortium: Consortium) -> int:
    rpc = Rpc(consortium.url, consortium.provider)
    return quantity(rpc.call("eth_getTransactionCount", consortium.server_account.address, "latest"))


def test_true_is_what_most_nodes_tell(on_anvil: Consortium, anvil_binary: Path) -> None:
    """Of three nodes two must have the block: one that is down, or tells another history, is outvoted, two are not."""
    task_id = publish(on_anvil.server)
    with running_anvil(anvil_binary) as other:
        Rpc(other).call("anvil_mine", hex(50))  # as long a chain, with other blocks
        same = on_anvil.url
        for witnesses in ([same], [same, other], [same, silent_url()], [same, same, other, silent_url()]):
            reader = on_anvil.ledger(witnesses=witnesses)
            assert len(reader.events(task_id=task_id)) == 2, witnesses
            assert reader.confirmed_block().number > 0
        for witnesses in ([other], [other, other], [silent_url()], [same, other, silent_url()]):
            reader = on_anvil.ledger(witnesses=witnesses)
            assert reader.events(task_id=task_id) == []
            assert reader.confirmed_block().number == 0


def test_what_is_not_confirmed_can_be_seen_and_is_not_told(consortium: Consortium) -> None:
    task_id = publish(consortium.server)
    shallow, deep = consortium.ledger(), consortium.ledger(confirmations=1000)
    told = shallow.events(task_id=task_id)
    assert told and deep.events(task_id=task_id) == []
    assert deep.events_ahead(deep.confirmed_block().number, task_id) == told
    assert shallow.events_ahead(shallow.confirmed_block().number, task_id) == []
    head = shallow.confirmed_block().number
    assert deep.wait_for_news(0, 0, 60.0) >= head
    began = time.monotonic()
    assert deep.wait_for_news(head + 1000, 0, 0.3) >= head and time.monotonic() - began >= 0.3


def test_nothing_is_done_on_the_word_of_one_node(on_anvil: Consortium) -> None:
    lonely = on_anvil.ledger(on_anvil.server_account, witnesses=[silent_url()], inclusion_timeout_seconds=1.0)
    with pytest.raises(TransactionTimeoutError, match="most of the other nodes"):
        publish(lonely)
    assert nonce(on_anvil) == 1  # it is in a block, but who knows in whose
    again = on_anvil.ledger(on_anvil.server_account, witnesses=[on_anvil.url])
    assert publish(again) == id_of_task(on_anvil.server_account.address)
    assert nonce(on_anvil) == 1


def test_what_most_nodes_told_holds_until_they_tell_otherwise(
    on_anvil: Consortium, anvil_binary: Path
) -> None:
    rpc = Rpc(on_anvil.url)
    with running_anvil(anvil_binary) as other:
        reader = on_anvil.ledger(witnesses=[on_anvil.url, other])
        agreed = reader.confirmed_block()
        assert agreed.number > 0
        reader._chain._witnesses._silent_until = [1e18, 1e18]
        rpc.call("anvil_mine", hex(3))
        assert reader.confirmed_block() == agreed
        reader._chain._witnesses._silent_until = [0.0, 0.0]
        assert reader.confirmed_block().number == agreed.number + 3


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether something comes true: anvil answers a transaction before it has mined it."""
    until = time.monotonic() + 10
    while not (true := holds()) and time.monotonic() < until:
        time.sleep(0.05)
    return true


def test_what_a_reorg_threw_out_is_sent_again_with_all_nonces(on_anvil: Consortium) -> None:
    """The first was refused, the second did its deed, then their blocks were lost and the node forgot both."""
    rpc, server = Rpc(on_anvil.url), on_anvil.server
    before = rpc.call("evm_snapshot")
    with pytest.raises(TransactionRevertedError):
        server.abort("abort/1", 5)
    task_id = publish(server)
    assert nonce(on_anvil) == 2
    rpc.call("evm_revert", before)
    rpc.call("anvil_dropAllTransactions")
    rpc.call("evm_mine")
    assert (nonce(on_anvil), server.events(task_id=task_id)) == (0, [])
    restarted = on_anvil.server  # also after a restart: the bytes are on disk
    assert restarted.resend() == {}
    assert eventually(lambda: nonce(on_anvil) == 2 and len(restarted.events(task_id=task_id)) == 2)
    assert restarted.resend() == {} and nonce(on_anvil) == 2
    assert publish(restarted) == task_id  # the same decision is the same transaction


def test_what_a_node_will_not_take_is_named_and_kept(on_anvil: Consortium) -> None:
    rpc, server = Rpc(on_anvil.url), on_anvil.server
    before = rpc.call("evm_snapshot")
    task_id = publish(server)
    rpc.call("evm_revert", before)
    rpc.call("anvil_dropAllTransactions")
    rpc.call("anvil_setBalance", on_anvil.server_account.address, hex(5))
    assert list(server.resend()) == ["publish/1"]
    rpc.call("anvil_setBalance", on_anvil.server_account.address, hex(10**20))
    assert server.resend() == {}
    assert eventually(lambda: len(server.events(task_id=task_id)) == 2)


def test_a_decision_that_came_too_early_after_a_reorg_is_taken_again(on_anvil: Consortium) -> None:
    """The enrolment is mined before the task that it is for: refused, and it must not be lost for that."""
    rpc, hospital = Rpc(on_anvil.url), on_anvil.hospitals[0]
    before = rpc.call("evm_snapshot")
    task_id = publish(on_anvil.server)
    hospital.enrol("enrol/1", task_id)
    rpc.call("evm_revert", before)
    rpc.call("anvil_dropAllTransactions")
    assert hospital.resend() == {}
    assert on_anvil.server.resend() == {}
    assert eventually(lambda: len(on_anvil.server.events(task_id=task_id)) == 2)  # mined, in whatever order
    assert hospital.task(task_id).enrolled == 0
    hospital.enrol("enrol/1", task_id)
    assert hospital.task(task_id).enrolled == 1
