"""The audit's second part: every wei of the escrow accounted for, and every share computed again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from consilia.errors import AuditError
from consilia.federation.contribution import shares_by_samples
from consilia.ledger.client import Ledger
from consilia.ledger.diagnosis import DiagnosisContract
from consilia.ledger.events import Claimed, Event, Funded, Refunded, SharesSettled, UnclaimedWithdrawn
from consilia.ledger.exchange import ExchangeContract
from consilia.roles.diagnosis.query_log import fold_diagnosis
from consilia.roles.exchange.deal_log import fold_exchange
from consilia.roles.progress import Report
from consilia.roles.training.rounds import samples_included
from consilia.roles.training.task_log import TaskLog
from consilia.values import Address

SETTLE_SECONDS = 7 * 86_400
"""So long after a task's end the server alone may set the shares (contracts/training.vy)."""


def check_escrow(events: Sequence[Event], open_wei: int, balance_wei: int) -> None:
    """Money conserved: what went into the escrow is what came out of it and what it still owes, and that is there.

    Anybody can force wei upon a contract by destroying another one, so it may own more than it owes.

    Raises:
        AuditError: the sums differ.
    """
    left_wei = owed_wei(events)
    if left_wei != open_wei or balance_wei < open_wei:
        raise AuditError(
            f"by its events the escrow should still owe {left_wei} wei; it owes {open_wei} and holds {balance_wei}"
        )


def check_exchange(events: Sequence[Event], ledger: Ledger) -> None:
    """The same for the exchange: prices and bonds that came in are what was fetched and what it still owes.

    Raises:
        AuditError: the sums differ.
    """
    left_wei = fold_exchange(events).open_wei
    open_wei, balance_wei = (
        ExchangeContract(ledger).open_wei(),
        ledger.balance_wei(ledger.deployment.exchange),
    )
    if left_wei != open_wei or balance_wei < open_wei:
        raise AuditError(
            f"by its events the exchange should still owe {left_wei} wei; it owes {open_wei} and holds {balance_wei}"
        )


def check_diagnosis(events: Sequence[Event], ledger: Ledger) -> None:
    """The same for the second opinions: fees and bonds that came in are what was fetched and what is still owed.

    Raises:
        AuditError: the sums differ.
    """
    left_wei = fold_diagnosis(events).open_wei
    open_wei = DiagnosisContract(ledger).open_wei()
    balance_wei = ledger.balance_wei(ledger.deployment.diagnosis)
    if left_wei != open_wei or balance_wei < open_wei:
        raise AuditError(
            f"by its events the diagnosis contract should still owe {left_wei} wei; it owes {open_wei} and holds "
            f"{balance_wei}"
        )


def owed_wei(events: Sequence[Event]) -> int:
    """What the escrow took in and has not paid out, by its events."""
    paid_in = sum(event.amount_wei for event in events if isinstance(event, Funded))
    paid_out = sum(
        event.amount_wei for event in events if isinstance(event, Claimed | Refunded | UnclaimedWithdrawn)
    )
    return paid_in - paid_out


def check_shares(
    task: TaskLog, events: Sequence[Event], block_seconds: Mapping[int, int], report: Report
) -> int:
    """Compute a task's shares again from the examples registered with the included updates (protocol, step 5).

    The contract lets the server divide what was earned as it likes; only this shows that it did so honestly. After
    its time to settle anybody may set a share by updates handed in instead: then that figure is right, too.

    Args:
        events: of the whole ledger, or at least of the task.
        block_seconds: the times of the blocks that hold them, in Unix seconds.

    Returns:
        How many shares were checked.

    Raises:
        AuditError: a share is another than the registered examples give.
    """
    end = task.finished or task.died
    if end is None:
        return 0
    expected = shares_by_samples(samples_included(task), task.earned_wei)
    left_wei, checked = task.earned_wei, 0
    for event in events:
        if not isinstance(event, SharesSettled) or event.task_id != task.task_id:
            continue
        late = block_seconds[event.block_number] >= block_seconds[end.block_number] + SETTLE_SECONDS
        for hospital, share_wei in zip(event.hospitals, event.shares_wei, strict=True):
            by_updates = late and len(event.hospitals) == 1
            allowed = {expected.get(hospital, 0)} | (
                {_by_updates(task, hospital, left_wei)} if by_updates else set()
            )
            if share_wei not in allowed:
                raise AuditError(
                    f"task {task.task_id}, block {event.block_number}: the share of {hospital} is {share_wei} wei, "
                    f"but its registered examples give {expected.get(hospital, 0)}"
                )
            left_wei -= share_wei
            checked += 1
    for hospital, wei in expected.items():
        if hospital not in task.shares_wei:
            report("share not yet set", task_id=task.task_id, hospital=hospital, expected_wei=str(wei))
    return checked


def _by_updates(task: TaskLog, hospital: Address, left_wei: int) -> int:
    """What `settle_by_updates` gives (contracts/training.vy)."""
    handed_in = [current.update_of(hospital) is not None for current in task.rounds]
    total = sum(len(current.updates) for current in task.rounds)
    return min(task.earned_wei * sum(handed_in) // total, left_wei) if total else 0
