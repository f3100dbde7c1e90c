"""Phases never go back: a task under arbitrary calls by everybody, at any time."""

from __future__ import annotations

from typing import Any

import boa
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from consilia.ledger.views import Phase
from tests.contracts.conftest import (
    DIGEST,
    ENROL_SECONDS,
    HOSPITALS,
    OTHER_ROOT,
    REWARD_WEI,
    ROOT,
    ROUND_SECONDS,
    make_contracts,
)

LAWFUL = {
    Phase.ENROLLING: {Phase.ENROLLING, Phase.TRAINING, Phase.DEAD},
    Phase.TRAINING: {Phase.TRAINING, Phase.FINISHED, Phase.DEAD},
    Phase.FINISHED: {Phase.FINISHED},
    Phase.DEAD: {Phase.DEAD},
}
GRACE_SECONDS = 3 * 86400
party = st.integers(0, HOSPITALS + 1)  # the server, the hospitals, a stranger
some_round = st.integers(0, 2)


class PhasesMachine(RuleBasedStateMachine):
    """Every call is tried by every party; a refused one must change nothing."""

    def __init__(self) -> None:
        super().__init__()
        self._env = boa.swap_env(boa.Env())
        self._env.__enter__()

    def teardown(self) -> None:
        self._env.__exit__(None, None, None)

    @initialize()
    def publish(self) -> None:
        self.contracts = make_contracts()
        self.parties = [self.contracts.server, *self.contracts.hospitals, self.contracts.stranger]
        self.task_id = self.contracts.publish()
        self.before = self.state()
        self.progress = 0
        self.updates: set[tuple[str, int]] = set()

    def state(self) -> Any:
        return self.contracts.training.task(self.task_id)

    def attempt(self, function: str, *arguments: Any, sender: int) -> bool:
        before = self.state()
        try:
            getattr(self.contracts.training, function)(*arguments, sender=self.parties[sender])
        except boa.BoaError:
            assert self.state() == before
            return False
        return True

    @rule(sender=party)
    def enrol(self, sender: int) -> None:
        if self.attempt("enrol", self.task_id, sender=sender):
            assert self.before.phase == Phase.ENROLLING and 1 <= sender <= HOSPITALS

    @rule(sender=st.sampled_from([0, 0, 0, 1]), hospital=st.integers(1, HOSPITALS))
    def issue_key(self, sender: int, hospital: int) -> None:
        if self.attempt("issue_keys", self.task_id, [self.parties[hospital]], [ROOT], sender=sender):
            assert sender == 0 and self.before.phase == Phase.ENROLLING

    @rule(sender=st.sampled_from([0, 0, 0, 1]))
    def start(self, sender: int) -> None:
        if self.attempt("start", self.task_id, ROOT, 1, ROOT, 1, DIGEST, sender=sender):
            assert sender == 0 and self.before.enrolled >= self.before.quorum

    @rule(sender=party, round_index=some_round)
    def register(self, sender: int, round_index: int) -> None:
        arguments = (self.task_id, round_index, ROOT, OTHER_ROOT, 1, 1, DIGEST)
        if self.attempt("register_update", *arguments, sender=sender):
            update = (self.parties[sender], round_index)
            assert update not in self.updates  # once a round
            self.updates.add(update)
            assert round_index == self.before.round_index

    @rule(
        sender=st.sampled_from([0, 0, 0, 1]), round_index=some_round, included=st.sampled_from([3, 1, 7, 15])
    )
    def close(self, sender: int, round_index: int, included: int) -> None:
        judged = (
            self.contracts.training.trails(self.task_id, max(self.before.registered, 1) - 1),
            self.before.registered,
        )
        arguments = (
            self.task_id,
            round_index,
            *judged,
            [included, 0],
            ROOT,
            1,
            DIGEST,
            OTHER_ROOT,
            1,
            DIGEST,
        )
        if self.attempt("close_round", *arguments, sender=sender):
            assert sender == 0 and round_index == self.before.round_index
            assert included.bit_count() >= self.before.quorum

    @rule(sender=party)
    def abort(self, sender: int) -> None:
        if self.attempt("abort", self.task_id, sender=sender):
            assert boa.env.evm.patch.timestamp >= self.before.deadline

    @rule(sender=st.sampled_from([0, 0, 1]), hospital=st.integers(1, HOSPITALS))
    def settle(self, sender: int, hospital: int) -> None:
        if self.attempt("settle", self.task_id, [self.parties[hospital]], [REWARD_WEI // 4], sender=sender):
            assert self.before.phase in (Phase.FINISHED, Phase.DEAD)

    @rule(seconds=st.sampled_from([1, 1, ROUND_SECONDS, ENROL_SECONDS, GRACE_SECONDS]))
    def wait(self, seconds: int) -> None:
        boa.env.evm.patch.timestamp += seconds

    @invariant()
    def phases_and_rounds_never_go_back(self) -> None:
        if not hasattr(self, "before"):
            return
        task = self.state()
        assert Phase(task.phase) in LAWFUL[Phase(self.before.phase)]
        assert task.round_index >= self.before.round_index and task.updates >= self.before.updates
        assert task.round_index < task.rounds and task.updates == len(self.updates)
        assert boa.env.get_balance(self.contracts.escrow.address) == REWARD_WEI  # nobody fetched any
        self.before = task


TestPhases = PhasesMachine.TestCase
TestPhases.settings = settings(
    max_examples=12, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
