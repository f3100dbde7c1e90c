"""The registry for a member: applications, proposals and votes as typed calls (contracts/registry.vy)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any

from consilia.crypto.custody import Signer
from consilia.errors import LedgerError
from consilia.ledger.sender import Included, Receipt
from consilia.ledger.signing import sign_message
from consilia.ledger.views import Member
from consilia.values import Address, Digest, Role

if TYPE_CHECKING:
    from eth_account.messages import SignableMessage

NOBODY: Address = "0x" + "00" * 20
MAX_PAGE = 64
MAX_PROOFS_BYTES = 5120
"""As many as registry.vy takes."""

# Gas: a proposal's vote may decide it, and the count then reads each voter's record.
PROPOSE_GAS, PROOF_BYTE_GAS = 1_000_000, 60
VOTE_GAS, VOTER_GAS = 600_000, 12_000
LEAVE_GAS = 300_000

APPLICATION_TYPE = [
    {"name": "account", "type": "address"},
    {"name": "recipientKey", "type": "bytes32"},
    {"name": "role", "type": "uint8"},
    {"name": "certificateDigest", "type": "bytes32"},
    {"name": "validFrom", "type": "uint256"},
    {"name": "validTo", "type": "uint256"},
    {"name": "replaces", "type": "address"},
    {"name": "proofsDigest", "type": "bytes32"},
]


class Kind(IntEnum):
    """What a proposal would do; the numbers are those of contracts/registry.vy."""

    ADMISSION = 1
    CHANGE = 2
    SUSPENSION = 3
    EMERGENCY = 4
    LIFTING = 5
    REMOVAL = 6
    QUORUM = 7


@dataclass(frozen=True)
class Application:
    """The record that somebody asks to be listed with; the fields are in the contract's order.

    `replaces` is the member whose record this becomes (NOBODY for a newcomer), `proofs_digest` the SHA-256 of the
    proofs that the applicant holds the recipient key; times are Unix seconds.
    """

    account: Address
    recipient_key: bytes
    role: Role
    certificate_digest: Digest
    valid_from: int
    valid_to: int
    replaces: Address
    proofs_digest: Digest

    def message(self, chain_id: int, registry: Address) -> SignableMessage:
        """What the applicant signs (EIP-712); worth nothing on another chain or registry."""
        from eth_account.messages import encode_typed_data

        return encode_typed_data(
            domain_data={
                "name": "Consilia registry",
                "version": "1",
                "chainId": chain_id,
                "verifyingContract": registry,
            },
            message_types={"Application": APPLICATION_TYPE},
            message_data=dict(zip((f["name"] for f in APPLICATION_TYPE), astuple(self), strict=True)),
        )

    def sign(self, account: Signer, chain_id: int, registry: Address) -> bytes:
        """The applicant's consent, and the proof that it holds its account: 65 bytes (r, s, v)."""
        return sign_message(account, self.message(chain_id, registry))


@dataclass(frozen=True)
class Proposal:
    """What is voted on; `subject` is NOBODY for a quorum, percentages are 0 for all other kinds."""

    proposal_id: int
    kind: Kind
    proposer: Address
    subject: Address
    percent: int
    emergency_percent: int
    expires_at: int
    enacted: bool
    approvals: int
    needed: int

    def is_open(self, now_seconds: int) -> bool:
        """Whether votes are still taken at a Unix time."""
        return not self.enacted and now_seconds < self.expires_at


Read = Callable[..., Any]
Write = Callable[..., Included]


class Registry:
    """The registry through one ledger client; `Ledger.registry` makes it."""

    def __init__(self, read: Read, write: Write) -> None:
        self._read = read
        self._write = write

    # Writes; each returns once its block is confirmed

    def propose_application(
        self, key: str, application: Application, signature: bytes, proofs: bytes
    ) -> Receipt:
        """Propose a newcomer, or a new record for a member; the proposer's own vote is in it."""
        gas = self._deciding_gas(PROPOSE_GAS + PROOF_BYTE_GAS * len(proofs))
        arguments = (astuple(application), signature, proofs)
        return self._write(key, "registry", "propose_application", arguments, gas).receipt

    def propose(self, key: str, kind: Kind, subject: Address) -> Receipt:
        """Propose to suspend a member (at once for a while, or for good), to lift that, or to remove it."""
        gas = self._deciding_gas(PROPOSE_GAS)
        return self._write(key, "registry", "propose", (int(kind), subject), gas).receipt

    def propose_quorum(self, key: str, percent: int, emergency_percent: int) -> Receipt:
        """Propose that decisions need more than these parts of the members."""
        gas = self._deciding_gas(PROPOSE_GAS)
        return self._write(key, "registry", "propose_quorum", (percent, emergency_percent), gas).receipt

    def vote(self, key: str, proposal_id: int) -> Receipt:
        """Approve a proposal; the vote that makes the quorum carries it out."""
        return self._write(key, "registry", "vote", (proposal_id,), self._deciding_gas(VOTE_GAS)).receipt

    def enact(self, key: str, proposal_id: int) -> Receipt:
        """Carry out a proposal that has had enough votes since the quorum or the members changed."""
        return self._write(key, "registry", "enact", (proposal_id,), self._deciding_gas(VOTE_GAS)).receipt

    def leave(self, key: str) -> Receipt:
        """Leave the consortium at once."""
        return self._write(key, "registry", "leave", (), LEAVE_GAS).receipt

    # Reads, at the head

    def is_active(self, account: Address, role: Role) -> bool:
        """Whether an account may act in a role now."""
        return bool(self._read("registry", "is_active", account, int(role)))

    def has_left(self, account: Address) -> bool:
        """Whether an account left of its own accord, at a time when it might have acted."""
        return bool(self._read("registry", "has_left", account))

    def members(self) -> list[Member]:
        """All accounts that were ever admitted, in that order."""
        members: list[Member] = []
        while page := self._read("registry", "members", len(members), MAX_PAGE):
            members += [Member.of(record) for record in page]
        return members

    def quorum_percent(self) -> tuple[int, int]:
        """More than the first part of the electorate decides, more than the second suspends at once."""
        return int(self._read("registry", "percent")), int(self._read("registry", "emergency_percent"))

    def electorate(self) -> int:
        """How many members the quorum is a part of: those that are not suspended for good."""
        return int(self._read("registry", "electorate"))

    def proposals(self) -> list[Proposal]:
        """All proposals, the oldest first."""
        return [self.proposal(number) for number in range(1, self.proposal_count() + 1)]

    def proposal_count(self) -> int:
        """How many proposals there ever were; they are numbered from 1."""
        return int(self._read("registry", "proposal_count"))

    def proposal(self, proposal_id: int) -> Proposal:
        """A proposal with its tally as of now.

        Raises:
            LedgerError: there is none of this id.
        """
        record = self._read("registry", "proposal", proposal_id)
        if record["kind"] == 0:
            raise LedgerError(f"expected a proposal with id {proposal_id}; there is none")
        tally = self._read("registry", "tally", proposal_id)
        return Proposal(**(record | tally | {"proposal_id": proposal_id, "kind": Kind(record["kind"])}))

    def application(self, proposal_id: int) -> Application:
        """The record that an ADMISSION or a CHANGE would list."""
        record = self._read("registry", "application", proposal_id)
        digests = {name: Digest(record[name]) for name in ("certificate_digest", "proofs_digest")}
        return Application(**(record | digests | {"role": Role(record["role"])}))

    def has_voted(self, proposal_id: int, account: Address) -> bool:
        """Whether an account has approved a proposal."""
        return bool(self._read("registry", "has_voted", proposal_id, account))

    def _deciding_gas(self, gas: int) -> int:
        return gas + VOTER_GAS * self.electorate()
