"""A hospital's own node of the embedded chain, as a child process in its process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from consilia.errors import LedgerUnreachableError
from consilia.ledger.embedded.genesis import NodeSettings
from consilia.settings import SECRET_VARIABLES, HospitalSettings
from consilia.values import Address


class NodeProcess:
    """Starts the node, waits until it serves, and stops it. It stops by itself when its parent dies."""

    def __init__(self, home: Path, settings: HospitalSettings, coinbase: Address) -> None:
        node = settings.node
        assert node is not None, "only a hospital with a [node] section runs a node"
        folder = home / "node"
        folder.mkdir(exist_ok=True)
        file = folder / "node.json"
        NodeSettings(
            home=folder, genesis=node.genesis, coinbase=coinbase, port=node.port, peers=tuple(node.peers)
        ).save(file)
        with (folder / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "consilia.ledger.embedded", str(file)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={name: value for name, value in os.environ.items() if name not in SECRET_VARIABLES},
            )

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
