"""Who among the peers may say how much, and who is not listened to any more.

An honest node checks before it passes anything on. So a block with a false seal or state, or a message that
does not parse, is proof against the member that signed the message: it is cut off at once. What can happen to
honest nodes too, such as a clock ahead or a burst, is forgiven some times a minute. Accounts that are no
members share one allowance, by which they can read and nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappush, heappushpop

MESSAGES_PER_SECOND, MESSAGE_BURST = 100, 500  # a round of four hospitals takes about 20 messages
BYTES_PER_SECOND, BYTE_BURST = 8 << 20, 32 << 20  # eight full blocks a second
GUEST_SHARE = 8  # all guests together get the eighth part of what one member gets
SLIPS_PER_MINUTE = 30
CUT_OFF_SECONDS = 600.0
MAX_CLOCK_DIFFERENCE_US = 60_000_000
STAMPS_REMEMBERED = 1024  # how far messages may overtake one another on their way
_LOG = logging.getLogger(__name__)


@dataclass
class _Record:
    share: int
    messages: float = MESSAGE_BURST
    size_bytes: float = BYTE_BURST
    filled_at: float = 0.0
    slips: int = 0
    slips_since: float = 0.0
    cut_off_until: float = 0.0
    reason: str = ""
    stamps: set[int] = field(default_factory=set)
    oldest: list[int] = field(default_factory=list)
    floor_us: int = 0


class Standing:
    """The standing of every member with this node. Safe for threads."""

    def __init__(self, clock_seconds: Callable[[], float] = time.monotonic) -> None:
        self._clock_seconds = clock_seconds
        self._lock = threading.Lock()
        self._members: dict[bytes, _Record] = {}  # bounded: only members ever get a record
        self._guests = _Record(GUEST_SHARE, MESSAGE_BURST / GUEST_SHARE, BYTE_BURST / GUEST_SHARE)

    def is_cut_off(self, account: bytes) -> bool:
        """Whether nothing that `account` says is heard now."""
        record = self._members.get(account)
        return record is not None and self._clock_seconds() < record.cut_off_until

    def cut_off(self) -> dict[bytes, str]:
        """Those who are cut off now, and why."""
        with self._lock:
            return {key: item.reason for key, item in self._members.items() if self.is_cut_off(key)}

    def allows(self, account: bytes, is_member: bool, size_bytes: int) -> bool:
        """Take one message of this size from the sender's allowance (a token bucket); False if it is used up."""
        with self._lock:
            record = self._record(account) if is_member else self._guests
            now = self._clock_seconds()
            passed, record.filled_at = now - record.filled_at, now
            share = record.share
            record.messages = min(
                record.messages + passed * MESSAGES_PER_SECOND / share, MESSAGE_BURST / share
            )
            record.size_bytes = min(record.size_bytes + passed * BYTES_PER_SECOND / share, BYTE_BURST / share)
            if record.messages < 1 or record.size_bytes < 0:
                return False
            record.messages -= 1
            record.size_bytes -= size_bytes  # may go below zero once: the next message waits longer
            return True

    def charge(self, account: bytes, is_member: bool, size_bytes: int) -> None:
        """Take the size of a reply from the allowance as well."""
        with self._lock:
            (self._record(account) if is_member else self._guests).size_bytes -= size_bytes

    def is_fresh(self, account: bytes, stamp_us: int, now_us: int) -> bool:
        """Whether a member's stamp is of this minute and was not seen before; from now on it was."""
        if abs(now_us - stamp_us) > MAX_CLOCK_DIFFERENCE_US:
            return False
        with self._lock:
            record = self._record(account)
            if stamp_us <= record.floor_us or stamp_us in record.stamps:
                return False
            record.stamps.add(stamp_us)
            if len(record.stamps) > STAMPS_REMEMBERED:
                record.floor_us = heappushpop(record.oldest, stamp_us)
                record.stamps.discard(record.floor_us)
            else:
                heappush(record.oldest, stamp_us)
            return True

    def slip(self, account: bytes, reason: str) -> None:
        """Note what may happen to an honest member too; too much of it in a minute cuts off."""
        with self._lock:
            record = self._record(account)
            now = self._clock_seconds()
            if now - record.slips_since > 60:
                record.slips, record.slips_since = 0, now
            record.slips += 1
            too_many = record.slips > SLIPS_PER_MINUTE
        if too_many:
            self.offend(account, f"too often in a minute: {reason}")

    def offend(self, account: bytes, reason: str) -> None:
        """Cut a member off: it sent what no honest node sends."""
        with self._lock:
            record = self._record(account)
            record.cut_off_until = self._clock_seconds() + CUT_OFF_SECONDS
            record.reason = reason[:300]
        _LOG.warning("0x%s is cut off for %d s: %s", account.hex(), CUT_OFF_SECONDS, reason)

    def _record(self, account: bytes) -> _Record:
        record = self._members.get(account)
        if record is None:
            record = self._members[account] = _Record(1, filled_at=self._clock_seconds())
        return record
