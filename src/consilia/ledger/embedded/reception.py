"""What a node does with the messages of other nodes: who is heard, what is answered, who is cut off."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from consilia.errors import (
    ChainError,
    MessageError,
    NodeStorageError,
    TransactionRefusedError,
    UnknownParentError,
    UntimelyBlockError,
)
from consilia.ledger.embedded.block import Block
from consilia.ledger.embedded.chain import Chain, Progress
from consilia.ledger.embedded.message import (
    SESSION_BYTES,
    Kind,
    Message,
    Verdict,
    claimed_sender,
)
from consilia.ledger.embedded.node_key import delegating_account
from consilia.ledger.embedded.peer import Speaker
from consilia.ledger.embedded.pool import Pool
from consilia.ledger.embedded.standing import Standing
from consilia.ledger.embedded.transaction import decode_transaction

MAX_LOCATOR = 64
MAX_HEADERS = 512
MAX_BRANCH_BLOCKS = 128
MAX_BRANCH_BYTES = 2 << 20
SCORE_BYTES = 32
MAX_GUESTS = 64
_NEWS = (Kind.NEW_BLOCKS, Kind.NEW_TRANSACTIONS)
_LOG = logging.getLogger(__name__)

TakeBlock = Callable[[Block, bool], "Progress | None"]
"""Check and keep a block (and whether its branch is proven); None if it was here. Raises ChainError."""


@dataclass(frozen=True)
class Received:
    """What goes back over the connection: no body at all to bytes that nobody signed."""

    body: bytes
    is_member: bool
    close: bool


class Reception:
    """Answers signed messages. Every misdeed costs its sender alone."""

    def __init__(self, chain: Chain, pool: Pool, take_block: TakeBlock, speaker: Speaker) -> None:
        self._chain = chain
        self._pool = pool
        self._take_block = take_block
        self._speaker = speaker
        self._session = os.urandom(SESSION_BYTES)  # of this run: what was said to an earlier one is void
        self._delegates: dict[bytes, bytes] = {}  # member -> the key that speaks for it
        self._guests: dict[bytes, bytes] = {}  # the same of strangers, who must not push members out
        self.standing = Standing()
        self.on_behind: Callable[[], None] = lambda: None
        self.on_block: Callable[[Block, tuple[str, ...]], None] = lambda block, told: None
        self.on_transaction: Callable[[bytes, tuple[str, ...]], None] = lambda raw, told: None

    def is_member(self, account: bytes) -> bool:
        """Whether an account may announce: whoever may seal the next block."""
        return self._chain.rules.admitted(account, self._chain.head.header)

    def receive(self, data: bytes) -> Received:
        """Answer one message. Bytes that nobody signed get no answer, and their connection is closed."""
        if self.standing.is_cut_off(claimed_sender(data)):  # costs no look at the signature
            return Received(b"", is_member=False, close=True)
        try:
            message = Message.open(self._speaker.network, data)
            if message.kind == Kind.HELLO:
                self._meet(message)
        except MessageError as error:
            _LOG.debug("a message is refused: %s", error)
            return Received(b"", is_member=False, close=True)
        # Unless the signer is known to speak for the sender, nothing is done or counted in the sender's name.
        is_member = self._knows(message) and self.is_member(message.sender)
        verdict, items = self._weigh(message, is_member, len(data))
        reply = self._speaker.seal_reply(data, verdict, items)
        if is_member or message.kind not in _NEWS:
            self.standing.charge(message.sender, is_member, len(reply))
        close = verdict in (Verdict.CUT_OFF, Verdict.REFUSED, Verdict.NOT_ADMITTED)
        return Received(reply, is_member, close)

    def _meet(self, message: Message) -> None:
        """Learn from a greeting which key speaks for an account; the latest greeting counts.

        Raises:
            MessageError: the account has not delegated that key, or the greeting is an old one.
        """
        delegation = message.items[1] if len(message.items) == 2 else b""
        network = self._speaker.network
        if delegating_account(network, message.signer, delegation) != message.sender:
            raise MessageError(f"0x{message.sender.hex()} has not let this key speak for it on this chain")
        if not self.is_member(message.sender):
            self._guests[message.sender] = message.signer
            while len(self._guests) > MAX_GUESTS:  # who had to give way is asked to greet again
                del self._guests[next(iter(self._guests))]
        elif self._is_fresh(message):
            self._delegates[message.sender] = message.signer
        else:
            raise MessageError("a greeting with an old or repeated stamp")

    def _weigh(self, message: Message, is_member: bool, size_bytes: int) -> tuple[Verdict, tuple[bytes, ...]]:
        """Allowance, recipient, session and freshness, before anything is done for the sender."""
        if not self._knows(message):
            # Before the allowance: a flood of strangers must not keep members from greeting a restarted node.
            return Verdict.GREET_AGAIN, ()
        if not self.standing.allows(message.sender, is_member, size_bytes):
            if is_member:
                self.standing.slip(message.sender, "more messages than its allowance")
            return Verdict.TOO_FAST, ()
        if message.kind == Kind.HELLO:
            return Verdict.ANSWER, (self._session, self._speaker.delegation)
        if (message.recipient, message.session) != (self._speaker.account, self._session):
            return Verdict.GREET_AGAIN, ()
        if message.kind in _NEWS and not is_member:
            return Verdict.NOT_ADMITTED, (b"only members announce",)
        if is_member and not self._is_fresh(message):
            self.standing.slip(message.sender, "a message with an old or repeated stamp")
            return Verdict.REFUSED, (b"old or repeated stamp: check the clocks",)
        return self._perform(message, is_member)

    def _knows(self, message: Message) -> bool:
        delegate = self._delegates.get(message.sender) or self._guests.get(message.sender)
        return message.signer in (message.sender, delegate)

    def _is_fresh(self, message: Message) -> bool:
        return self.standing.is_fresh(message.sender, message.stamp_us, time.time_ns() // 1000)

    def _perform(self, message: Message, is_member: bool) -> tuple[Verdict, tuple[bytes, ...]]:
        try:
            return Verdict.ANSWER, self._answer(message)
        except UnknownParentError:
            self.on_behind()  # the catch-up asks the configured peers, never an address from a message
            return Verdict.ANSWER, ()
        except UntimelyBlockError as error:
            self.standing.slip(message.sender, str(error))
            return Verdict.LATER, (str(error).encode(),)
        except NodeStorageError as error:
            return Verdict.LATER, (str(error).encode(),)
        except (ChainError, MessageError, TransactionRefusedError) as error:
            if is_member:
                self.standing.offend(message.sender, str(error))
            return Verdict.CUT_OFF, (str(error).encode(),)

    def _answer(self, message: Message) -> tuple[bytes, ...]:
        match message.kind:
            case Kind.HEAD:
                head = self._chain.head
                return head.header.hash, head.score.to_bytes(SCORE_BYTES, "big")
            case Kind.HEADERS:
                headers = self._chain.headers_after(_locator(message), MAX_HEADERS)
                return tuple(header.encoded for header in headers)
            case Kind.BLOCKS:
                blocks = self._chain.blocks_after(_locator(message), MAX_BRANCH_BLOCKS, MAX_BRANCH_BYTES)
                return tuple(block.encoded for block in blocks)
            case Kind.NEW_BLOCKS:
                self._take_blocks(message)
            case Kind.NEW_TRANSACTIONS:
                self._take_transactions(message)
            case Kind.HELLO:
                raise AssertionError("answered before")
        return ()

    def _take_blocks(self, message: Message) -> None:
        for raw in message.items:
            progress = self._take_block(Block.decode(raw), False)
            # Only what was executed is passed on, with all its ancestors that were set aside: no node
            # vouches for a block that it did not check to the end.
            for block in progress.adopted if progress else ():
                self.on_block(block, message.told)

    def _take_transactions(self, message: Message) -> None:
        for raw in message.items:
            decode_transaction(raw)  # an honest node has done so: what fails here is an offence
            try:
                _, is_new = self._pool.add(raw)
            except TransactionRefusedError as error:  # nonces and funds differ from node to node for a moment
                _LOG.debug("a peer's transaction is refused: %s", error)
                continue
            if is_new:
                self.on_transaction(raw, message.told)


def _locator(message: Message) -> tuple[bytes, ...]:
    if len(message.items) > MAX_LOCATOR or any(len(item) != 32 for item in message.items):
        raise MessageError(f"expected at most {MAX_LOCATOR} block hashes of 32 bytes")
    return message.items
