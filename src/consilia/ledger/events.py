"""What the contracts tell: typed events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final

from consilia.errors import LedgerError
from consilia.ledger.contracts import EventAbi, contract_abi
from consilia.ledger.diagnosis_events import DIAGNOSIS_EVENTS
from consilia.ledger.event import Event as Event
from consilia.ledger.exchange_events import EXCHANGE_EVENTS
from consilia.ledger.rpc import data_bytes, quantity
from consilia.values import Address, Digest, Role


@dataclass(frozen=True, kw_only=True)
class MemberAdmitted(Event):
    """A member was listed."""

    account: Address
    role: Role
    recipient_key: bytes
    certificate_digest: Digest
    valid_from: int
    valid_to: int


@dataclass(frozen=True, kw_only=True)
class RecipientKeyChanged(Event):
    """A member replaced its long-term encryption key."""

    account: Address
    recipient_key: bytes


@dataclass(frozen=True, kw_only=True)
class ValidityChanged(Event):
    """A member's certificate, or the time for which it is valid, changed."""

    account: Address
    certificate_digest: Digest
    valid_from: int
    valid_to: int


@dataclass(frozen=True, kw_only=True)
class AccountChanged(Event):
    """A member has another account from now on; `MemberAdmitted` of the successor follows."""

    account: Address
    successor: Address


@dataclass(frozen=True, kw_only=True)
class MemberSuspended(Event):
    """A member may not act until a Unix time, or until that is lifted."""

    account: Address
    until: int


@dataclass(frozen=True, kw_only=True)
class SuspensionLifted(Event):
    """A suspended member may act again."""

    account: Address


@dataclass(frozen=True, kw_only=True)
class MemberRemoved(Event):
    """A member is none any more, by vote or by its own wish."""

    account: Address
    by_itself: bool


@dataclass(frozen=True, kw_only=True)
class QuorumChanged(Event):
    """Decisions need more than these parts of the members from now on."""

    percent: int
    emergency_percent: int


@dataclass(frozen=True, kw_only=True)
class ApplicationFiled(Event):
    """The signed application of a proposal, and the proofs that its recipient key is the applicant's."""

    proposal_id: int
    applicant: Address
    signature: bytes
    proofs: bytes


@dataclass(frozen=True, kw_only=True)
class Proposed(Event):
    """A member proposes; `kind` is a `registry.Kind`."""

    proposal_id: int
    proposer: Address
    subject: Address
    kind: int
    percent: int
    emergency_percent: int
    expires_at: int


@dataclass(frozen=True, kw_only=True)
class Voted(Event):
    """A member approves a proposal."""

    proposal_id: int
    member: Address


@dataclass(frozen=True, kw_only=True)
class Enacted(Event):
    """A proposal had enough votes and was carried out."""

    proposal_id: int


@dataclass(frozen=True, kw_only=True)
class TaskPublished(Event):
    """Step 0: a task is offered; `spec` is canonical JSON, `enrol_deadline` in Unix seconds."""

    task_id: int
    server: Address
    spec_digest: Digest
    spec: bytes
    rounds: int
    quorum: int
    max_hospitals: int
    enrol_deadline: int
    round_seconds: int
    reward_wei: int


@dataclass(frozen=True, kw_only=True)
class Enrolled(Event):
    """Step 1: a hospital takes part; `index` counts from 0."""

    task_id: int
    hospital: Address
    index: int


@dataclass(frozen=True, kw_only=True)
class TaskKeyIssued(Event):
    """Step 1: the public X25519 task key of a hospital."""

    task_id: int
    hospital: Address
    task_key: bytes


@dataclass(frozen=True, kw_only=True)
class TaskStarted(Event):
    """Step 1: the envelope with the sealed task keys is in the store."""

    task_id: int
    key_string_root: Digest
    key_string_size: int


@dataclass(frozen=True, kw_only=True)
class RoundOpened(Event):
    """Step 2: updates on this model are taken until `deadline` (Unix seconds).

    `model_root` names its envelope, `model_digest` its plaintext.
    """

    task_id: int
    round_index: int
    model_root: Digest
    model_size: int
    model_digest: Digest
    deadline: int


@dataclass(frozen=True, kw_only=True)
class UpdateRegistered(Event):
    """Step 2: a hospital's update; `position` is its bit in `RoundClosed.included`, `trail` names all up to it."""

    task_id: int
    round_index: int
    hospital: Address
    position: int
    root: Digest
    key_hash: Digest
    size: int
    num_examples: int
    metrics_digest: Digest
    trail: Digest


@dataclass(frozen=True, kw_only=True)
class RoundClosed(Event):
    """Step 3: the next global model, and which of the `registered` updates are in it."""

    task_id: int
    round_index: int
    registered: int
    included: tuple[int, int]
    report_root: Digest
    report_size: int
    report_digest: Digest
    model_root: Digest
    model_size: int
    model_digest: Digest


@dataclass(frozen=True, kw_only=True)
class TaskFinished(Event):
    """The last round is closed."""

    task_id: int
    model_root: Digest
    model_digest: Digest


@dataclass(frozen=True, kw_only=True)
class TaskDied(Event):
    """The task cannot go on; `paid_rounds` rounds are paid for, `refund_wei` goes back to the server."""

    task_id: int
    reason: str
    paid_rounds: int
    refund_wei: int


@dataclass(frozen=True, kw_only=True)
class Funded(Event):
    """The reward pool is in escrow."""

    task_id: int
    funder: Address
    amount_wei: int


@dataclass(frozen=True, kw_only=True)
class SharesSettled(Event):
    """Step 5: the shares of some hospitals, in the same order."""

    task_id: int
    hospitals: tuple[Address, ...]
    shares_wei: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Released(Event):
    """Wei that nobody earned wait for the funder."""

    task_id: int
    amount_wei: int


@dataclass(frozen=True, kw_only=True)
class Claimed(Event):
    """A member fetched its share."""

    task_id: int
    member: Address
    amount_wei: int


@dataclass(frozen=True, kw_only=True)
class Refunded(Event):
    """The funder fetched what was released to it."""

    task_id: int
    funder: Address
    amount_wei: int


@dataclass(frozen=True, kw_only=True)
class UnclaimedWithdrawn(Event):
    """The funder took shares that nobody fetched in time."""

    task_id: int
    funder: Address
    amount_wei: int


EVENT_TYPES: Final[dict[tuple[str, str], type[Event]]] = {
    ("registry", "MemberAdmitted"): MemberAdmitted,
    ("registry", "RecipientKeyChanged"): RecipientKeyChanged,
    ("registry", "ValidityChanged"): ValidityChanged,
    ("registry", "AccountChanged"): AccountChanged,
    ("registry", "MemberSuspended"): MemberSuspended,
    ("registry", "SuspensionLifted"): SuspensionLifted,
    ("registry", "MemberRemoved"): MemberRemoved,
    ("registry", "QuorumChanged"): QuorumChanged,
    ("registry", "ApplicationFiled"): ApplicationFiled,
    ("registry", "Proposed"): Proposed,
    ("registry", "Voted"): Voted,
    ("registry", "Enacted"): Enacted,
    ("training", "TaskPublished"): TaskPublished,
    ("training", "Enrolled"): Enrolled,
    ("training", "TaskKeyIssued"): TaskKeyIssued,
    ("training", "TaskStarted"): TaskStarted,
    ("training", "RoundOpened"): RoundOpened,
    ("training", "UpdateRegistered"): UpdateRegistered,
    ("training", "RoundClosed"): RoundClosed,
    ("training", "TaskFinished"): TaskFinished,
    ("training", "TaskDied"): TaskDied,
    ("escrow", "Funded"): Funded,
    ("escrow", "SharesSet"): SharesSettled,
    ("escrow", "Released"): Released,
    ("escrow", "Claimed"): Claimed,
    ("escrow", "Refunded"): Refunded,
    ("escrow", "UnclaimedWithdrawn"): UnclaimedWithdrawn,
} | {
    (contract, kind.__name__): kind
    for contract, kinds in (("exchange", EXCHANGE_EVENTS), ("diagnosis", DIAGNOSIS_EVENTS))
    for kind in kinds
}
ESCROW_WORDS = {"deal_id": "task_id", "members": "hospitals"}
"""The escrow serves any deal; here its deals are tasks."""


@cache
def _known_events() -> dict[tuple[str, bytes], EventAbi]:
    return {
        (contract, event.topic): event
        for contract in ("registry", "training", "escrow", "exchange", "diagnosis")
        for event in contract_abi(contract).events
    }


def decode_event(contract: str, log: Mapping[str, Any]) -> Event:
    """One entry of eth_getLogs or of a receipt, emitted by the contract of this name.

    Raises:
        LedgerError: the contract has no such event.
    """
    topics = [data_bytes(topic) for topic in log["topics"]]
    abi = _known_events().get((contract, topics[0] if topics else b""))
    if abi is None:
        raise LedgerError(f"expected an event of {contract}, got a log of topics {log['topics']}")
    kind = EVENT_TYPES[contract, abi.name]
    values = abi.decode(topics, data_bytes(log["data"]))
    if contract == "escrow":
        values = {ESCROW_WORDS.get(name, name): value for name, value in values.items()}
    return kind(
        block_number=quantity(log["blockNumber"]),
        block_hash=Digest(data_bytes(log["blockHash"])),
        log_index=quantity(log["logIndex"]),
        transaction_hash=Digest(data_bytes(log["transactionHash"])),
        **{name: _typed(kind, name, value) for name, value in values.items()},
    )


def _typed(kind: type[Event], name: str, value: Any) -> Any:
    declared = _declared_types()[kind.__name__][name]
    if declared == "Digest":
        return Digest(value)
    return Role(value) if declared == "Role" else value


@cache
def _declared_types() -> dict[str, dict[str, str]]:
    """The declared type of each field, by event."""
    return {
        kind.__name__: {item.name: str(item.type) for item in fields(kind)} for kind in Event.__subclasses__()
    }
