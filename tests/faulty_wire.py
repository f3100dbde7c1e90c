"""A TCP proxy on loopback between a client and a server, which loses, slows or cuts what goes through it."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit


class FaultyWire:
    """A context manager; `url` is where a client finds the server behind it. The faults may be set at any time."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        assert parts.hostname and parts.port
        self._server = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.refuse = False
        """Hang up on whoever calls."""
        self.silent = False
        """Take everything, answer nothing."""
        self.cut_answers_after: int | None = None
        """Hang up in the middle of an answer, after so many bytes of it."""
        self.cut_requests_after: int | None = None
        """Hang up in the middle of a request, after so many bytes of it."""
        self.lost_requests_left = 10**9
        """How many of the connections meet the faults above; the later ones pass."""
        self.bytes_a_second: float | None = None
        self.flip_answer_byte: int | None = None
        """Change a bit in this byte of each answer."""
        self.requests_bytes = 0
        """What clients sent, for counting what was sent again."""
        self.connections = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._ended = False

    def __enter__(self) -> FaultyWire:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """Cut all connections now."""
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """From now on, all is well."""
        self.refuse = self.silent = False
        self.cut_answers_after = self.cut_requests_after = self.bytes_a_second = self.flip_answer_byte = None

    def _accept(self) -> None:
        while not self._ended:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self.refuse:
            client.close()
            return
        with contextlib.suppress(OSError), client, socket.create_connection(self._server) as server:
            with self._lock:
                self._open |= {client, server}
            pump = threading.Thread(target=self._pump, args=(client, server, True), daemon=True)
            pump.start()
            self._pump(server, client, False)
            pump.join()
            with self._lock:
                self._open -= {client, server}

    def _pump(self, source: socket.socket, target: socket.socket, is_request: bool) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                data = self._spoiled(data, passed, is_request)
                passed += len(data)
                if is_request:
                    self.requests_bytes += len(data)
                if data and not (self.silent and not is_request):
                    target.sendall(data)
                if self._is_cut(passed, is_request):
                    self.lost_requests_left -= 1
                    break
                if self.bytes_a_second:
                    time.sleep(len(data) / self.bytes_a_second)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _spoiled(self, data: bytes, passed: int, is_request: bool) -> bytes:
        at = self.flip_answer_byte
        if not is_request and at is not None and passed <= at < passed + len(data):
            spoiled = bytearray(data)
            spoiled[at - passed] ^= 1
            data = bytes(spoiled)
        limit = self._limit(is_request)
        return data if limit is None else data[: max(0, limit - passed)]

    def _is_cut(self, passed: int, is_request: bool) -> bool:
        limit = self._limit(is_request)
        return limit is not None and passed >= limit

    def _limit(self, is_request: bool) -> int | None:
        if self.lost_requests_left <= 0:
            return None
        return self.cut_requests_after if is_request else self.cut_answers_after
