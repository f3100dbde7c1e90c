"""`consilia ledger verify`: a chain checked where it is read, chain file or node, and the escrow's money with it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from consilia.errors import AuditError
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.replay import replay
from consilia.ledger.events import Event
from consilia.roles.audit.chain import replay_all
from consilia.roles.audit.money import check_diagnosis, check_escrow, check_exchange, check_shares
from consilia.roles.audit.node_check import check_node
from consilia.roles.audit.view import LedgerView, find_chain, has_chain, open_view
from consilia.roles.progress import Report
from consilia.roles.training.task_log import fold
from consilia.settings.network import NETWORK_FILE, Network


@dataclass(frozen=True)
class LedgerCheck:
    """How far the chain was checked; `state_replayed` where every block was executed again as well."""

    source: str
    height: int
    transactions: int
    shares: int
    state_replayed: bool


def check_ledger(home: Path | None, url: str | None, deployment: Path | None, report: Report) -> LedgerCheck:
    """Check a ledger: every chain file of a home by replay, or a node by what its answers give.

    Raises:
        AuditError: something is wrong; the message names the block.
        LedgerError: the node's engine makes block hashes in a way that is not known here.
    """
    replayed = None if home is None or url is not None else _replay(home, report)
    with open_view(home, url, deployment) as view:
        head = view.history.head()
        if replayed is None:
            report("reading every block", source=view.source, height=head)
            node = check_node(view.history.rpc, view.ledger.deployment.block, head)
            if node.blocks_with_foreign_transactions:
                report(
                    "blocks of which only the hash was checked", blocks=node.blocks_with_foreign_transactions
                )
        transactions = node.transactions if replayed is None else replayed
        return LedgerCheck(
            view.source, head, transactions, _check_money(view, head, report), replayed is not None
        )


def _replay(home: Path, report: Report) -> int | None:
    """Replay the chain files of a home; the number of transactions, or None where it has no file."""
    if not has_chain(home):
        return None
    if (home / NETWORK_FILE).exists():
        return replay_all(Network.load(home), report)[0].transactions
    place = find_chain(home)
    done = replay(place.file, Genesis.load(place.genesis))
    report("chain replayed", file=home.name, height=done.height)
    return done.transactions


def _check_money(view: LedgerView, head: int, report: Report) -> int:
    logged = view.history.events(0, head)
    events: list[Event] = [event for item in logged if (event := item.typed()) is not None]
    if not events:
        raise AuditError(f"{view.source}: expected the contracts' first events, found none")
    check_escrow(events, view.ledger.open_wei(), view.ledger.balance_wei(view.ledger.deployment.escrow))
    check_exchange(events, view.ledger)
    check_diagnosis(events, view.ledger)
    seconds = {number: view.history.block(number).timestamp for number in {e.block_number for e in events}}
    shares = sum(check_shares(task, events, seconds, report) for task in fold(events).values())
    report("money conserved, shares computed again", shares=shares)
    return shares
