"""Waiting for a node that starts later than who needs it."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from consilia.errors import InputError, LedgerUnreachableError
from consilia.ledger.rpc import await_node


class Node(BaseHTTPRequestHandler):
    """Answers every request with block 1."""

    def do_POST(self) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "result": "0x1"}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """No lines."""


@pytest.fixture
def server():
    server = HTTPServer(("127.0.0.1", 0), Node, bind_and_activate=False)
    server.server_bind()  # the port is ours, and nobody answers on it yet
    yield server
    server.server_close()


def test_a_node_that_comes_later_is_waited_for(server):
    told = []

    def comes() -> None:
        told.append("waiting")
        server.server_activate()
        threading.Thread(target=server.handle_request, daemon=True).start()

    await_node(f"http://127.0.0.1:{server.server_port}", 30.0, comes, pause_seconds=0.01)
    assert told == ["waiting"]


def test_a_node_that_never_comes_ends_the_wait(server):
    with pytest.raises(LedgerUnreachableError, match="start it, or correct the URL"):
        await_node(f"http://127.0.0.1:{server.server_port}", 0.05, lambda: None, pause_seconds=0.01)


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:99999"])
def test_what_is_no_address_is_not_waited_for(url):
    with pytest.raises(InputError, match="expected the address of a ledger's node"):
        await_node(url, 30.0, lambda: None)
