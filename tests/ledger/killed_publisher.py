"""A server that is killed (SIGKILL) after its transaction was kept, before it was sent. Run by test_client_sending."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from eth_account import Account

from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.outbox import Outbox
from consilia.ledger.rpc import HttpProvider

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.ledger.test_client_task import publish


class KillingWire:
    """The way to the node; the process dies when it would send a transaction."""

    def __init__(self, url: str) -> None:
        self._provider = HttpProvider(url)

    def make_request(self, method: Any, params: Any) -> Any:
        if method == "eth_sendRawTransaction":
            os.kill(os.getpid(), signal.SIGKILL)
        return self._provider.make_request(method, params)


if __name__ == "__main__":
    url, home, key = sys.argv[1:]
    account = Account.from_key(key)
    outbox = Outbox(Path(home) / f"{account.address}.sqlite")
    deployment = Deployment.load(Path(home) / "deployment.json")
    publish(Ledger(url, deployment, account=account, outbox=outbox, provider=KillingWire(url)))
