"""The rules of a header, all of which are checked before anything executes, and of what execution must give.

A rule looks at a header and its parent only, so that a peer can make this node do nothing but hash and
compare until it has shown work, signed by an admitted miner, on a known parent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from consilia.errors import ChainError, UntimelyBlockError
from consilia.ledger.embedded.block import EMPTY_UNCLES_HASH, Header
from consilia.ledger.embedded.block_signature import check_signature
from consilia.ledger.embedded.evm import Outcome
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.seal import seal_digest

MAX_FUTURE_MS = 5_000  # hospitals run NTP; more would let a miner lower the difficulty with a false clock
DIFFICULTY_QUOTIENT = 16
LN2_PER_MILLE = 693
MAX_STEPS_DOWN = 8  # an idle gap, however long, halves the difficulty once
BASE_FEE_QUOTIENT = 8  # EIP-1559
ELASTICITY = 2  # EIP-1559: the target is half the limit

Admitted = Callable[[bytes, Header], bool]
"""Whether an address (20 bytes) may seal a child of this header; see admission.py."""


def next_difficulty(genesis: Genesis, parent: Header, time_ms: int) -> int:
    """The difficulty that a child of `parent` at `time_ms` must have.

    One sixteenth up when the child comes within the window, one sixteenth down for each whole window that it is
    late beyond the first, at most eight at once (the shape of EIP-2's rule, in milliseconds). Under lasting load
    the gaps are exponentially distributed; with a mean of m they balance when exp(window / m) = 2, so the window
    is the block time times ln 2, and the block time is their mean.
    """
    window_ms = max(genesis.block_time_ms * LN2_PER_MILLE // 1000, 1)
    steps = max(1 - (time_ms - parent.time_ms) // window_ms, -MAX_STEPS_DOWN)
    step = max(parent.difficulty // DIFFICULTY_QUOTIENT, 1)
    return max(parent.difficulty + step * steps, genesis.min_difficulty)


def next_base_fee(parent: Header) -> int:
    """The base fee in wei that a child of `parent` must have (EIP-1559)."""
    target = parent.gas_limit // ELASTICITY
    fee_wei = parent.base_fee_wei
    if parent.gas_used == target:
        return fee_wei
    change = fee_wei * abs(parent.gas_used - target) // target // BASE_FEE_QUOTIENT
    return fee_wei + max(change, 1) if parent.gas_used > target else fee_wei - change


@dataclass(frozen=True)
class HeaderRules:
    """Everything that a header must fulfil; `now_ms` is the caller's clock, in Unix milliseconds."""

    genesis: Genesis
    admitted: Admitted

    @cached_property
    def network(self) -> bytes:
        """The digest of the genesis, 32 bytes: what accounts delegate for."""
        return self.genesis.digest()

    def check_work(self, header: Header, parent: Header, now_ms: int) -> None:
        """Check link, gas, time, difficulty, seal and signature, the cheapest first; it takes no look at any state.

        Raises:
            UntimelyBlockError: it comes from the future; everything that is cheaper to check is right.
            ChainError: the first rule that is broken, with the block number, what was expected and what came.
        """
        self._check_link(header, parent)
        self._check_gas(header, parent)
        self._check_time(header, parent)
        expected = next_difficulty(self.genesis, parent, header.time_ms)
        _expect(header, "difficulty", header.difficulty, expected)
        self._check_seal(header)
        check_signature(header, self.network)
        self._check_clock(header, now_ms)

    def check_miner(self, header: Header, parent: Header) -> None:
        """Check that the coinbase may seal a child of `parent`, whose state must be stored.

        Raises:
            ChainError: it may not.
        """
        if not self.admitted(header.coinbase, parent):
            raise ChainError(f"block {header.number}: 0x{header.coinbase.hex()} is not an admitted miner")

    def _check_link(self, header: Header, parent: Header) -> None:
        _expect(header, "parent hash", header.parent_hash.hex(), parent.hash.hex())
        _expect(header, "number", header.number, parent.number + 1)
        _expect(header, "uncles hash", header.uncles_hash.hex(), EMPTY_UNCLES_HASH.hex())

    def _check_gas(self, header: Header, parent: Header) -> None:
        _expect(header, "gas limit", header.gas_limit, self.genesis.gas_limit)
        _expect(header, "base fee", header.base_fee_wei, next_base_fee(parent))
        if header.gas_used > header.gas_limit:
            raise ChainError(
                f"block {header.number}: expected at most {header.gas_limit} gas, got {header.gas_used}"
            )

    def _check_time(self, header: Header, parent: Header) -> None:
        _expect(header, "length of extra data", len(header.extra_data), 8)
        _expect(header, "timestamp", header.timestamp, header.time_ms // 1000)
        if header.time_ms <= parent.time_ms:
            raise ChainError(
                f"block {header.number}: expected a time after its parent's {parent.time_ms} ms, "
                f"got {header.time_ms} ms"
            )

    def _check_clock(self, header: Header, now_ms: int) -> None:
        if header.time_ms > now_ms + MAX_FUTURE_MS:
            raise UntimelyBlockError(
                f"block {header.number}: comes {header.time_ms - now_ms} ms from the future, "
                f"at most {MAX_FUTURE_MS} are allowed; check the clocks"
            )

    def _check_seal(self, header: Header) -> None:
        if header.mix_hash != seal_digest(header.mining_hash, header.nonce):
            raise ChainError(f"block {header.number}: the seal was not made for this header")
        if int.from_bytes(header.mix_hash, "big") * header.difficulty >= 1 << 256:
            raise ChainError(f"block {header.number}: the seal shows less work than its difficulty")


def _expect(header: Header, what: str, came: object, expected: object) -> None:
    if came != expected:
        raise ChainError(f"block {header.number}: expected {what} {expected}, got {came}")


def check_outcome(header: Header, outcome: Outcome) -> None:
    """Compare what execution gave with what the header promises.

    Raises:
        ChainError: the first difference.
    """
    for what, promised, computed in (
        ("transactions root", header.transactions_root, outcome.transactions_root),
        ("gas used", header.gas_used, outcome.gas_used),
        ("receipts root", header.receipts_root, outcome.receipts_root),
        ("bloom", header.bloom, outcome.bloom),
        ("state root", header.state_root, outcome.state_root),
    ):
        if promised != computed:
            shown = [item.hex()[:64] if isinstance(item, bytes) else item for item in (computed, promised)]
            raise ChainError(f"block {header.number}: expected {what} {shown[0]}, got {shown[1]}")
