"""A node's port: JSON-RPC for programs of this machine at `/`, signed messages of other nodes at `/peer`.

A thread per kept-alive connection, so a long poll holds up nobody else. Connections are bounded; when all are
taken, the one that has been of no use for longest gives way, and one that never carried a valid request first:
whoever opens connections without end shuts out nobody but itself.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from consilia.ledger.embedded.genesis import LOOPBACK_HOSTS
from consilia.ledger.embedded.message import MAX_MESSAGE_BYTES
from consilia.ledger.embedded.parameters import parse_json
from consilia.ledger.embedded.peer import MEDIA_TYPE, PEER_PATH
from consilia.ledger.embedded.reception import Received
from consilia.ledger.embedded.rpc import Method, answer
from consilia.ledger.embedded.views import JsonObject

MAX_BODY_BYTES = 8 << 20
MAX_BATCH = 200
MAX_CONNECTIONS = 256
UNPROVEN_BODY_BYTES = 512 << 10  # of a connection's first request: the largest transaction in hex, and some
IDLE_SECONDS = 120.0  # longer than the longest long poll
BODY_SECONDS = 20.0  # for the whole of a body: a drip of bytes must not hold a thread
_LOG = logging.getLogger(__name__)


Receive = Callable[[bytes], Received]
"""Answers the bytes of one message of another node."""


class RpcServer:
    """Serves a table of methods, and other nodes, until closed."""

    def __init__(
        self, methods: dict[str, Method], host: str, port: int, receive: Receive | None = None
    ) -> None:
        """Bind; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._server = _Server((host, port), methods, receive)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 3600}, name="rpc", daemon=True
        )
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}"

    def receive_with(self, receive: Receive) -> None:
        """Answer other nodes with this from now on."""
        self._server.receive = receive

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening, and hang up on everybody: a kept connection must not go on with a closed chain."""
        self._server.stopping = True
        if self._thread.is_alive():
            self._server.wake_and_shutdown()
        self._server.server_close()
        for connection in list(self._server.uses):
            _shut_down(connection)


@dataclass
class _Use:
    """When a connection was last of use, and whether it ever was."""

    proven: bool
    at_seconds: float


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], methods: dict[str, Method], receive: Receive | None) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.methods = methods
        self.receive = receive
        self.stopping = False
        self.uses: dict[socket.socket, _Use] = {}
        self._using = threading.Lock()
        super().__init__(address, _Handler)

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        with self._using:
            if len(self.uses) >= MAX_CONNECTIONS:
                idle = min(self.uses, key=lambda item: (self.uses[item].proven, self.uses[item].at_seconds))
                del self.uses[idle]
                _shut_down(idle)  # its thread wakes up and ends
            self.uses[request] = _Use(False, time.monotonic())
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._using:
                self.uses.pop(request, None)

    def note_use(self, request: socket.socket) -> None:
        """A connection carried a valid request just now."""
        with self._using:
            if request in self.uses:
                self.uses[request] = _Use(True, time.monotonic())

    def is_proven(self, request: socket.socket) -> bool:
        """Whether a connection has carried a valid request before."""
        use = self.uses.get(request)
        return use is not None and use.proven

    def wake_and_shutdown(self) -> None:
        """serve_forever looks at its stop flag between polls; a connection of our own ends the poll."""
        stopper = threading.Thread(target=self.shutdown, daemon=True)
        stopper.start()
        host, port = str(self.server_address[0]), int(self.server_address[1])
        with socket.create_connection((host, port), timeout=1):
            stopper.join(timeout=5)

    def handle_error(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        _LOG.debug("a connection ended early", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = IDLE_SECONDS

    def do_POST(self) -> None:
        problem = self._problem()
        if problem is not None:
            self.close_connection = True
            self._send(problem[0], _as_json(problem[1]))
            return
        body = self._read_body(int(self.headers["Content-Length"]))
        if body is None:
            self.close_connection = True
        elif self.path == PEER_PATH:
            self._answer_peer(body)
        else:
            reply = self._reply(body)
            self.server.note_use(self.connection)
            self._send(200, _as_json(reply))

    def _answer_peer(self, body: bytes) -> None:
        assert self.server.receive is not None, "a server without nodes around it refuses before"
        try:
            received = self.server.receive(body)
        except Exception:  # noqa: BLE001  # the process boundary: a bug costs one reply, never the node
            if not self.server.stopping:
                _LOG.exception("a message was not answered")
            received = Received(b"", is_member=False, close=True)
        if received.is_member:
            self.server.note_use(self.connection)
        self.close_connection = self.close_connection or received.close
        self._send(200 if received.body else 403, received.body, MEDIA_TYPE)

    def _problem(self) -> tuple[int, object] | None:
        """Why the request is not even read: too long, or sent by a web page, which must not reach a node."""
        length = self.headers.get("Content-Length", "")
        media_type = self.headers.get("Content-Type", "").split(";")[0].strip()
        is_peer = self.path == PEER_PATH and self.server.receive is not None
        most = MAX_MESSAGE_BYTES if is_peer else MAX_BODY_BYTES
        if not self.server.is_proven(self.connection) and not is_peer:
            most = UNPROVEN_BODY_BYTES
        if not length.isascii() or not length.isdigit() or len(length) > 9 or int(length) > most:
            return 413, _error(-32600, f"expected Content-Length of at most {most} bytes")
        if is_peer:
            allowed = media_type == MEDIA_TYPE and "Origin" not in self.headers
        else:
            allowed = media_type == "application/json" and self._is_local_program()
        if not allowed:
            return 403, _error(-32600, "expected application/json from a local program, not from a web page")
        return None

    def _is_local_program(self) -> bool:
        host = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]")
        came_from = str(self.client_address[0])
        is_near = came_from == "::1" or came_from.startswith(("127.", "::ffff:127."))
        return is_near and host in LOOPBACK_HOSTS and "Origin" not in self.headers

    def _read_body(self, length: int) -> bytes | None:
        """The body, or None if it does not come in time."""
        deadline = time.monotonic() + BODY_SECONDS
        parts: list[bytes] = []
        try:
            while length > 0:
                self.connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = self.rfile.read1(min(length, 1 << 16))
                if not part:
                    return None
                parts.append(part)
                length -= len(part)
        except TimeoutError:
            return None
        finally:
            self.connection.settimeout(IDLE_SECONDS)
        return b"".join(parts)

    def _reply(self, body: bytes) -> object:
        try:
            request = parse_json(body)
        except ValueError as error:
            return _error(-32700, f"the request is not JSON: {error}")
        if not isinstance(request, list):
            return self._answer(request)
        if not 0 < len(request) <= MAX_BATCH:
            return _error(-32600, f"expected a batch of 1 to {MAX_BATCH} requests, got {len(request)}")
        return [self._answer(item) for item in request]

    def _answer(self, request: object) -> JsonObject:
        try:
            return answer(self.server.methods, request)
        except Exception as error:  # noqa: BLE001  # the process boundary: a bug costs one reply, never the node
            if not self.server.stopping:
                _LOG.exception("a method failed")
            return _error(-32603, f"internal error: {type(error).__name__}")

    def _send(self, status: int, body: bytes, media_type: str = "application/json") -> None:
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}\r\n"
            f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if self.close_connection else 'keep-alive'}\r\n\r\n"
        )
        self.wfile.write(head.encode() + body)  # one packet

    def log_message(self, format: str, *arguments: object) -> None:
        _LOG.debug(format, *arguments)


def _error(code: int, message: str) -> JsonObject:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}


def _as_json(reply: object) -> bytes:
    return json.dumps(reply, separators=(",", ":")).encode()


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        _LOG.debug("a connection ended by itself")
