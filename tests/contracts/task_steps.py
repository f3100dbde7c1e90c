"""Time, events and phases of the tasks under test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import boa

from consilia.ledger.views import Phase

if TYPE_CHECKING:
    from tests.contracts.conftest import Contracts

GRACE_SECONDS = 3 * 86400
SETTLE_SECONDS = 7 * 86400


def pass_seconds(seconds: int) -> None:
    boa.env.evm.patch.timestamp += seconds


def now() -> int:
    return int(boa.env.evm.patch.timestamp)


def logged(contract: Any) -> list[tuple[str, dict[str, Any]]]:
    """What a contract's last call logged: names and values, those of its callees too."""
    events = contract.get_logs()
    return [
        (type(event).__name__, {f: getattr(event, f) for f in event._fields if f != "address"})
        for event in events
    ]


def phase(contracts: Contracts, task_id: int) -> Phase:
    return Phase(contracts.training.task(task_id).phase)
