"""One hospital's node: chain, pool, miner, gossip and JSON-RPC in one process."""

from __future__ import annotations

import gc
import logging
import signal
import sys
import threading

from consilia.errors import HomeError, SettingsError
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Progress
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.gossip import Gossip
from consilia.ledger.embedded.miner import Miner
from consilia.ledger.embedded.node_key import Credentials, NodeKey
from consilia.ledger.embedded.parameters import read_quantity
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.rpc import ChainMethods, Method
from consilia.ledger.embedded.salvage import open_chain
from consilia.ledger.embedded.server import RpcServer
from consilia.ledger.embedded.views import address, data, quantity
from consilia.values import Json

SWITCH_SECONDS = 0.001  # executing a block must not make the other threads wait for Python's 5 ms
DAMAGE_LOOK_SECONDS = 2.0
_LOG = logging.getLogger(__name__)


class Node:
    """The parts wired together. Start it, and close it."""

    def __init__(self, settings: NodeSettings, credentials: Credentials | None = None) -> None:
        """Open the chain and bind the port.

        `credentials` speak for the coinbase; without them the node is a guest: it follows, and does not mine.

        Raises:
            SettingsError: the genesis file is missing or wrong, or the credentials are another account's.
            HomeError: the chain file belongs to another genesis, or the port is taken.
        """
        genesis = Genesis.load(settings.genesis)
        coinbase = bytes.fromhex(settings.coinbase[2:])
        network = genesis.digest()
        if credentials is not None and (account := credentials.account(network)) != coinbase:
            raise SettingsError(
                f"expected a key that speaks for the coinbase {settings.coinbase}, got one for 0x{account.hex()}"
            )
        speaks_as = credentials or Credentials.of_account(NodeKey.generate(), network)
        settings.home.mkdir(parents=True, exist_ok=True)
        self.chain = open_chain(settings.chain_file, genesis)
        self.pool = Pool(self.chain)
        self._counting = threading.Lock()
        self._methods: dict[str, Method] = {}
        self.server, self._outer_server = self._listen(settings)
        own_url = (self._outer_server or self.server).url
        self.gossip = Gossip(self.chain, self.pool, self.take_block, own_url, settings.peers, speaks_as)
        for server in self._servers():
            server.receive_with(self.gossip.reception.receive)
        self.miner = None if credentials is None else self._make_miner(coinbase, credentials)
        self._imported = 0
        self._reorgs = 0
        methods = ChainMethods(self.chain, self.pool).table()
        self._methods |= methods
        self._methods |= {
            "eth_sendRawTransaction": self._send_raw_transaction(methods["eth_sendRawTransaction"]),
            "consilia_status": self.status,
            "consilia_bury": self.bury,
        }

    def start(self) -> None:
        """Answer, catch up and mine from now on."""
        for server in self._servers():
            server.start()
        self.gossip.start()
        if self.miner is not None:
            self.miner.start()

    def close(self) -> None:
        """Stop everything; the chain file is left whole."""
        for server in self._servers():
            server.close()
        if self.miner is not None:
            self.miner.close()
        self.gossip.close()
        self.chain.close()

    def take_block(self, block: Block, is_proven: bool = False) -> Progress | None:
        """Check and keep a block from a peer; None if it was here.

        Raises:
            ChainError: it breaks a rule, or its parent is not known here.
        """
        progress = self.chain.import_block(block, is_proven)
        if progress is None:
            return None
        with self._counting:
            self._imported += 1
            self._reorgs += bool(progress.abandoned)
        if progress.adopted and self.miner is not None:
            self.miner.poke()
        return progress

    def bury(self, blocks: Json) -> Json:
        """A program waits for so many blocks on top of the newest transaction; whether this node mines."""
        count = blocks if isinstance(blocks, int) else read_quantity(blocks, "a number of blocks")
        if self.miner is not None:
            self.miner.bury(count)
        return self.miner is not None

    def status(self) -> Json:
        """The node in numbers, for people and tests."""
        head = self.chain.head
        return {
            "head": data(head.header.hash),
            "height": head.header.number,
            "score": quantity(head.score),
            "pending": len(self.pool),
            "mined": self.miner.mined if self.miner else 0,
            "imported": self._imported,
            "reorgs": self._reorgs,
            "stale": self.miner.stale if self.miner else 0,
            "peers": dict(self.gossip.peers()),
            "cutOff": {
                address(account): reason
                for account, reason in self.gossip.reception.standing.cut_off().items()
            },
            "searchPid": self.miner.search_pid if self.miner else None,
        }

    def _make_miner(self, coinbase: bytes, credentials: Credentials) -> Miner:
        miner = Miner(self.chain, self.pool, credentials, self.gossip.tell_block)
        self.pool.on_new = miner.poke
        if not miner.admitted:
            _LOG.warning(
                "%s may not mine yet: this node follows until the registry admits it", address(coinbase)
            )
        return miner

    def _listen(self, settings: NodeSettings) -> tuple[RpcServer, RpcServer | None]:
        """The port for programs of this machine, and where the settings ask for it one for nodes elsewhere.

        The outer one has no methods: whoever reaches it must sign, and finds no JSON-RPC.
        """
        host = settings.host if settings.is_local else "127.0.0.1"
        inner = None
        try:
            inner = RpcServer(self._methods, host, settings.port)
            outer = None if settings.is_local else RpcServer({}, settings.host, settings.port)
        except OSError as error:
            if inner is not None:
                inner.close()
            self.chain.close()
            raise HomeError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from error
        return inner, outer

    def _servers(self) -> list[RpcServer]:
        return [self.server] if self._outer_server is None else [self.server, self._outer_server]

    def _send_raw_transaction(self, send: Method) -> Method:
        def send_and_tell(raw: Json) -> Json:
            transaction_hash = send(raw)
            self.gossip.tell_transaction(bytes.fromhex(str(raw)[2:]))
            return transaction_hash

        return send_and_tell


def run_node(
    settings: NodeSettings, credentials: Credentials | None, stop: threading.Event | None = None
) -> None:
    """Run a node until SIGTERM, SIGINT or `stop`; prints "ready <url>" once it answers.

    Raises:
        SettingsError: the genesis file is missing or wrong.
        HomeError: the chain file belongs to another genesis, or the port is taken.
    """
    stop = stop or threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    sys.setswitchinterval(SWITCH_SECONDS)
    while not stop.is_set():
        _serve(Node(settings, credentials), stop)


def _serve(node: Node, stop: threading.Event) -> None:
    """Serve until `stop`, or until a page of the chain file turns out to be torn: opening it again salvages it."""
    damaged = threading.Event()
    node.chain.file.on_damage = damaged.set
    gc.collect()
    gc.freeze()  # what is imported stays: no need to walk over it again and again
    try:
        node.start()
        sys.stdout.write(f"ready {node.server.url}\n")
        sys.stdout.flush()
        while not stop.wait(DAMAGE_LOOK_SECONDS) and not damaged.is_set():
            pass
    finally:
        node.close()
