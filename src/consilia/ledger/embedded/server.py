"""JSON-RPC over HTTP on loopback: a thread per kept-alive connection, so a long poll holds up nobody else."""

from __future__ import annotations

import json
import logging
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from consilia.ledger.embedded.genesis import LOOPBACK_HOSTS
from consilia.ledger.embedded.parameters import parse_json
from consilia.ledger.embedded.rpc import Method, answer
from consilia.ledger.embedded.views import JsonObject

MAX_BODY_BYTES = 8 << 20
MAX_BATCH = 200
MAX_CONNECTIONS = 256
IDLE_SECONDS = 120.0  # longer than the longest long poll
_LOG = logging.getLogger(__name__)


class RpcServer:
    """Serves a table of methods until closed."""

    def __init__(self, methods: dict[str, Method], host: str, port: int) -> None:
        """Bind; port 0 takes a free one.

        Raises:
            OSError: the port is taken.
        """
        self._server = _Server((host, port), methods)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 3600}, name="rpc", daemon=True
        )
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._server.server_address[1]}"

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._server.stopping = True
        if self._thread.is_alive():
            self._server.wake_and_shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], methods: dict[str, Method]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.methods = methods
        self.stopping = False
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        if not self.slots.acquire(blocking=False):  # bounded: a flood of connections must not eat the memory
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.slots.release()

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
            self._send(*problem)
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(200, self._reply(body))

    def _problem(self) -> tuple[int, object] | None:
        """Why the request is not even read: too long, or sent by a web page, which must not reach a node."""
        length = self.headers.get("Content-Length", "")
        host = self.headers.get("Host", "").rsplit(":", 1)[0].strip("[]")
        media_type = self.headers.get("Content-Type", "").split(";")[0].strip()
        if not length.isascii() or not length.isdigit() or int(length) > MAX_BODY_BYTES:
            return 413, _error(-32600, f"expected Content-Length of at most {MAX_BODY_BYTES} bytes")
        if media_type != "application/json" or "Origin" in self.headers or host not in LOOPBACK_HOSTS:
            return 403, _error(-32600, "expected application/json from a local program, not from a web page")
        return None

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

    def _send(self, status: int, reply: object) -> None:
        body = json.dumps(reply, separators=(",", ":")).encode()
        head = (
            f"HTTP/1.1 {status} {'OK' if status == 200 else 'Refused'}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            f"Connection: {'close' if self.close_connection else 'keep-alive'}\r\n\r\n"
        )
        self.wfile.write(head.encode() + body)  # one packet

    def log_message(self, format: str, *arguments: object) -> None:
        _LOG.debug(format, *arguments)


def _error(code: int, message: str) -> JsonObject:
    return {"jsonrpc": "2.0", "id": None, "error": {"code": code, "message": message}}
