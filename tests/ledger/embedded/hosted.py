"""Several whole nodes in this process, for tests that look inside them."""

from __future__ import annotations

from pathlib import Path

from eth_account.signers.local import LocalAccount

from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.node import Node
from tests.ledger.embedded.network import credentials, free_ports


class Hosted:
    """Nodes of one chain; closed at the end."""

    def __init__(self, folder: Path, genesis: Genesis) -> None:
        self.folder = folder
        self.genesis = genesis
        self._open: dict[int, Node] = {}
        genesis.save(folder / "genesis.json")

    def start(
        self,
        account: LocalAccount,
        port: int = 0,
        peers: tuple[str, ...] = (),
        name: str = "",
        mines: bool = True,
    ) -> Node:
        """Start the node of a hospital; one that does not mine speaks as its member all the same."""
        home = self.folder / (name or account.address)
        if port == 0:
            (port,) = free_ports(1)
        settings = NodeSettings(
            home=home, genesis=self.folder / "genesis.json", coinbase=account.address, port=port, peers=peers
        )
        node = Node(settings, credentials(account, self.genesis))
        if not mines and node.miner is not None:
            node.miner.close()
            node.miner = None
        node.start()
        self._open[id(node)] = node
        return node

    def stop(self, node: Node) -> None:
        """Close one node."""
        self._open.pop(id(node)).close()

    def close(self) -> None:
        """Close them all."""
        for node in list(self._open.values()):
            self.stop(node)
