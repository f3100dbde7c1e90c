"""A member in matters of membership: it proposes, checks what others propose, votes, and leaves."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from consilia.crypto.custody import Opener
from consilia.errors import InputError, LedgerError, PolicyError
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import ApplicationFiled
from consilia.ledger.outbox import Outbox
from consilia.ledger.registry import Application, Kind, Proposal, Registry
from consilia.roles.keys import open_identities, open_signer
from consilia.roles.membership.requests import JoinRequest, check_application
from consilia.settings import load_party
from consilia.values import Address

WORDS = {
    Kind.ADMISSION: "admit",
    Kind.CHANGE: "change the record of",
    Kind.SUSPENSION: "suspend, until that is lifted,",
    Kind.EMERGENCY: "suspend at once, for 14 days,",
    Kind.LIFTING: "lift the suspension of",
    Kind.REMOVAL: "remove",
    Kind.QUORUM: "change the quorum",
}

HEARSAY_SECONDS = 10.0
"""Twice the time after which a node of the embedded chain asks its peers for what it missed."""


@dataclass(frozen=True)
class Outcome:
    """A proposal after one's vote; `was_new` says whether the vote was cast now or had been before."""

    proposal: Proposal
    was_new: bool


class Voter:
    """Works beside the member's running process: they share the outbox, and so the account's numbers."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.settings = load_party(home)
        self.deployment = Deployment.load(self.settings.ledger.deployment)
        self.reading = Ledger(self.settings.ledger.url, self.deployment)

    @property
    def registry(self) -> Registry:
        """The registry, for reading."""
        return self.reading.registry

    @cached_property
    def identity(self) -> Opener:
        """The member's secret encryption keys."""
        return open_identities(self.settings.keys)

    @cached_property
    def ledger(self) -> Ledger:
        """The ledger, for writing."""
        account = open_signer(self.settings.keys)
        self.address: Address = str(account.address)
        return Ledger(
            self.settings.ledger.url,
            self.deployment,
            account=account,
            outbox=Outbox(self.home / "outbox.sqlite"),
            confirmations=self.settings.ledger.depth,
            witnesses=self.settings.ledger.witnesses,
        )

    # Proposing

    def propose_request(self, request: JoinRequest) -> Outcome:
        """Propose what a join request asks for, after checking it; or vote for it if somebody did already.

        Raises:
            InputError: it is for another consortium.
            PolicyError: it was carried out, without this member's vote.
            VerificationError: it does not show that the applicant holds its recipient key.
        """
        place = (self.deployment.chain_id, self.deployment.registry)
        if request.founding or (request.chain_id, request.registry) != place:
            raise InputError(
                f"{request.name}'s request is for the registry {request.registry} on chain {request.chain_id}, "
                f"this consortium's is {place[1]} on chain {place[0]}: let it join with an invite of this one"
            )
        application, proofs = request.application(), bytes.fromhex(request.proofs)
        check_application(application, proofs, self.identity, *place)
        now = self._now()
        for proposal in self.registry.proposals():
            of_record = proposal.kind in (Kind.ADMISSION, Kind.CHANGE)
            if not of_record or not (proposal.enacted or proposal.is_open(now)):
                continue
            if self._application(proposal) == application:  # a record is carried out once
                return self.vote(proposal.proposal_id)
        signature, count = bytes.fromhex(request.signature), self._count()
        key = f"propose/application/{application.account}/{application.proofs_digest}/{count}"
        self.ledger.registry.propose_application(key, application, signature, proofs)
        return Outcome(self._newest(count), True)

    def propose(self, kind: Kind, subject: Address) -> Outcome:
        """Propose to suspend, lift or remove; or vote for it if somebody proposed the same already."""
        for proposal in self.open_proposals():
            if (proposal.kind, proposal.subject) == (kind, subject):
                return self.vote(proposal.proposal_id)
        count = self._count()
        self.ledger.registry.propose(f"propose/{kind.name}/{subject}/{count}", kind, subject)
        return Outcome(self._newest(count), True)

    def propose_quorum(self, percent: int, emergency_percent: int) -> Outcome:
        """Propose another quorum; or vote for it if somebody proposed the same already."""
        for proposal in self.open_proposals():
            if (proposal.percent, proposal.emergency_percent) == (percent, emergency_percent):
                return self.vote(proposal.proposal_id)
        count = self._count()
        key = f"propose/quorum/{percent}/{emergency_percent}/{count}"
        self.ledger.registry.propose_quorum(key, percent, emergency_percent)
        return Outcome(self._newest(count), True)

    # Voting

    def open_proposals(self) -> list[Proposal]:
        """What can be voted on now."""
        now = self._now()
        return [proposal for proposal in self.registry.proposals() if proposal.is_open(now)]

    def vote(self, proposal_id: int) -> Outcome:
        """Approve a proposal, after convincing oneself of an applicant's proofs.

        Raises:
            InputError: no proposal can have this number.
            PolicyError: it is decided or has expired.
            VerificationError: the applicant's proof does not convince this member.
        """
        proposal, ledger = self._proposal(proposal_id), self.ledger
        if self.registry.has_voted(proposal_id, self.address):
            return Outcome(proposal, False)
        if not proposal.is_open(self._now()):
            state = "was carried out" if proposal.enacted else "has expired"
            raise PolicyError(f"proposal {proposal_id} {state}: nothing is left to vote on")
        if proposal.kind in (Kind.ADMISSION, Kind.CHANGE):
            self._check_proofs(proposal)
        ledger.registry.vote(f"vote/{proposal_id}", proposal_id)
        return Outcome(self.registry.proposal(proposal_id), True)

    def describe(self, proposal: Proposal) -> str:
        """What a proposal would do, in words."""
        if proposal.kind is Kind.QUORUM:
            return (
                f"decide with more than {proposal.percent} % of the members, "
                f"and with more than {proposal.emergency_percent} % suspend one at once"
            )
        if proposal.kind not in (Kind.ADMISSION, Kind.CHANGE):
            return f"{WORDS[proposal.kind]} {proposal.subject}"
        record = self._application(proposal)
        if proposal.kind is Kind.ADMISSION:
            return f"admit {proposal.subject} as {record.role.name.lower()}"
        return f"change the record of {proposal.subject} to account {record.account}"

    def particulars(self, proposal: Proposal) -> dict[str, str]:
        """The whole record that an admission or a change would write: what people compare; nothing of it is cut."""
        if proposal.kind not in (Kind.ADMISSION, Kind.CHANGE):
            return {}
        record = self._application(proposal)
        return {
            "account": record.account,
            "role": record.role.name.lower(),
            "recipient_key": record.recipient_key.hex(),
            "certificate_digest": record.certificate_digest.hex(),
            "valid_from": day(record.valid_from),
            "valid_to": day(record.valid_to),
        }

    def give(self, proposal: Proposal, amount_wei: int) -> None:
        """Send a newcomer that was just admitted its first money for gas, once."""
        self.ledger.pay(f"gift/{proposal.proposal_id}", proposal.subject, amount_wei)

    def leave(self) -> None:
        """Leave the consortium; asked again, it is the same leaving, until the members admit the account once more."""
        ledger = self.ledger
        admissions = sum(
            proposal.enacted and proposal.kind is Kind.ADMISSION and proposal.subject == self.address
            for proposal in self.registry.proposals()
        )
        ledger.registry.leave(f"leave/{admissions}")

    def _application(self, proposal: Proposal) -> Application:
        return self.registry.application(proposal.proposal_id)

    def _check_proofs(self, proposal: Proposal) -> None:
        """The registry bound these proofs by their digest; the ledger alone is enough to check them."""
        for event in reversed(self.reading.events(self.deployment.block)):
            if isinstance(event, ApplicationFiled) and event.proposal_id == proposal.proposal_id:
                place = (self.deployment.chain_id, self.deployment.registry)
                check_application(self._application(proposal), event.proofs, self.identity, *place)
                return
        raise LedgerError(f"expected the application of proposal {proposal.proposal_id} among the events")

    def _proposal(self, proposal_id: int) -> Proposal:
        """A proposal by its number; this member's node may be about to hear of it."""
        if not 0 < proposal_id < 2**256:
            raise InputError(f"expected a proposal's number, as `network vote` shows it, got {proposal_id}")
        deadline = time.monotonic() + HEARSAY_SECONDS
        while proposal_id > self._count() and time.monotonic() < deadline:
            self.reading.wait(self.reading.confirmed_block().number, 1.0)
        return self.registry.proposal(proposal_id)

    def _now(self) -> int:
        """The ledger's time: whether a vote is still taken is for its clock to say."""
        return self.reading.confirmed_block().timestamp

    def _count(self) -> int:
        return self.registry.proposal_count()

    def _newest(self, count: int) -> Proposal:
        """The proposal that this member has just made: the last of its own after `count`."""
        own = [p for p in self.registry.proposals()[count:] if p.proposer == self.address]
        if not own:
            raise LedgerError("expected the new proposal on the ledger: look at it with `network vote`")
        return own[-1]


def day(seconds: int) -> str:
    """Unix seconds as a person reads them; what lies beyond the calendar as its last day."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(min(seconds, 253402300799)))
