"""Votes under arbitrary calls by everybody, at any time, against a model of what the rules say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import boa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consilia.ledger.registry import Kind
from tests.contracts.voting import EMERGENCY_SECONDS, FOR_GOOD, PAUSE_SECONDS, VOTE_SECONDS, Town, town, wait

MEMBERS = 6
member = st.integers(0, MEMBERS - 1)
KINDS = [Kind.SUSPENSION, Kind.EMERGENCY, Kind.LIFTING, Kind.REMOVAL]


@dataclass
class Ballot:
    """What the machine itself knows of a proposal."""

    kind: Kind
    subject: int
    expires_at: int
    percent: int = 0
    voters: set[int] = field(default_factory=set)
    enacted: bool = False


class VotesMachine(RuleBasedStateMachine):
    """Every call is tried by everybody; a refused one changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._env = boa.swap_env(boa.Env())
        self._env.__enter__()

    def teardown(self) -> None:
        self._env.__exit__(None, None, None)

    @initialize()
    def found(self) -> None:
        self.town: Town = town(MEMBERS - 1)
        self.ballots: dict[int, Ballot] = {}
        self.percent = (50, 25)

    # What the rules say, from the registry's public records alone

    def now(self) -> int:
        return int(boa.env.evm.patch.timestamp)

    def records(self) -> list[Any]:
        """All members' records, gone ones too, in one call: they come in the order of admission."""
        records = list(self.town.registry.members(0, 64))
        assert len(records) == len(self.town.keys)
        return records

    def able(self) -> set[int]:
        records = self.records()
        return {n for n, r in enumerate(records) if r.status == 1 and r.suspended_until <= self.now()}

    def electorate(self) -> int:
        records = self.records()
        return sum(r.status == 1 and r.suspended_until != FOR_GOOD for r in records)

    def needed(self, ballot: Ballot) -> int:
        ordinary = self.electorate() * self.percent[0] // 100 + 1
        if ballot.kind is Kind.EMERGENCY:
            return min(ordinary, max(2, self.electorate() * self.percent[1] // 100 + 1))
        if ballot.kind is Kind.QUORUM:
            return max(ordinary, self.electorate() * ballot.percent // 100 + 1)
        return ordinary

    def cast(self, proposal_id: int, voter: int, able: set[int], needed: int) -> None:
        """The model after a vote that the contract took."""
        ballot = self.ballots[proposal_id]
        assert voter in able and voter not in ballot.voters
        assert not ballot.enacted and self.now() < ballot.expires_at
        ballot.voters.add(voter)
        enacted = self.town.registry.proposal(proposal_id).enacted
        assert enacted == (len(ballot.voters & able) >= needed)
        self.settle(ballot, enacted)

    def settle(self, ballot: Ballot, enacted: bool) -> None:
        ballot.enacted = enacted
        if enacted and ballot.kind is Kind.QUORUM:
            self.percent = (self.town.registry.percent(), self.town.registry.emergency_percent())
            assert self.percent[0] == ballot.percent

    @rule(kind=st.sampled_from(KINDS), subject=member, by=member)
    def propose(self, kind: Kind, subject: int, by: int) -> None:
        able, number = self.able(), int(self.town.registry.proposal_count()) + 1
        seconds = 2 * 86400 if kind is Kind.EMERGENCY else VOTE_SECONDS
        ballot = Ballot(kind, subject, self.now() + seconds)
        needed = self.needed(ballot)
        try:
            assert self.town.propose(kind, subject, by) == number
        except boa.BoaError:
            assert int(self.town.registry.proposal_count()) == number - 1
            return
        self.ballots[number] = ballot
        self.cast(number, by, able, needed)

    @rule(percent=st.sampled_from([49, 50, 60, 80, 99]), by=member)
    def propose_quorum(self, percent: int, by: int) -> None:
        able, number = self.able(), int(self.town.registry.proposal_count()) + 1
        ballot = Ballot(Kind.QUORUM, -1, self.now() + VOTE_SECONDS, percent)
        needed = self.needed(ballot)
        try:
            self.town.registry.propose_quorum(percent, 25, sender=self.town.address(by))
        except boa.BoaError:
            return
        assert 50 <= percent < 100
        self.ballots[number] = ballot
        self.cast(number, by, able, needed)

    @precondition(lambda self: self.ballots)
    @rule(data=st.data(), by=member)
    def vote(self, data: st.DataObject, by: int) -> None:
        proposal_id = data.draw(st.sampled_from(sorted(self.ballots)[-4:]))
        able, needed = self.able(), self.needed(self.ballots[proposal_id])
        before = self.town.registry.tally(proposal_id)
        try:
            self.town.vote(proposal_id, by)
        except boa.BoaError:
            assert self.town.registry.tally(proposal_id) == before
            return
        self.cast(proposal_id, by, able, needed)

    @precondition(lambda self: self.ballots)
    @rule(data=st.data())
    def enact(self, data: st.DataObject) -> None:
        proposal_id = data.draw(st.sampled_from(sorted(self.ballots)[-4:]))
        ballot, able = self.ballots[proposal_id], self.able()
        needed = self.needed(ballot)
        try:
            self.town.registry.enact(proposal_id, sender=self.town.address(0))
        except boa.BoaError:
            return
        assert not ballot.enacted and self.now() < ballot.expires_at
        assert len(ballot.voters & able) >= needed
        self.settle(ballot, True)

    @rule(by=member)
    def leave(self, by: int) -> None:
        address = self.town.address(by)
        in_good_standing = self.town.registry.in_good_standing(address)
        try:
            self.town.registry.leave(sender=address)
        except boa.BoaError:
            return
        left, removed = 3, 2  # who is suspended does not get away by leaving
        assert self.town.registry.member(address).status == (left if in_good_standing else removed)

    @rule(seconds=st.sampled_from([1, 86400, 86400, EMERGENCY_SECONDS, PAUSE_SECONDS]))
    def wait(self, seconds: int) -> None:
        wait(seconds)

    @invariant()
    def the_next_decision_can_be_reached(self) -> None:
        if hasattr(self, "town"):
            electorate = self.electorate()
            assert self.town.registry.electorate() == electorate
            able = self.able()
            assert len(able) >= electorate * self.percent[0] // 100 + 1
            assert able & set(range(1, MEMBERS))  # and somebody can mine
            for proposal_id, ballot in self.ballots.items():
                assert bool(self.town.registry.proposal(proposal_id).enacted) == ballot.enacted


TestVotesMachine = VotesMachine.TestCase
TestVotesMachine.settings = settings(
    max_examples=10, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
