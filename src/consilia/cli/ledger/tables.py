"""A ledger on a terminal: tables that fit 80 columns, and a sentence where there is nothing to show."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consilia.cli.ledger.words import Speaker, number, short, time_text
from consilia.cli.output import printable
from consilia.cli.report.words import amount_text, bytes_text, ether_text
from consilia.ledger.history import Block, Logged, Receipt, Transaction
from consilia.roles.audit.status import LedgerStatus
from consilia.roles.audit.trace import ArtifactTrace, Deed, RewardTrace, RoundTrace, TaskTrace, UpdateTrace
from consilia.roles.audit.view import Account

PIPED_COLUMNS = 100
NUMBER, NAME = "number", "name"
"""What a column holds: numbers stand right, names and numbers are never broken, all else wraps."""


def console() -> Console:
    """Where tables go: as wide as the terminal, or 100 columns where there is none."""
    is_sized = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if is_sized else PIPED_COLUMNS)


def table(title: str, columns: Iterable[tuple[str, str]]) -> Table:
    """An empty table; each column is a heading and what it holds."""
    made = Table(
        title=f"\n{title}" if title else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for heading, holds in columns:
        right = holds == NUMBER
        made.add_column(
            heading, justify="right" if right else "left", no_wrap=holds in (NUMBER, NAME), overflow="fold"
        )
    return made


def add(made: Table, *cells: str) -> None:
    """A row of plain text: what comes from the ledger is never markup."""
    made.add_row(*(Text(cell) for cell in cells))


class Printer:
    """Prints what was read, with names for accounts."""

    def __init__(self, out: Console, say: Speaker) -> None:
        self._out = out
        self._say = say

    def line(self, text: str, style: str = "") -> None:
        """A line of plain text."""
        self._out.print(Text(text, style=style))

    # status

    def status(self, status: LedgerStatus) -> None:
        """The overview."""
        facts = Table.grid(padding=(0, 2))
        for name, value in (
            ("ledger", printable(status.source)),
            ("engine", f"{printable(status.engine)}, chain {status.chain_id}"),
            (
                "head",
                f"block {status.height} of {time_text(status.head_timestamp)} UTC, {short(status.head_hash)}",
            ),
            (
                "escrow",
                f"{amount_text(status.escrow_open_wei)} owed, {ether_text(status.escrow_balance_wei)} held",
            ),
        ):
            facts.add_row(Text(name, style="bold"), Text(value))
        self._out.print(facts)
        contracts = table("Contracts", (("name", NAME), ("address", NAME), ("code", NAME)))
        for contract in status.contracts:
            add(contracts, contract.name, contract.address, short(contract.code_hash))
        self._out.print(contracts)
        self._members(status)
        self._tasks(status.tasks)

    def _members(self, status: LedgerStatus) -> None:
        if not status.members:
            self.line("No members yet.")
            return
        members = table(
            "Members",
            (("member", NAME), ("role", NAME), ("state", NAME), ("valid to", NAME), ("account", NAME)),
        )
        for member in status.members:
            state = "active" if member.active else "not active"
            until = time_text(member.valid_to)[:10]
            address = f"{member.account.address[:10]}…{member.account.address[-4:]}"
            add(members, self._who(member.account), member.role.name.lower(), state, until, address)
        self._out.print(members)

    def _tasks(self, tasks: Sequence[TaskTrace]) -> None:
        if not tasks:
            self.line("No task was published yet.")
            return
        columns = (
            ("task", NUMBER),
            ("title", ""),
            ("phase", NAME),
            ("rounds", NUMBER),
            ("hospitals", NUMBER),
        )
        made = table("Tasks", (*columns, ("updates", NUMBER), ("reward", NUMBER)))
        for task in tasks:
            closed = sum(current.closed is not None for current in task.rounds)
            updates = sum(len(current.updates) for current in task.rounds)
            counts = (f"{closed}/{task.rounds_planned}", str(len(task.enrolled)), str(updates))
            add(
                made,
                str(task.number),
                printable(task.title),
                task.phase,
                *counts,
                ether_text(task.reward_wei),
            )
        self._out.print(made)
        self.line("consilia ledger status --task N tells one of them from beginning to end.", "dim")

    # one task

    def task(self, task: TaskTrace) -> None:
        """A task from its publication to its rewards."""
        phase = f"{task.phase}: {printable(task.reason)}" if task.reason else task.phase
        self.line(f"Task {task.number}: {printable(task.title)}", "bold")
        self.line(f"id {task.task_id}", "dim")
        closed = sum(current.closed is not None for current in task.rounds)
        self.line(f"{phase}, {closed} of {task.rounds_planned} rounds, reward {amount_text(task.reward_wei)}")
        self.line("")
        columns = (
            ("block", NUMBER),
            ("what", ""),
            ("by", NAME),
            ("mined by", NAME),
            ("root", NAME),
            ("tx", NAME),
        )
        made = table("", columns)
        self._step(made, "task published", task.published)
        for enrolment in task.enrolled:
            self._step(made, f"{self._who(enrolment.hospital)} enrols", enrolment.deed)
        if task.started:
            self._step(made, "task keys, sealed", task.started, task.key_string)
        for current in task.rounds:
            self._round(made, current, {u.hospital.address: u for u in task.rewards})
        if task.ended:
            self._step(made, f"task {task.phase}", task.ended)
        self._ending(made, task)
        self._out.print(made)

    def _round(self, made: Table, current: RoundTrace, rewards: dict[str, RewardTrace]) -> None:
        made.add_section()
        index = current.round_index
        self._step(made, f"round {index} opens with this model", current.opened, current.model)
        for update in current.updates:
            what = f"update {update.position}: {update.num_examples} examples, {_fate(update)}"
            self._step(made, what, update.deed, update.artifact)
        if current.closed is not None:
            included = sum(bool(update.included) for update in current.updates)
            self._step(
                made,
                f"round {index} closed, {included} of {len(current.updates)} included",
                current.closed,
                current.report,
            )
            self._step(made, "→ the model that came out", current.closed, current.next_model)

    def _ending(self, made: Table, task: TaskTrace) -> None:
        made.add_section()
        for reward in task.rewards:
            if reward.shared is not None:
                share = f"share of {self._who(reward.hospital)}: {amount_text(reward.share_wei or 0)}"
                self._step(made, f"{share} for {reward.num_examples} examples{_doubt(reward)}", reward.shared)
        claims = [reward.claimed for reward in task.rewards if reward.claimed is not None]
        for claimed in sorted(claims, key=lambda deed: deed.block_number):
            self._step(made, "share claimed", claimed)
        for payment in task.returned:
            self._step(made, f"{amount_text(payment.amount_wei)} {payment.what}", payment.deed)

    def _step(self, made: Table, what: str, deed: Deed, artifact: ArtifactTrace | None = None) -> None:
        root = short(artifact.root) if artifact else ""
        names = (self._who(deed.by), self._who(deed.miner))
        add(made, str(deed.block_number), what, *names, root, short(deed.transaction))

    # blocks, events, transactions

    def blocks(self, blocks: Sequence[Block], events: dict[bytes, list[Logged]]) -> None:
        """Blocks, who mined them, and what was recorded in them by whom."""
        columns = (
            ("block", NUMBER),
            ("time (UTC)", NAME),
            ("mined by", NAME),
            ("by", NAME),
            ("recorded", ""),
        )
        made = table("", columns)
        for block in blocks:
            head = [str(block.number), time_text(block.timestamp)[5:], self._say.account(block.miner)]
            for transaction in block.transactions:
                lines = self._say.deed(transaction, events.get(transaction.hash, ()))
                add(made, *head, self._say.account(transaction.sender), "\n".join(lines))
                head = ["", "", ""]
            if not block.transactions:
                add(made, *head, "", "–")
        self._out.print(made)

    def events(self, events: Sequence[tuple[Logged, Deed]]) -> None:
        """Events, one a row."""
        columns = (("block", NUMBER), ("time (UTC)", NAME), ("by", NAME), ("tx", NAME), ("event", ""))
        made = table("", columns)
        for event, deed in events:
            when = time_text(deed.timestamp)[5:]
            row = (str(event.block_number), when, self._who(deed.by), short(event.transaction_hash))
            add(made, *row, self._say.event(event))
        self._out.print(made)

    def transactions(self, transactions: Sequence[tuple[Transaction, Sequence[Logged]]]) -> None:
        """Transactions, one a row."""
        columns = (("block", NUMBER), ("tx", NAME), ("by", NAME), ("call", ""), ("recorded", ""))
        made = table("", columns)
        for transaction, events in transactions:
            recorded = "\n".join(self._say.events(events)) or "–"
            row = (
                str(transaction.block_number),
                short(transaction.hash),
                self._say.account(transaction.sender),
            )
            add(made, *row, self._say.call(transaction), recorded)
        self._out.print(made)

    def transaction(self, transaction: Transaction, receipt: Receipt, block: Block) -> None:
        """One transaction in full."""
        fee = amount_text(receipt.gas_used * receipt.gas_price_wei)
        facts = [
            ("transaction", f"0x{transaction.hash}"),
            (
                "block",
                f"{block.number} of {time_text(block.timestamp)} UTC, mined by {self._say.account(block.miner)}",
            ),
            ("by", f"{self._say.account(transaction.sender)}, its number {transaction.nonce}"),
            ("account", transaction.sender),
            ("call", self._say.call(transaction)),
        ]
        if transaction.value_wei:
            facts.append(("sends along", amount_text(transaction.value_wei)))
        if receipt.created:
            facts.append(("made", f"the contract at {receipt.created}"))
        outcome = "succeeded" if receipt.succeeded else "REFUSED by the contract: it changed nothing"
        facts += [("outcome", outcome), ("gas", f"{receipt.gas_used:,}, {fee}")]
        self._facts("", facts)
        self._facts("Arguments", [(a.name, self._full(a.name, a.value)) for a in transaction.arguments])
        for event in receipt.logs:
            title = f"Event {event.contract}.{event.event or 'unknown'}"
            self._facts(title, [(a.name, self._full(a.name, a.value)) for a in event.arguments])

    def _facts(self, title: str, facts: Sequence[tuple[str, str]]) -> None:
        if title and facts:
            self.line(f"\n{title}", "bold")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in facts:
            grid.add_row(Text(printable(name), style="dim"), Text(value))
        self._out.print(grid)

    def _full(self, name: str, value: object) -> str:
        if isinstance(value, bytes) and len(value) <= 64:
            return f"0x{value.hex()}"
        if isinstance(value, bytes):
            return f"{bytes_text(len(value))}: {printable(value.decode('utf-8', 'replace'))}"
        return number(name, value) if isinstance(value, int) else self._say.value(name, value)

    # rewards

    def rewards(self, task: TaskTrace) -> None:
        """Who gets what of a task's reward, what it follows from, and where it was recorded."""
        earned = "" if task.earned_wei is None else f", earned {amount_text(task.earned_wei)}"
        title = f"Task {task.number}: reward {amount_text(task.reward_wei)}{earned}"
        columns = (("hospital", NAME), ("updates", NUMBER), ("examples", NUMBER), ("share", NUMBER))
        made = table(title, (*columns, ("expected", NUMBER), ("set in", NUMBER), ("paid in", NUMBER)))
        for reward in task.rewards:
            add(
                made,
                self._who(reward.hospital),
                f"{reward.updates_included}/{reward.updates_registered}",
                f"{reward.num_examples:,}",
                "–" if reward.share_wei is None else ether_text(reward.share_wei),
                "–"
                if reward.expected_wei is None
                else ether_text(reward.expected_wei) + ("" if not _doubt(reward) else " !"),
                _block_number(reward.shared),
                _block_number(reward.claimed),
            )
        self._out.print(made)
        for payment in task.returned:
            self.line(
                f"{amount_text(payment.amount_wei)} {payment.what} in block {payment.deed.block_number}"
            )
        if any(_doubt(reward) for reward in task.rewards):
            self.line(
                "! The share is not what the registered examples give; consilia audit verify says whether it may be."
            )

    def miners(self, blocks: dict[str, int], reward_wei: int | None) -> None:
        """Who mined how many blocks, and for how much."""
        made = table("Blocks mined", (("miner", NAME), ("blocks", NUMBER), ("reward", NUMBER)))
        for miner, count in sorted(blocks.items(), key=lambda item: (-item[1], item[0])):
            reward = "–" if reward_wei is None else ether_text(count * reward_wei)
            add(made, self._say.account(miner), f"{count:,}", reward)
        self._out.print(made)

    def _who(self, account: Account) -> str:
        return self._say.account(account.address)


def _fate(update: UpdateTrace) -> str:
    if update.included is None:
        return "round still open"
    return f"weight {100 * (update.weight or 0):.1f} %" if update.included else "not included"


def _doubt(reward: RewardTrace) -> str:
    if reward.share_wei is None or reward.expected_wei is None or reward.share_wei == reward.expected_wei:
        return ""
    return f" (by examples {ether_text(reward.expected_wei)})"


def _block_number(deed: Deed | None) -> str:
    return "–" if deed is None else str(deed.block_number)
