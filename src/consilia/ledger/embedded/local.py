"""A chain with one miner inside this process: for tests of what runs on the chain."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from consilia.ledger.embedded.chain import Chain, now_ms
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.node_key import Credentials, NodeKey
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.rpc import ChainMethods, Method
from consilia.ledger.embedded.seal import seal_ceiling, search
from consilia.ledger.embedded.server import RpcServer
from consilia.values import Json

if TYPE_CHECKING:
    from consilia.ledger.embedded.provider import MethodsProvider


class LocalNode:
    """The real chain, rules and pool, with every transaction mined at once into a block of its own.

    Use a genesis with `min_difficulty=1` where the work does not matter. A context manager.
    """

    def __init__(self, path: Path, genesis: Genesis, account: NodeKey) -> None:
        """Open or make the chain file at `path`; `account` is the key of one that is admitted to mine."""
        self._skew_ms = 0
        self._mining = threading.Lock()
        self._coinbase = account.address
        self._credentials = Credentials.of_account(account, genesis.digest())
        self.chain = Chain(path, genesis, clock_ms=lambda: now_ms() + self._skew_ms)
        self.pool = Pool(self.chain)
        self._server: RpcServer | None = None

    def __enter__(self) -> LocalNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def methods(self) -> dict[str, Method]:
        """The JSON-RPC methods; eth_sendRawTransaction returns after the block is mined."""
        methods = ChainMethods(self.chain, self.pool).table()
        send = methods["eth_sendRawTransaction"]

        def send_and_mine(raw: Json) -> Json:
            transaction_hash = send(raw)
            if self.pool.executable():
                self.mine()
            return transaction_hash

        return methods | {"eth_sendRawTransaction": send_and_mine}

    def provider(self) -> MethodsProvider:
        """A web3.py provider on this node, in process."""
        from consilia.ledger.embedded.provider import MethodsProvider

        return MethodsProvider(self.methods())

    def serve(self, port: int = 0) -> str:
        """Answer over HTTP as well; the URL."""
        if self._server is None:
            self._server = RpcServer(self.methods(), "127.0.0.1", port)
            self._server.start()
        return self._server.url

    def mine(self, count: int = 1) -> None:
        """Mine blocks, the first with all transactions that wait."""
        for _ in range(count):
            with self._mining:
                draft = self.chain.draft(self.pool.executable(), self._coinbase).signed(self._credentials)
                header = draft.block.header
                nonce = search(header.mining_hash, seal_ceiling(header.difficulty), 0, 1 << 62)
                if nonce is not None:
                    self.chain.append(draft, nonce)
                self.pool.drop(draft.refused)

    def advance(self, seconds: float) -> None:
        """Let the chain's clock jump forward and mine a block there, so that deadlines pass."""
        self._skew_ms += round(seconds * 1000)
        self.mine()

    def close(self) -> None:
        """Close server and chain file."""
        if self._server is not None:
            self._server.close()
        self.chain.close()
