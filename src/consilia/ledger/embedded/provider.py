"""web3.py straight on a table of methods, without HTTP: for the audit of a chain file, and for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from web3.providers.base import JSONBaseProvider

from consilia.ledger.embedded.rpc import Method, answer


class MethodsProvider(JSONBaseProvider):
    """A web3.py provider that calls the methods in this process."""

    def __init__(self, methods: dict[str, Method], close: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self._methods = methods
        self.close = close

    def make_request(self, method: Any, params: Any) -> Any:
        """Answer one request; parameters and reply pass through JSON, as they would over HTTP."""
        request = json.loads(self.encode_rpc_request(method, params))
        return json.loads(json.dumps(answer(self._methods, request)))

    def make_batch_request(self, batch_requests: Any) -> Any:
        """Answer several requests, in order."""
        return [self.make_request(method, params) for method, params in batch_requests]

    def is_connected(self, show_traceback: bool = False) -> bool:
        """Always: the chain is in this process."""
        return True
