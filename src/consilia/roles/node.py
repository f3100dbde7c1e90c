"""A hospital's own node of the embedded chain, as a child process in its process group."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

from consilia.crypto.custody import Signer
from consilia.errors import LedgerUnreachableError
from consilia.ledger.embedded.genesis import Genesis, NodeSettings
from consilia.ledger.embedded.node_key import NodeKey, delegation_digest
from consilia.passwords import SECRET_VARIABLES
from consilia.settings import HospitalSettings
from consilia.values import Address

if TYPE_CHECKING:
    from eth_typing import Hash32


class NodeProcess:
    """Starts the node, waits until it serves, and stops it. It stops by itself when its parent dies."""

    def __init__(self, home: Path, settings: HospitalSettings, coinbase: Address) -> None:
        node = settings.node
        assert node is not None, "only a hospital with a [node] section runs a node"
        self._network = Genesis.load(node.genesis).digest()
        folder = home / "node"
        folder.mkdir(exist_ok=True)
        file = folder / "node.json"
        NodeSettings(
            home=folder,
            genesis=node.genesis,
            coinbase=coinbase,
            host=node.host,
            port=node.port,
            peers=node.peers,
            beyond_this_machine=node.beyond_this_machine,
        ).save(file)
        with (folder / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "consilia.ledger.embedded", str(file)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
            )

    def give_key(self, account: Signer) -> None:
        """Hand the node a fresh key that speaks for the account, over a pipe: it touches no disk.

        The account's own secret stays here: a node talks to strangers and runs their code.
        """
        secret = secrets.token_bytes(32)
        digest = delegation_digest(self._network, NodeKey(secret).address)
        delegation = bytes(account.unsafe_sign_hash(cast("Hash32", digest)).signature)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{secret.hex()} {delegation.hex()}\n")
            self._process.stdin.close()
        except BrokenPipeError:
            return  # it has ended already: wait_ready says why

    def wait_ready(self) -> None:
        """Wait until the node serves.

        Raises:
            LedgerUnreachableError: it ended instead.
        """
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("ready"):
                return
        code = self._process.wait()
        raise LedgerUnreachableError(
            f"this hospital's node ended with code {code} before it served; node/node.log in its home says why"
        )

    def stop(self) -> None:
        """Stop the node and wait for it."""
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
