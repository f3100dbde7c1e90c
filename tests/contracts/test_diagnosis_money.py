"""Whatever is called in what order: a wei of diagnosis.vy is held for one query or credited to one account."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import boa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from consilia.protocols.diagnosis import QueryState
from consilia.values import Digest
from tests.contracts.asking import BOND_WEI, DAY, PRICE_WEI, Asking
from tests.contracts.conftest import make_contracts

ASKED, ANSWERED, OPENED, PASSED, ACCEPTED, RELEASED, FAILED, STOPPED = QueryState


@dataclass
class Promise:
    """What docs/protocols/diagnosis.md promises of one query: its state, its deadline, how many matches are left."""

    deadline: int
    state: QueryState = ASKED
    matches: int = 0
    misplaced: int = 0
    """Matches whose boxes are in the wrong place."""

    @property
    def held_wei(self) -> int:
        if self.state.over:
            return 0
        return PRICE_WEI + (BOND_WEI if self.state >= ANSWERED else 0)


class DiagnosisMachine(RuleBasedStateMachine):
    """Several queries, calls in any order, lawful or not. Of four audit images three must match."""

    def __init__(self) -> None:
        super().__init__()
        self._env = boa.swap_env(boa.Env())
        self._env.__enter__()
        boa.env.evm.patch.code_size_limit = 24_576
        self.queries: dict[Digest, Promise] = {}
        self.credit_wei = {"hospital": 0, "server": 0}
        self.paid_in_wei = self.fetched_wei = 0

    def teardown(self) -> None:
        self._env.__exit__(None, None, None)

    @initialize()
    def deploy(self) -> None:
        self.asking = Asking(make_contracts())
        self.asking.offer()

    @rule()
    def ask(self) -> None:
        self.queries[self.asking.ask()] = Promise(self.asking.now + DAY)
        self.paid_in_wei += PRICE_WEI

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), wrong=st.integers(0, 2), misplaced=st.integers(0, 2))
    def answer(self, data: st.DataObject, wrong: int, misplaced: int) -> None:
        query_id, query = self.any_query(data)
        lawful = query.state is ASKED and not self.late(query)
        if self.goes(lawful, lambda: self.asking.answer(query_id, wrong, misplaced)):
            own, answer = self.asking.asked[query_id], self.asking.answers[query_id]
            equal = [j for j in own.audits if answer.answer(j) == own.label(j)]
            query.matches = len(equal)
            query.misplaced = sum(answer.reports[j] != own.images[j].truth for j in equal)
            self.paid_in_wei += BOND_WEI
            self.move(query, ANSWERED)

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), by_server=st.booleans())
    def step_back(self, data: st.DataObject, by_server: bool) -> None:
        query_id, query = self.any_query(data)
        contract = self.asking.diagnosis
        call, sender = (
            (contract.refuse, self.asking.server) if by_server else (contract.decline, self.asking.hospital)
        )
        lawful = query.state is (ASKED if by_server else ANSWERED)
        if self.goes(lawful, lambda: call(query_id, "", sender=sender)):
            self.close(query, STOPPED, PRICE_WEI, 0 if by_server else BOND_WEI)

    @precondition(lambda self: self.queries)
    @rule(data=st.data())
    def open_audit(self, data: st.DataObject) -> None:
        query_id, query = self.any_query(data)
        lawful = query.state is ANSWERED and not self.late(query)
        if self.goes(lawful, lambda: self.asking.open_audit(query_id)):
            self.move(query, OPENED)

    @precondition(lambda self: self.asking.answers)
    @rule(data=st.data())
    def score(self, data: st.DataObject) -> None:
        query_id, query = self.answered_query(data)
        lawful = query.state is OPENED and not self.late(query)
        if self.goes(lawful, lambda: self.asking.score(query_id)):
            self.move(query, PASSED)
            if query.matches < 3:
                self.close(query, FAILED, PRICE_WEI, BOND_WEI)

    @precondition(lambda self: self.asking.answers)
    @rule(data=st.data())
    def challenge(self, data: st.DataObject) -> None:
        query_id, query = self.answered_query(data)
        own, answer = self.asking.asked[query_id], self.asking.answers[query_id]
        apart = [j for j in own.audits if answer.answer(j) == own.label(j)
                 and answer.reports[j] != own.images[j].truth]  # fmt: skip
        position = data.draw(st.sampled_from(apart or own.audits))
        done = query.misplaced < len(apart) and position in apart[: len(apart) - query.misplaced]
        lawful = query.state is PASSED and not self.late(query) and bool(apart) and not done
        if lawful:
            position = apart[len(apart) - query.misplaced] if query.misplaced else position
            lawful = query.misplaced > 0
        if self.goes(lawful, lambda: self.asking.challenge(query_id, position)):
            query.matches, query.misplaced = query.matches - 1, query.misplaced - 1
            if query.matches < 3:
                self.close(query, FAILED, PRICE_WEI, BOND_WEI)

    @precondition(lambda self: self.queries)
    @rule(data=st.data())
    def accept(self, data: st.DataObject) -> None:
        query_id, query = self.any_query(data)
        lawful = query.state is PASSED and not self.late(query)
        if self.goes(lawful, lambda: self.asking.accept(query_id)):
            self.move(query, ACCEPTED)

    @precondition(lambda self: self.asking.answers)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        query_id, query = self.answered_query(data)
        in_window = query.state is PASSED and query.deadline <= self.asking.now < query.deadline + DAY
        lawful = in_window or (query.state is ACCEPTED and not self.late(query))
        if self.goes(lawful, lambda: self.asking.release(query_id)):
            self.close(query, RELEASED, 0, PRICE_WEI + BOND_WEI)

    @precondition(lambda self: self.queries)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        query_id, query = self.any_query(data)
        end = query.deadline + (DAY if query.state is PASSED else 0)
        lawful = not query.state.over and self.asking.now >= end
        bond_wei = 0 if query.state is ASKED else BOND_WEI
        paid = query.state is ANSWERED
        if self.goes(lawful, lambda: self.asking.diagnosis.expire(query_id)):
            everything = PRICE_WEI + bond_wei
            self.close(query, STOPPED, 0 if paid else everything, everything if paid else 0)

    @rule(name=st.sampled_from(["hospital", "server"]))
    def claim(self, name: str) -> None:
        address = getattr(self.asking, name)
        before = boa.env.get_balance(address)
        if self.goes(self.credit_wei[name] > 0, lambda: self.asking.diagnosis.claim(sender=address)):
            assert boa.env.get_balance(address) == before + self.credit_wei[name]
            self.fetched_wei += self.credit_wei[name]
            self.credit_wei[name] = 0

    @rule(seconds=st.sampled_from([1, DAY // 2, DAY]))
    def wait(self, seconds: int) -> None:
        self.asking.let_pass(seconds)

    @invariant()
    def every_wei_has_one_place(self) -> None:
        if not hasattr(self, "asking"):
            return
        owed_wei = sum(query.held_wei for query in self.queries.values()) + sum(self.credit_wei.values())
        assert owed_wei == self.asking.diagnosis.open_wei() == self.asking.balance()
        assert owed_wei + self.fetched_wei == self.paid_in_wei
        assert self.asking.credits() == (self.credit_wei["hospital"], self.credit_wei["server"])

    @invariant()
    def every_query_stands_where_it_was_promised(self) -> None:
        for query_id, query in self.queries.items():
            record = self.asking.record(query_id)
            assert record.state == query.state
            assert query.state < PASSED or query.state is STOPPED or record.matches == query.matches
            assert query.state.over or record.deadline == query.deadline

    def any_query(self, data: st.DataObject) -> tuple[Digest, Promise]:
        query_id = data.draw(st.sampled_from(sorted(self.queries)))
        return query_id, self.queries[query_id]

    def answered_query(self, data: st.DataObject) -> tuple[Digest, Promise]:
        query_id = data.draw(st.sampled_from(sorted(self.asking.answers)))
        return query_id, self.queries[query_id]

    def late(self, query: Promise) -> bool:
        return self.asking.now >= query.deadline

    def goes(self, lawful: bool, call: Callable[[], None]) -> bool:
        if lawful:
            call()
            return True
        with boa.reverts():
            call()
        return False

    def move(self, query: Promise, state: QueryState) -> None:
        assert state > query.state
        query.state, query.deadline = state, self.asking.now + DAY

    def close(self, query: Promise, state: QueryState, hospital_wei: int, server_wei: int) -> None:
        assert hospital_wei + server_wei == query.held_wei and state > query.state
        query.state = state
        self.credit_wei["hospital"] += hospital_wei
        self.credit_wei["server"] += server_wei


TestDiagnosisMachine = DiagnosisMachine.TestCase
TestDiagnosisMachine.settings = settings(
    max_examples=12, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
