"""A ledger at a glance: its head, contracts, members, tasks, and the money in escrow."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.ledger.history import code_hash
from consilia.ledger.views import Member
from consilia.roles.audit.trace import TaskTrace, trace_tasks
from consilia.roles.audit.view import Account, LedgerView
from consilia.values import Address, Digest, Role


@dataclass(frozen=True)
class ContractStatus:
    """A contract of the deployment; `code_hash` is the keccak-256 of its code."""

    name: str
    address: Address
    code_hash: Digest


@dataclass(frozen=True)
class MemberStatus:
    """A member as the registry has it now; times in Unix seconds."""

    account: Account
    role: Role
    active: bool
    valid_from: int
    valid_to: int
    recipient_key: bytes
    certificate_digest: Digest


@dataclass(frozen=True)
class LedgerStatus:
    """What a ledger holds at its head; `head_timestamp` in Unix seconds."""

    source: str
    engine: str
    chain_id: int
    height: int
    head_hash: Digest
    head_timestamp: int
    contracts: tuple[ContractStatus, ...]
    members: tuple[MemberStatus, ...]
    escrow_open_wei: int
    escrow_balance_wei: int
    tasks: tuple[TaskTrace, ...]


def read_status(view: LedgerView) -> LedgerStatus:
    """Ask a ledger for everything that its status shows."""
    history, ledger = view.history, view.ledger
    head = history.block(history.head())
    return LedgerStatus(
        source=view.source,
        engine=str(history.rpc.call("web3_clientVersion")),
        chain_id=ledger.chain_id,
        height=head.number,
        head_hash=head.hash,
        head_timestamp=head.timestamp,
        contracts=tuple(
            ContractStatus(abi.name, address, code_hash(history.code(address)))
            for address, abi in history.contracts.items()
        ),
        members=tuple(_member(view, member, head.timestamp) for member in ledger.members()),
        escrow_open_wei=ledger.open_wei(),
        escrow_balance_wei=ledger.balance_wei(ledger.deployment.escrow),
        tasks=tuple(trace_tasks(view, history.events(0, head.number))),
    )


def _member(view: LedgerView, member: Member, at_seconds: int) -> MemberStatus:
    return MemberStatus(
        account=view.account(member.account),
        role=member.role,
        active=member.in_good_standing(at_seconds),
        valid_from=member.valid_from,
        valid_to=member.valid_to,
        recipient_key=member.recipient_key,
        certificate_digest=member.certificate_digest,
    )
