"""The node's side of the search process: start a job, replace it, hear of its result."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from consilia.ledger.embedded import seal

_LOG = logging.getLogger(__name__)


class SearchProcess:
    """One child that hashes. It ends with this process, however that ends: its stdin closes (seal.py)."""

    def __init__(self, on_found: Callable[[bytes, bytes], None]) -> None:
        """`on_found(mining_hash, nonce)` is called from a thread of this object."""
        self._on_found = on_found
        self._lock = threading.Lock()
        self._child = self._spawn()
        self._closed = False

    @property
    def pid(self) -> int:
        """The child's process number."""
        return self._child.pid

    def start(self, mining_hash: bytes, difficulty: int) -> None:
        """Search for this header from a random nonce on; an older job is dropped within milliseconds."""
        first = int.from_bytes(os.urandom(7), "big")  # below 2^56: a search never runs past 8 bytes
        self._write(f"{mining_hash.hex()} {seal.seal_ceiling(difficulty).hex()} {first:x}\n")

    def stop(self) -> None:
        """Drop the job; the child sleeps until the next."""
        self._write("\n")

    def close(self) -> None:
        """End the child."""
        with self._lock:
            self._closed = True
            self._child.kill()
            self._child.wait()

    def _write(self, line: str) -> None:
        with self._lock:
            if self._closed:
                return
            if self._child.poll() is not None:
                _LOG.warning("the search process ended with %s, starting another", self._child.returncode)
                self._child = self._spawn()
            assert self._child.stdin is not None
            try:
                self._child.stdin.write(line)
                self._child.stdin.flush()
            except BrokenPipeError:
                _LOG.warning("the search process ended while it was given work")

    def _spawn(self) -> subprocess.Popen[str]:
        program = Path(seal.__file__)
        child = subprocess.Popen(
            [sys.executable, "-I", "-S", "-E", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        threading.Thread(target=self._listen, args=(child,), name="search", daemon=True).start()
        return child

    def _listen(self, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            mining_hash, nonce = line.split()
            self._on_found(bytes.fromhex(mining_hash), bytes.fromhex(nonce))
