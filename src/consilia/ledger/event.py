"""What every event has: where on the chain it was logged."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.values import Digest


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that a contract logged, and where."""

    block_number: int
    block_hash: Digest
    log_index: int
    transaction_hash: Digest
