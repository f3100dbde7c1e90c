"""JSON-RPC over any web3.py provider: one call, its result, and whose fault it is when there is none."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Protocol
from urllib.parse import SplitResult, urlsplit

from consilia.errors import InputError, LedgerUnreachableError, RpcError

CONNECT_SECONDS, READ_SECONDS = 3.0, 30.0
RETRY_PAUSE_SECONDS = 0.2

METHOD_NOT_FOUND = -32601


class Provider(Protocol):
    """What is needed of a web3.py provider: its middleware and formatters would cost more than the call."""

    def make_request(self, method: Any, params: Any) -> Any:
        """The reply to one request, with either `result` or `error`."""
        ...


class HttpProvider:
    """A node by its URL, over one kept connection a thread; `InputError` if that is none.

    web3.py's own provider takes 1.4 ms of processor time a call where this takes 0.2, and half a second to
    import: in a round of a small model that was most of what a hospital did.
    """

    def __init__(self, url: str, read_seconds: float = READ_SECONDS) -> None:
        self._url = _parts(url)
        self._read_seconds = read_seconds
        self._target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        self._local = threading.local()

    def make_request(self, method: Any, params: Any) -> Any:
        """The reply to one request.

        Raises:
            OSError: nobody answers, or not with status 200.
            ValueError: the answer is not JSON.
        """
        body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        try:
            connection = self._connection()
            connection.request("POST", self._target, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, HTTPException) as error:
            self._drop()
            raise error if isinstance(error, OSError) else OSError(f"no answer in HTTP: {error!r}") from error
        if answer.status != 200:
            raise OSError(f"HTTP status {answer.status}")
        return json.loads(data)

    def _connection(self) -> HTTPConnection:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        if connection is None or connection.sock is None:  # none yet, or the node closed it after an answer
            kind = HTTPSConnection if self._url.scheme == "https" else HTTPConnection
            connection = kind(self._url.hostname or "", self._url.port, timeout=CONNECT_SECONDS)
            connection.connect()
            connection.sock.settimeout(self._read_seconds)
            self._local.connection = connection
        return connection

    def _drop(self) -> None:
        connection: HTTPConnection | None = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - it is read only now
    except ValueError as error:
        raise InputError(
            f"expected the address of a ledger's node, such as http://127.0.0.1:8545, got {url!r}: {error}"
        ) from error
    return parts


class Rpc:
    """A node of the ledger, by its URL or by a provider."""

    def __init__(self, url: str, provider: Provider | None = None) -> None:
        self.url = url
        self._provider = HttpProvider(url) if provider is None else provider

    def call(self, method: str, *params: Any) -> Any:
        """The result of one request.

        Raises:
            RpcError: the node answered that it cannot or will not.
            LedgerUnreachableError: nobody answered, or not in JSON-RPC.
        """
        reply = self._reply(method, params)
        if not isinstance(reply, dict) or ("result" not in reply and "error" not in reply):
            raise LedgerUnreachableError(
                f"expected JSON-RPC at {self.url}, got {str(reply)[:80]!r}: is this the address of a node?"
            )
        if (error := reply.get("error")) is not None:
            raise _rpc_error(method, error)
        return reply.get("result")

    def _reply(self, method: str, params: tuple[Any, ...]) -> Any:
        try:
            return self._provider.make_request(method, list(params))
        except (OSError, ValueError):
            # A node that restarts drops the connections it kept open. Every request here may be repeated:
            # reads change nothing, and the same signed bytes are the same transaction.
            time.sleep(RETRY_PAUSE_SECONDS)
        try:
            return self._provider.make_request(method, list(params))
        except (OSError, ValueError) as error:
            raise LedgerUnreachableError(
                f"no ledger node answers at {self.url} ({type(error).__name__}): start it, or correct the URL"
            ) from error


def await_node(
    url: str, wait_seconds: float, waiting: Callable[[], None], pause_seconds: float = 1.0
) -> None:
    """Return when a node answers: processes of one machine start in any order. `waiting` is called once, if it must.

    Raises:
        LedgerUnreachableError: none did within `wait_seconds`.
    """
    node, until, told = Rpc(url), time.monotonic() + wait_seconds, False
    while True:
        try:
            node.call("eth_blockNumber")
        except LedgerUnreachableError:
            if time.monotonic() >= until:
                raise
        else:
            return
        if not told:
            waiting()
            told = True
        time.sleep(pause_seconds)


def _rpc_error(method: str, error: Any) -> RpcError:
    if not isinstance(error, dict):
        return RpcError(0, f"{method}: {error}")
    data = error.get("data")
    return RpcError(
        int(error.get("code", 0)), str(error.get("message", error)), data if isinstance(data, str) else None
    )


def quantity(value: int | str | None) -> int:
    """A JSON-RPC quantity as a number; a missing one is 0."""
    if value is None:
        return 0
    return value if isinstance(value, int) else int(value, 16)


def data_bytes(value: str | bytes | None) -> bytes:
    """JSON-RPC data as bytes; missing data are empty."""
    if value is None:
        return b""
    return value if isinstance(value, bytes) else bytes.fromhex(value.removeprefix("0x"))
