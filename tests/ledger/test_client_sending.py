"""One decision is one transaction: crashes, lost answers, forgetful nodes, re-orgs and rivals for the nonce."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from consilia.errors import (
    InputError,
    LedgerError,
    LedgerUnreachableError,
    TransactionRevertedError,
    TransactionTimeoutError,
)
from consilia.ledger import sender
from consilia.ledger.client import Ledger, deploy
from consilia.ledger.contracts import Deployment
from consilia.ledger.outbox import Outbox
from consilia.ledger.rpc import HttpProvider, Provider, Rpc, quantity
from consilia.values import Digest, Role
from tests.ledger.test_client_task import ADDRESS, id_of_task, publish

if TYPE_CHECKING:
    from tests.ledger.conftest import Consortium

KILLED = -9


class Cut(BaseException):
    """The process dies here: nothing that catches errors may catch it."""


class Wire:
    """The way to a real node, on which a test can cut requests or answers."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self.before: dict[str, Callable[[], None]] = {}
        self.after: dict[str, Callable[[], None]] = {}
        self.sent: list[str] = []

    def make_request(self, method: Any, params: Any) -> Any:
        if method == "eth_sendRawTransaction":
            self.sent.append(params[0])
        self.before.pop(method, lambda: None)()
        reply = self._provider.make_request(method, params)
        self.after.pop(method, lambda: None)()
        return reply


def die() -> None:
    raise Cut


def drop_connection() -> None:
    raise ConnectionResetError("the connection broke")


def wired(consortium: Consortium, **options: Any) -> tuple[Ledger, Wire]:
    """The server's ledger on a wire; its outbox is the server's own."""
    wire = Wire(consortium.provider or HttpProvider(consortium.url))
    outbox = Outbox(consortium.home / f"{consortium.server_account.address}.sqlite")
    account = consortium.server_account
    ledger = Ledger(
        consortium.url, consortium.deployment, account=account, outbox=outbox, provider=wire, **options
    )
    return ledger, wire


def first_task(consortium: Consortium) -> int:
    """The id of the server's first task."""
    return id_of_task(consortium.server_account.address)


def nonce(consortium: Consortium) -> int:
    """How many transactions of the server the chain has."""
    rpc = Rpc(consortium.url, consortium.provider)
    return quantity(rpc.call("eth_getTransactionCount", consortium.server_account.address, "latest"))


def test_a_crash_before_sending_is_made_good(consortium: Consortium) -> None:
    ledger, wire = wired(consortium)
    wire.before["eth_sendRawTransaction"] = die
    with pytest.raises(Cut):
        publish(ledger)
    assert nonce(consortium) == 0
    restarted, new_wire = wired(consortium)
    assert publish(restarted) == first_task(consortium)
    assert new_wire.sent == wire.sent  # the very same bytes
    assert nonce(consortium) == 1


@pytest.mark.parametrize("where", ["eth_sendRawTransaction", "eth_getTransactionReceipt"])
def test_a_crash_after_sending_is_made_good(consortium: Consortium, where: str) -> None:
    ledger, wire = wired(consortium)
    wire.after["eth_sendRawTransaction"] = die if where == "eth_sendRawTransaction" else lambda: None
    if where == "eth_getTransactionReceipt":
        wire.after["eth_sendRawTransaction"] = lambda: wire.before.update({where: die})
    with pytest.raises(Cut):
        publish(ledger)
    restarted, _ = wired(consortium)
    assert publish(restarted) == first_task(consortium) == publish(restarted)
    assert nonce(consortium) == 1


def test_a_lost_answer_is_asked_for_again(consortium: Consortium) -> None:
    ledger, wire = wired(consortium)
    wire.after["eth_sendRawTransaction"] = drop_connection
    assert publish(ledger) == first_task(consortium)
    assert len(wire.sent) == 2 and wire.sent[0] == wire.sent[1]
    assert nonce(consortium) == 1


def test_a_process_killed_between_keeping_and_sending(on_anvil: Consortium) -> None:
    on_anvil.deployment.save(on_anvil.home / "deployment.json")
    program = Path(__file__).with_name("killed_publisher.py")
    arguments = [str(program), on_anvil.url, str(on_anvil.home), on_anvil.server_account.key.hex()]
    done = subprocess.run([sys.executable, *arguments], timeout=120, check=False)
    assert done.returncode == KILLED
    assert nonce(on_anvil) == 0
    kept = Outbox(on_anvil.home / f"{on_anvil.server_account.address}.sqlite").from_nonce(
        on_anvil.deployment.chain_id, on_anvil.server_account.address, 0
    )
    assert [entry.key for entry in kept] == ["publish/1"]
    ledger, wire = wired(on_anvil)
    assert publish(ledger) == first_task(on_anvil)
    assert wire.sent == ["0x" + kept[0].signed.raw.hex()]


def test_an_earlier_transaction_that_was_never_sent_holds_up_nobody(consortium: Consortium) -> None:
    ledger, wire = wired(consortium)
    wire.before["eth_sendRawTransaction"] = die
    with pytest.raises(Cut):
        publish(ledger, "publish/forgotten")
    restarted, _ = wired(consortium)
    # the forgotten one has the nonce before it, and goes first
    assert publish(restarted, "publish/next") == id_of_task(consortium.server_account.address, earlier=1)
    assert nonce(consortium) == 2


def test_a_key_stands_for_one_call(consortium: Consortium) -> None:
    server = consortium.server
    publish(server, "publish/1")
    with pytest.raises(LedgerError, match="already used for another call"):
        publish(server, "publish/1", rounds=3)
    assert nonce(consortium) == 1


def test_threads_share_an_account(consortium: Consortium) -> None:
    server = consortium.server
    tasks: list[int] = []
    threads = [
        threading.Thread(target=lambda key=f"publish/{number}": tasks.append(publish(server, key)))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    address = consortium.server_account.address
    assert sorted(tasks) == sorted(id_of_task(address, earlier) for earlier in range(4))


def test_a_transaction_that_no_block_takes(on_anvil: Consortium, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "RESEND_SECONDS", 0.2)
    rpc = Rpc(on_anvil.url)
    rpc.call("evm_setAutomine", False)
    ledger, wire = wired(on_anvil, inclusion_timeout_seconds=1.5)
    with pytest.raises(TransactionTimeoutError, match="is in no block after"):
        publish(ledger)
    assert len(wire.sent) > 1 and len(set(wire.sent)) == 1  # sent again, always the same bytes
    rpc.call("evm_mine")
    assert publish(ledger) == first_task(on_anvil)
    assert nonce(on_anvil) == 1


def test_a_node_that_forgot_gets_the_bytes_again(
    on_anvil: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RESEND_SECONDS", 0.2)
    rpc = Rpc(on_anvil.url)
    rpc.call("evm_setAutomine", False)
    ledger, wire = wired(on_anvil)

    def forget_and_mine() -> None:
        rpc.call("anvil_dropAllTransactions")
        rpc.call("evm_setAutomine", True)

    wire.after["eth_sendRawTransaction"] = forget_and_mine
    assert publish(ledger) == first_task(on_anvil)
    assert len(wire.sent) == 2


def test_a_rival_for_the_nonce_is_named(on_anvil: Consortium) -> None:
    rpc = Rpc(on_anvil.url)
    account = on_anvil.server_account
    ledger, wire = wired(on_anvil)
    wire.before["eth_sendRawTransaction"] = die
    with pytest.raises(Cut):
        publish(ledger)
    rival = account.sign_transaction(
        {"to": account.address, "value": 1, "nonce": 0, "gas": 21_000, "gasPrice": 10**10, "chainId": 31337}
    )
    rpc.call("eth_sendRawTransaction", "0x" + rival.raw_transaction.hex())
    restarted, _ = wired(on_anvil)
    with pytest.raises(LedgerError, match="in one program only"):
        publish(restarted)
    assert publish(restarted) == first_task(on_anvil)


def test_a_poor_account_is_told_and_may_try_again(on_anvil: Consortium) -> None:
    rpc = Rpc(on_anvil.url)
    address = on_anvil.server_account.address
    rpc.call("anvil_setBalance", address, hex(10**6))
    with pytest.raises(LedgerError, match=r"refused 'publish/1'.*[Ff]unds"):
        publish(on_anvil.server)
    rpc.call("anvil_setBalance", address, hex(10**20))
    assert publish(on_anvil.server) == first_task(on_anvil)
    assert nonce(on_anvil) == 1


def test_a_vanished_receipt_is_waited_for_again(
    on_anvil: Consortium, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "RESEND_SECONDS", 0.2)
    rpc = Rpc(on_anvil.url)
    before = rpc.call("evm_snapshot")
    ledger, wire = wired(on_anvil, confirmations=3)
    result: list[int] = []
    waiting = threading.Thread(target=lambda: result.append(publish(ledger)))
    waiting.start()
    while nonce(on_anvil) == 0:
        pass
    rpc.call("evm_revert", before)  # the block with the transaction loses
    rpc.call("evm_mine")
    while nonce(on_anvil) == 0:  # it is sent again, and mined again
        assert waiting.is_alive()
    assert result == []
    rpc.call("anvil_mine", hex(2))
    waiting.join()
    assert result == [first_task(on_anvil)]
    assert len(set(wire.sent)) == 1


def test_confirmations_are_waited_for(on_anvil: Consortium) -> None:
    ledger, _ = wired(on_anvil, confirmations=3, inclusion_timeout_seconds=1.0)
    with pytest.raises(TransactionTimeoutError, match="not yet 3 blocks deep"):
        publish(ledger)
    assert ledger.events(task_id=first_task(on_anvil)) == []  # unconfirmed: nobody acts on it
    Rpc(on_anvil.url).call("anvil_mine", hex(2))
    assert publish(ledger) == first_task(on_anvil)
    assert len(ledger.events(task_id=first_task(on_anvil))) == 2


def test_nobody_answers(on_anvil: Consortium) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(LedgerUnreachableError, match=f"no ledger node answers at {url}.*start it"):
        Ledger(url, on_anvil.deployment).members()


class WebPage(BaseHTTPRequestHandler):
    """Something that answers, but not in JSON-RPC."""

    body = b"<html>it works</html>"

    def do_POST(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("body", [b"<html>it works</html>", b"", b"[]", b'"pong"', b"{}"])
def test_something_else_answers(body: bytes) -> None:
    page = HTTPServer(("127.0.0.1", 0), type("Page", (WebPage,), {"body": body}))
    threading.Thread(target=page.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{page.server_port}"
    deployment = Deployment(1, ADDRESS, ADDRESS, ADDRESS, ADDRESS, ADDRESS, 0)
    with pytest.raises(LedgerUnreachableError, match=url):
        Ledger(url, deployment).members()
    page.shutdown()
    page.server_close()


def test_a_deployment_of_another_chain_is_refused(consortium: Consortium) -> None:
    consortium.deployment = replace(consortium.deployment, chain_id=5)
    with pytest.raises(LedgerError, match="expected chain 5"):
        publish(consortium.server)
    consortium.deployment = replace(consortium.deployment, registry=ADDRESS)
    with pytest.raises(LedgerError, match="does not fit this chain"):
        consortium.ledger().members()


def test_a_reader_cannot_write(consortium: Consortium) -> None:
    with pytest.raises(LedgerError, match="only reads"):
        publish(consortium.ledger())


def test_deploying_again_finds_the_same_contracts(consortium: Consortium, accounts: list[Any]) -> None:
    outbox = Outbox(consortium.home / "deployer.sqlite")
    again = deploy(consortium.url, accounts[0], consortium.founders, outbox, provider=consortium.provider)
    assert again == consortium.deployment


def test_a_founder_who_signed_for_another_place_is_named(consortium: Consortium, accounts: list[Any]) -> None:
    outbox = Outbox(consortium.home / "second.sqlite")
    with pytest.raises(InputError, match=f"founder {consortium.founders[0].account}: expected its signature"):
        deploy(consortium.url, accounts[0], consortium.founders, outbox, provider=consortium.provider)


def test_an_altered_founder_is_refused_by_the_contract_too(
    consortium: Consortium, accounts: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consilia.ledger.deployment._check_signatures", lambda *_: None)
    altered = [replace(founder, role=Role.SERVER) for founder in consortium.founders]
    outbox = Outbox(consortium.home / "second.sqlite")
    with pytest.raises(TransactionRevertedError, match="registry: not the founder's signature"):
        deploy(consortium.url, accounts[0], altered, outbox, provider=consortium.provider)


def test_the_deed_is_named_by_all_that_it_does() -> None:
    call = sender.Call("0x" + "11" * 20, b"data", 100, 5)
    others = [
        replace(call, to="0x" + "12" * 20),
        replace(call, to=None),
        replace(call, data=b"date"),
        replace(call, value_wei=6),
    ]
    assert len({call.digest, *(other.digest for other in others)}) == 5
    assert replace(call, gas=7).digest == call.digest
    assert isinstance(call.digest, Digest)
