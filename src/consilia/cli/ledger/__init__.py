"""`consilia ledger`: who recorded what on the ledger and when, for a person to read or as JSON."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from consilia.cli.output import Format
from consilia.errors import InputError

if TYPE_CHECKING:
    from consilia.cli.ledger.tables import Printer
    from consilia.ledger.history import Block, Logged
    from consilia.roles.audit.trace import TaskTrace
    from consilia.roles.audit.view import LedgerView

app = typer.Typer(help="Look at the ledger: blocks, events, transactions, rewards.", no_args_is_help=True)

HOME = typer.Option(
    None, help="The home of a consortium or of a party; its chain file is read, no node is needed."
)
URL = typer.Option(None, help="A node's JSON-RPC address, of whatever EVM engine.")
DEPLOYMENT = typer.Option(None, help="The deployment file: where the contracts are. A home has one.")
TASK = typer.Option(None, help="Only this task: its number in the order of publication, or its id.")
FIRST = typer.Option(0, "--from", min=0, help="The first block.")
LAST = typer.Option(None, "--to", min=0, help="The last block; the newest unless given.")
FORMAT = typer.Option(Format.TEXT, "--format", help="Tables, or JSON: one object a line.")


@app.callback()
def _group() -> None:
    """Look at the ledger: blocks, events, transactions, rewards."""


@app.command()
def status(
    home: Path | None = HOME,
    url: str | None = URL,
    deployment: Path | None = DEPLOYMENT,
    task: int | None = TASK,
    form: Format = FORMAT,
) -> None:
    """The ledger at a glance; with --task, one task from its publication to its rewards."""
    from consilia.cli.ledger.records import document, print_record
    from consilia.roles.audit.status import read_status

    with _look(home, url, deployment) as (view, printer):
        found = read_status(view)
        if task is not None:
            chosen = _choose(found.tasks, _task_id(view, task))
            return print_record("task", document(chosen)) if form is Format.JSON else printer.task(chosen)
        return print_record("status", document(found)) if form is Format.JSON else printer.status(found)


@app.command()
def blocks(
    home: Path | None = HOME,
    url: str | None = URL,
    deployment: Path | None = DEPLOYMENT,
    task: int | None = TASK,
    first: int = FIRST,
    last: int | None = LAST,
    every: bool = typer.Option(False, "--all", help="Also blocks in which the contracts recorded nothing."),
    form: Format = FORMAT,
) -> None:
    """The blocks in which something was recorded: who mined them, what it was, by whom."""
    from consilia.cli.ledger.records import block_record, print_record

    if every and task is not None:
        raise InputError("expected --task or --all, not both: an empty block belongs to no task")
    with _look(home, url, deployment) as (view, printer):
        end = _last_block(view, last)
        events = _by_transaction(view.history.events(first, end, _task_id(view, task)))
        shown = list(view.history.blocks(first, end)) if every else _blocks_of(view, events)
        if form is Format.JSON:
            for block in shown:
                print_record("block", block_record(view, block, events))
        elif shown:
            printer.blocks(shown, events)
        else:
            printer.line(_nothing("block", first, end, task))


@app.command()
def events(
    home: Path | None = HOME,
    url: str | None = URL,
    deployment: Path | None = DEPLOYMENT,
    task: int | None = TASK,
    first: int = FIRST,
    last: int | None = LAST,
    form: Format = FORMAT,
) -> None:
    """What the contracts recorded, event by event: when, by whom, in which transaction."""
    from consilia.cli.ledger.records import event_record, print_record
    from consilia.roles.audit.trace import find_deed

    with _look(home, url, deployment) as (view, printer):
        end = _last_block(view, last)
        found = view.history.events(first, end, _task_id(view, task))
        if form is Format.JSON:
            for event in found:
                print_record("event", event_record(view, event))
        elif found:
            printer.events([(event, find_deed(view, event)) for event in found])
        else:
            printer.line(_nothing("event", first, end, task))


@app.command()
def tx(
    name: str | None = typer.Argument(
        None, metavar="[HASH]", help="A transaction's hash or its first digits."
    ),
    home: Path | None = HOME,
    url: str | None = URL,
    deployment: Path | None = DEPLOYMENT,
    task: int | None = TASK,
    first: int = FIRST,
    last: int | None = LAST,
    form: Format = FORMAT,
) -> None:
    """One transaction with all that it says and did; without HASH, the transactions that recorded something."""
    from consilia.cli.ledger.records import print_record, receipt_record, transaction_record
    from consilia.ledger.history import find_transaction

    with _look(home, url, deployment) as (view, printer):
        end = _last_block(view, last)
        found = view.history.events(first, end, _task_id(view, task))
        if name is None:
            return _transactions(
                view, printer, form, _by_transaction(found), _nothing("transaction", first, end, task)
            )
        transaction = find_transaction(view.history, name, found)
        receipt = view.history.receipt(transaction)
        if form is Format.JSON:
            record = transaction_record(view, transaction, receipt.logs)
            print_record("transaction", record | receipt_record(receipt))
        else:
            printer.transaction(transaction, receipt, view.history.block(transaction.block_number))


@app.command()
def rewards(
    home: Path | None = HOME,
    url: str | None = URL,
    deployment: Path | None = DEPLOYMENT,
    task: int | None = TASK,
    form: Format = FORMAT,
) -> None:
    """Who earned what in each task and by what, where it was recorded, and who mined how many blocks."""
    from consilia.cli.ledger.records import document, plain, print_record
    from consilia.roles.audit.trace import trace_tasks

    with _look(home, url, deployment) as (view, printer):
        end = view.history.head()
        tasks = trace_tasks(view, view.history.events(0, end))
        chosen = tasks if task is None else [_choose(tasks, _task_id(view, task))]
        mined = Counter(block.miner for block in view.history.blocks(1, end)) if view.genesis else Counter()
        block_wei = view.genesis.block_reward_wei if view.genesis else None
        if form is Format.JSON:
            for item in chosen:
                for reward in item.rewards:
                    print_record("reward", {"task_id": item.task_id, **document(reward)})
                for payment in item.returned:
                    print_record("returned", {"task_id": item.task_id, **document(payment)})
            for miner, count in mined.items():
                wei = str(count * (block_wei or 0))
                print_record(
                    "miner", {"miner": plain(view.account(miner)), "blocks": count, "reward_wei": wei}
                )
            return
        for item in chosen:
            printer.rewards(item)
        if not chosen:
            printer.line("No task was published yet, so nobody has earned anything by one.")
        if mined:
            printer.miners(dict(mined), block_wei)


@app.command()
def verify(
    home: Path | None = HOME,
    url: str | None = URL,
    deployment: Path | None = DEPLOYMENT,
    form: Format = FORMAT,
) -> None:
    """Check the chain alone: links, seals, state, receipts, signatures, money. Exit code 0, or 5 and what is wrong.

    A home's chain files are replayed from genesis. Of a node's chain, with --url, all is computed again but the state.
    `consilia audit verify` also reads the store and derives every model.
    """
    from consilia.cli.output import Output
    from consilia.roles.audit.ledger_check import check_ledger

    say = Output("ledger", form)
    done = check_ledger(home, url, deployment, say)
    say(
        "all in order",
        source=done.source,
        height=done.height,
        transactions=done.transactions,
        shares=done.shares,
        state_replayed=done.state_replayed,
    )


@contextmanager
def _look(
    home: Path | None, url: str | None, deployment: Path | None
) -> Iterator[tuple[LedgerView, Printer]]:
    from consilia.cli.ledger.tables import Printer, console
    from consilia.cli.ledger.words import Speaker
    from consilia.roles.audit.view import open_view

    with open_view(home, url, deployment) as view:
        yield view, Printer(console(), Speaker(view.names, _task_ids(view)))


def _last_block(view: LedgerView, last: int | None) -> int:
    head = view.history.head()
    return head if last is None else min(last, head)


def _by_transaction(events: Sequence[Logged]) -> dict[bytes, list[Logged]]:
    found: dict[bytes, list[Logged]] = defaultdict(list)
    for event in events:
        found[event.transaction_hash].append(event)
    return found


def _blocks_of(view: LedgerView, events: dict[bytes, list[Logged]]) -> list[Block]:
    """The blocks of these events, in their order, with no other transactions than theirs."""
    from dataclasses import replace

    numbers = sorted({event.block_number for listed in events.values() for event in listed})
    blocks = (view.history.block(number) for number in numbers)
    return [
        replace(block, transactions=tuple(t for t in block.transactions if t.hash in events))
        for block in blocks
    ]


def _transactions(
    view: LedgerView, printer: Printer, form: Format, events: dict[bytes, list[Logged]], nothing: str
) -> None:
    from consilia.cli.ledger.records import print_record, transaction_record

    found = [(t, events[t.hash]) for block in _blocks_of(view, events) for t in block.transactions]
    if form is Format.JSON:
        for transaction, logged in found:
            print_record("transaction", transaction_record(view, transaction, logged))
    elif found:
        printer.transactions(found)
    else:
        printer.line(nothing)


def _choose(tasks: Sequence[TaskTrace], task_id: int | None) -> TaskTrace:
    return next(task for task in tasks if task.task_id == task_id)


def _task_ids(view: LedgerView) -> list[int]:
    from consilia.roles.audit.trace import task_ids

    return task_ids(view.history.events(0, view.history.head()))


def _task_id(view: LedgerView, task: int | None) -> int | None:
    """A task's id; a person may give its number in the order of publication instead."""
    known = _task_ids(view)
    if task is None or task in known:
        return task
    if not 1 <= task <= len(known):
        shown = ", ".join(f"{number} ({task_id})" for number, task_id in enumerate(known, 1)) or "none"
        raise InputError(f"there is no task {task} on this ledger; its tasks: {shown}")
    return known[task - 1]


def _nothing(what: str, first: int, last: int, task: int | None) -> str:
    about = "" if task is None else f" of task {task}"
    return f"No {what}{about} in which the contracts recorded anything, in blocks {first} to {last}."
