"""One hospital's node: chain, pool, miner, gossip and JSON-RPC in one process."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading

from consilia.errors import HomeError
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.gossip import Gossip
from consilia.ledger.embedded.miner import Miner
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.rpc import ChainMethods, Method
from consilia.ledger.embedded.server import RpcServer
from consilia.ledger.embedded.views import data, quantity
from consilia.values import Json

SWITCH_SECONDS = 0.001  # executing a block must not make the other threads wait for Python's 5 ms
_LOG = logging.getLogger(__name__)


class Node:
    """The parts wired together. Start it, and close it."""

    def __init__(self, settings: NodeSettings) -> None:
        """Open the chain and bind the port.

        Raises:
            SettingsError: the genesis file is missing or wrong.
            HomeError: the chain file belongs to another genesis, or the port is taken.
        """
        genesis = Genesis.load(settings.genesis)
        settings.home.mkdir(parents=True, exist_ok=True)
        self.chain = Chain(settings.chain_file, genesis)
        self.pool = Pool(self.chain)
        self._counting = threading.Lock()
        self._methods: dict[str, Method] = {}
        try:
            self.server = RpcServer(self._methods, settings.host, settings.port)
        except OSError as error:
            self.chain.close()
            raise HomeError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
        self.gossip = Gossip(self.chain, self.pool, self.take_block, self.server.url, settings.peers)
        coinbase = bytes.fromhex(settings.coinbase[2:])
        self.miner = Miner(self.chain, self.pool, coinbase, self.gossip.tell_block)
        self.pool.on_new = self.miner.poke
        if not self.miner.admitted:
            _LOG.warning(
                "%s may not mine yet: this node follows until the registry admits it", settings.coinbase
            )
        self._imported = 0
        self._reorgs = 0
        methods = ChainMethods(self.chain, self.pool).table()
        self._methods |= methods | self.gossip.table()
        self._methods |= {
            "eth_sendRawTransaction": self._send_raw_transaction(methods["eth_sendRawTransaction"]),
            "consilia_status": self.status,
        }

    def start(self) -> None:
        """Answer, catch up and mine from now on."""
        self.server.start()
        self.gossip.start()
        self.miner.start()

    def close(self) -> None:
        """Stop everything; the chain file is left whole."""
        self.server.close()
        self.miner.close()
        self.gossip.close()
        self.chain.close()

    def take_block(self, block: Block) -> bool:
        """Check and keep a block from a peer; whether it was new.

        Raises:
            ChainError: it breaks a rule, or its parent is not known here.
        """
        progress = self.chain.import_block(block)
        if progress is None:
            return False
        with self._counting:
            self._imported += 1
            self._reorgs += bool(progress.abandoned)
        if progress.adopted:
            self.miner.poke()
        return True

    def status(self) -> Json:
        """The node in numbers, for people and tests."""
        head = self.chain.head
        return {
            "head": data(head.header.hash),
            "height": head.header.number,
            "score": quantity(head.score),
            "pending": len(self.pool),
            "mined": self.miner.mined,
            "imported": self._imported,
            "reorgs": self._reorgs,
            "stale": self.miner.stale,
            "peers": dict(self.gossip.peers()),
            "searchPid": self.miner.search_pid,
        }

    def _send_raw_transaction(self, send: Method) -> Method:
        def send_and_tell(raw: Json) -> Json:
            transaction_hash = send(raw)
            self.gossip.tell_transaction(bytes.fromhex(str(raw)[2:]))
            return transaction_hash

        return send_and_tell


def run_node(settings: NodeSettings, stop: threading.Event | None = None) -> None:
    """Run a node until SIGTERM, SIGINT or `stop`; prints "ready <url>" once it answers.

    Raises:
        SettingsError: the genesis file is missing or wrong.
        HomeError: the chain file belongs to another genesis, or the port is taken.
    """
    stop = stop or threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sys.setswitchinterval(SWITCH_SECONDS)
    node = Node(settings)
    gc.collect()
    gc.freeze()  # what is imported stays: no need to walk over it again and again
    try:
        node.start()
        sys.stdout.write(f"ready {node.server.url}\n")
        sys.stdout.flush()
        stop.wait()
    finally:
        node.close()
