"""What the audit reads of a ledger; and how far it can check a node of an engine whose chain it cannot replay."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.errors import AuditError
from consilia.ledger.chain import BlockInfo
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import Event
from consilia.roles.audit.money import check_diagnosis, check_exchange
from consilia.roles.progress import Report
from consilia.settings.network import Network


@dataclass(frozen=True)
class ToldLedger:
    """The events of the contracts, when their blocks were made (Unix seconds), and the escrow's money."""

    events: list[Event]
    block_seconds: dict[int, int]
    open_wei: int
    escrow_wei: int
    height: int


def read_ledger(ledger: Ledger) -> ToldLedger:
    """Read all that the audit needs.

    Raises:
        AuditError: the exchange or the diagnosis contract does not hold what it owes.
    """
    events = ledger.events()
    check_exchange(events, ledger)
    check_diagnosis(events, ledger)
    return ToldLedger(
        events=events,
        block_seconds={number: ledger.block(number).timestamp for number in {e.block_number for e in events}},
        open_wei=ledger.open_wei(),
        escrow_wei=ledger.balance_wei(ledger.deployment.escrow),
        height=ledger.confirmed_block().number,
    )


def told_by_node(network: Network, deployment: Deployment, report: Report) -> ToldLedger:
    """Read the ledger of another engine, and check that its node is of one mind.

    Seals, senders' signatures and the execution of blocks are the engine's own affair: a node that lies about them
    consistently is not found out here. Ask a node of one's own, or compare block hashes with another member.

    Raises:
        AuditError: the node tells of an event in a block or transaction that it does not have.
        LedgerUnreachableError: it does not answer.
    """
    assert network.url is not None
    ledger = Ledger(network.url, deployment, confirmations=network.confirmations)
    told = read_ledger(ledger)
    blocks: dict[int, BlockInfo] = {}
    for event in told.events:
        if event.block_number not in blocks:
            blocks[event.block_number] = ledger.block(event.block_number)
        block = blocks[event.block_number]
        if block.hash != event.block_hash or event.transaction_hash not in block.transactions:
            raise AuditError(
                f"block {event.block_number}: the node tells of {type(event).__name__} in transaction "
                f"0x{event.transaction_hash}, which its block 0x{block.hash} does not have"
            )
    report("ledger read, not replayed", url=network.url, height=told.height, events=len(told.events))
    return told
