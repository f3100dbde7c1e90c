"""Talking to one other node: greet it, ask it, and believe only replies that were signed for its account."""

from __future__ import annotations

import http.client
import secrets
import threading
import time
from urllib.parse import urlsplit

from consilia.errors import LedgerUnreachableError, MessageError, PeerRefusedError
from consilia.ledger.embedded.message import (
    MAX_REPLY_BYTES,
    NO_SESSION,
    NOBODY,
    SESSION_BYTES,
    Kind,
    Message,
    Reply,
    Verdict,
    seal_reply,
)
from consilia.ledger.embedded.node_key import SIGNATURE_BYTES, Credentials, delegating_account

PEER_PATH = "/peer"
MEDIA_TYPE = "application/octet-stream"
REQUEST_SECONDS = 10.0


class Speaker:
    """What a node says in its own name: its key, its chain, and stamps that never repeat."""

    def __init__(self, credentials: Credentials, network: bytes, url: str) -> None:
        """`network` is the digest of the genesis; `url` is where this node listens."""
        self.key = credentials.key
        self.delegation = credentials.delegation
        self.account = credentials.account(network)
        self.network = network
        self.url = url
        self._lock = threading.Lock()
        self._stamp_us = 0

    def seal(
        self,
        kind: Kind,
        recipient: bytes = NOBODY,
        session: bytes = NO_SESSION,
        items: tuple[bytes, ...] = (),
        told: tuple[str, ...] = (),
    ) -> bytes:
        """A signed message with the next stamp."""
        with self._lock:
            stamp_us = self._stamp_us = max(self._stamp_us + 1, time.time_ns() // 1000)
        message = Message(kind, self.account, recipient, session, stamp_us, told, items)
        return message.seal(self.network, self.key)

    def seal_reply(self, request: bytes, verdict: Verdict, items: tuple[bytes, ...]) -> bytes:
        """A signed reply to the signed bytes of a request."""
        return seal_reply(self.network, self.key, request, verdict, items)


class PeerConnection:
    """One kept-alive HTTP connection to a peer; not for several threads."""

    def __init__(self, url: str, speaker: Speaker) -> None:
        parts = urlsplit(url)
        self._http = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=REQUEST_SECONDS)
        self._speaker = speaker
        self._session = NO_SESSION
        self._signer = NOBODY
        self.account = NOBODY
        """For whom the answers there are; known after the first greeting."""

    def ask(self, kind: Kind, items: tuple[bytes, ...] = (), told: tuple[str, ...] = ()) -> tuple[bytes, ...]:
        """The items of the peer's answer.

        Raises:
            LedgerUnreachableError: nobody answers, or not twice with the same key.
            PeerRefusedError: the peer answers that it will not.
        """
        if self._session == NO_SESSION:
            self._greet()
        reply = self._exchange(kind, items, told)
        if reply.verdict == Verdict.GREET_AGAIN or reply.signer != self._signer:  # the peer was started anew
            self._greet()
            reply = self._exchange(kind, items, told)
        if reply.signer != self._signer:
            raise LedgerUnreachableError(
                f"expected a reply of 0x{self._signer.hex()}, got one of 0x{reply.signer.hex()}"
            )
        if reply.verdict != Verdict.ANSWER:
            raise PeerRefusedError(f"a peer refuses {kind.name}: {reply.verdict.name} {reply.text}")
        return reply.items

    def close(self) -> None:
        """Close the connection; the next question opens another."""
        self._http.close()

    def _greet(self) -> None:
        self._session, self._signer, self.account = NO_SESSION, NOBODY, NOBODY
        # The random item makes each greeting unlike every other, so that a recorded reply fits none.
        greeting = (secrets.token_bytes(SESSION_BYTES), self._speaker.delegation)
        reply = self._exchange(Kind.HELLO, greeting, ())
        if reply.verdict != Verdict.ANSWER:
            raise PeerRefusedError(f"a peer refuses the greeting: {reply.verdict.name} {reply.text}")
        if [len(item) for item in reply.items] != [SESSION_BYTES, SIGNATURE_BYTES]:
            raise LedgerUnreachableError("a peer answers the greeting with something else than its name")
        session, delegation = reply.items
        try:
            self.account = delegating_account(self._speaker.network, reply.signer, delegation)
        except MessageError as error:
            raise LedgerUnreachableError(f"a peer speaks for nobody: {error}") from error
        self._session, self._signer = session, reply.signer

    def _exchange(self, kind: Kind, items: tuple[bytes, ...], told: tuple[str, ...]) -> Reply:
        request = self._speaker.seal(kind, self.account, self._session, items, told)
        try:
            reply = Reply.open(self._speaker.network, request, self._post(request))
        except (OSError, http.client.HTTPException, MessageError) as error:
            self._http.close()
            raise LedgerUnreachableError(f"a peer does not answer {kind.name}: {error}") from error
        return reply

    def _post(self, body: bytes) -> bytes:
        fresh = self._http.sock is None
        try:
            return self._send(body)
        except (ConnectionError, http.client.HTTPException):
            self._http.close()
            if fresh:
                raise
            return self._send(body)  # the peer had closed the idle connection

    def _send(self, body: bytes) -> bytes:
        self._http.request("POST", PEER_PATH, body, {"Content-Type": MEDIA_TYPE})
        response = self._http.getresponse()
        reply = response.read(MAX_REPLY_BYTES + 1)
        if response.status != 200:
            raise http.client.HTTPException(f"status {response.status}")
        return reply
