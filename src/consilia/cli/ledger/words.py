"""What was recorded, in words: phrases for the protocol's events, and the contract's own names for all others."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from consilia.cli.output import printable
from consilia.cli.report.words import amount_text, ether_text
from consilia.ledger.history import Logged, Transaction
from consilia.protocols.training import from_bitmap
from consilia.values import Address, Role

SHORT_HEX = 8
SAME_KIND = 4
"""More events of one kind than this in one transaction are counted, not listed."""
TIME_ENDINGS = ("deadline", "_from", "_to", "_until", "_at")
FIRST_TIME, LAST_TIME = 10**9, 10**11  # Unix seconds of the years 2001 to 5138


class Speaker:
    """Puts a ledger's values into words, with the members' names where they are known."""

    def __init__(self, names: Mapping[Address, str], task_ids: Sequence[int] = ()) -> None:
        self._names = names
        self._task_ids = task_ids

    def task(self, task_id: int) -> str:
        """A task by its place in the order of publication; its id has 16 digits, which nobody reads aloud."""
        return f"task {self._task_ids.index(task_id) + 1 if task_id in self._task_ids else task_id}"

    def account(self, address: Address) -> str:
        """A member's name, or the beginning and end of a stranger's address."""
        return printable(self._names.get(address) or f"{address[:6]}…{address[-4:]}")

    def event(self, event: Logged) -> str:
        """What an event says."""
        phrase = PHRASES.get((event.contract, event.event))
        if phrase is not None:
            return phrase(self, {argument.name: argument.value for argument in event.arguments})
        return f"{event.contract}: {spaced(event.event) or 'unknown event'}{self._facts(event)}"

    def events(self, events: Iterable[Logged]) -> list[str]:
        """What the events of one transaction say, a line each; many of one kind are counted."""
        listed = list(events)
        counts = Counter((event.contract, event.event) for event in listed)
        crowds = {kind for kind, count in counts.items() if count > SAME_KIND}
        lines = [self.event(event) for event in listed if (event.contract, event.event) not in crowds]
        return lines + [f"{counts[kind]} × {spaced(kind[1]) or 'unknown event'}" for kind in sorted(crowds)]

    def deed(self, transaction: Transaction, events: Iterable[Logged]) -> list[str]:
        """What a transaction did: its events, or the call where it made none."""
        return self.events(events) or [self.call(transaction)]

    def call(self, transaction: Transaction) -> str:
        """What a transaction asked for."""
        if transaction.contract:
            return f"{transaction.contract}.{transaction.function or 'unknown function'}"
        if transaction.to is None:
            return "makes a contract"
        return f"sends {amount_text(transaction.value_wei)} to {self.account(transaction.to)}"

    def value(self, name: str, value: Any) -> str:
        """One value of a call or an event, short."""
        match value:
            case bytes() if len(value) == 32:
                return short(value)
            case bytes():
                return f"{len(value)} bytes"
            case str() if re.fullmatch("0x[0-9a-fA-F]{40}", value):
                return self.account(value)
            case str():
                return printable(value)
            case list() | tuple():
                return "[" + ", ".join(self.value(name, item) for item in value) + "]"
            case dict():
                return "{" + ", ".join(f"{key}={self.value(key, item)}" for key, item in value.items()) + "}"
            case _:
                return number(name, value)

    def _facts(self, event: Logged) -> str:
        facts = ", ".join(f"{a.name}={self.value(a.name, a.value)}" for a in event.arguments)
        return f" ({facts})" if facts else ""


def number(name: str, value: object) -> str:
    """A number by what its name says it is: an amount, a time, or just a number."""
    if not isinstance(value, int) or isinstance(value, bool):
        return str(value)
    if name.endswith("_wei"):
        return amount_text(value)
    if name.endswith(TIME_ENDINGS) and FIRST_TIME < value < LAST_TIME:
        return time_text(value)
    return str(value)


def short(digest: bytes) -> str:
    """The first digits of a digest: enough to find it again, and what `consilia ledger tx` takes."""
    return digest.hex()[:SHORT_HEX]


def time_text(timestamp: int) -> str:
    """Unix seconds as UTC: 2026-11-23 02:03:04."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S")


def spaced(name: str) -> str:
    """A contract's name as words: `RoundOpened` as `round opened`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", printable(name)).lower()


Values = Mapping[str, Any]
Phrase = Callable[[Speaker, Values], str]


def _shares(say: Speaker, v: Values) -> str:
    shares = zip(v["members"], v["shares_wei"], strict=True)
    return "shares: " + ", ".join(f"{say.account(member)} {ether_text(wei)}" for member, wei in shares)


def _admitted(say: Speaker, v: Values) -> str:
    role = v["role"]
    known = Role(role).name.lower() if role in set(Role) else f"role {role}"
    return f"{say.account(v['account'])} is a member: {known}"


def _closed(say: Speaker, v: Values) -> str:
    counted = len(from_bitmap(v["included"]))
    model = short(v["model_root"])
    return f"round {v['round_index']} closed: {counted} of {v['registered']} updates, model {model}"


def _query_closed(say: Speaker, v: Values) -> str:
    ends = {6: "released", 7: "failed", 8: "stopped"}  # QueryState; protocols/diagnosis.py loads what hashes
    shares = f"{amount_text(v['hospital_wei'])} to the hospital, {amount_text(v['server_wei'])} to the server"
    why = f" ({printable(v['reason'])})" if v["reason"] else ""
    return f"query {short(v['query_id'])} {ends.get(v['state'], v['state'])}{why}: {shares}"


PHRASES: dict[tuple[str, str], Phrase] = {
    ("registry", "MemberAdmitted"): _admitted,
    ("registry", "RecipientKeyChanged"): lambda say, v: (
        f"{say.account(v['account'])} changes its encryption key"
    ),
    ("training", "TaskPublished"): lambda say, v: (
        f"{say.task(v['task_id'])} published for {v['rounds']} round{'s'[: v['rounds'] > 1]}"
    ),
    ("training", "Enrolled"): lambda say, v: (
        f"{say.account(v['hospital'])} enrols in {say.task(v['task_id'])}"
    ),
    ("training", "TaskKeyIssued"): lambda say, v: f"task key for {say.account(v['hospital'])}",
    ("training", "TaskStarted"): lambda say, v: (
        f"{say.task(v['task_id'])} starts, key string {short(v['key_string_root'])}"
    ),
    ("training", "RoundOpened"): lambda say, v: (
        f"round {v['round_index']} opens, model {short(v['model_root'])}"
    ),
    ("training", "UpdateRegistered"): lambda say, v: (
        f"update {short(v['root'])} for round {v['round_index']}, {v['num_examples']} examples"
    ),
    ("training", "RoundClosed"): _closed,
    ("training", "TaskFinished"): lambda say, v: f"{say.task(v['task_id'])} finished",
    ("training", "TaskDied"): lambda say, v: f"{say.task(v['task_id'])} died: {printable(v['reason'])}",
    ("escrow", "Funded"): lambda say, v: f"{amount_text(v['amount_wei'])} into escrow",
    ("escrow", "SharesSet"): _shares,
    ("escrow", "Released"): lambda say, v: f"{amount_text(v['amount_wei'])} released to the funder",
    ("escrow", "Claimed"): lambda say, v: f"{say.account(v['member'])} claims {amount_text(v['amount_wei'])}",
    ("escrow", "Refunded"): lambda say, v: f"{amount_text(v['amount_wei'])} refunded",
    ("escrow", "UnclaimedWithdrawn"): lambda say, v: f"{amount_text(v['amount_wei'])} unclaimed, taken back",
    ("diagnosis", "ModelOffered"): lambda say, v: (
        f"{say.account(v['server'])} answers for model {short(v['model_digest'])} "
        f"at {amount_text(v['price_wei'])}: offer {v['offer_id']}"
    ),
    ("diagnosis", "OfferWithdrawn"): lambda say, v: f"offer {v['offer_id']} withdrawn",
    ("diagnosis", "Asked"): lambda say, v: (
        f"{say.account(v['hospital'])} asks {short(v['query_id'])}: {v['images']} images, "
        f"{v['threshold']} of {v['audits']} must match"
    ),
    ("diagnosis", "Answered"): lambda say, v: f"query {short(v['query_id'])} answered, sealed",
    ("diagnosis", "AuditOpened"): lambda say, v: (
        f"query {short(v['query_id'])}: {len(v['xs'])} known cases opened, as hashes"
    ),
    ("diagnosis", "Scored"): lambda say, v: (
        f"query {short(v['query_id'])} scored: {v['matches']} of {len(v['ys'])} match"
    ),
    ("diagnosis", "Challenged"): lambda say, v: (
        f"query {short(v['query_id'])}: boxes of image {v['position']} do not agree, {v['matches']} matches left"
    ),
    ("diagnosis", "Accepted"): lambda say, v: f"query {short(v['query_id'])}: score accepted",
    ("diagnosis", "AnswersReleased"): lambda say, v: f"query {short(v['query_id'])}: hidden answers released",
    ("diagnosis", "QueryClosed"): _query_closed,
    ("diagnosis", "DiagnosisCreditPaid"): lambda say, v: (
        f"{say.account(v['account'])} fetches {amount_text(v['amount_wei'])}"
    ),
}
