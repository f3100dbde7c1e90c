"""The server: publishes a task, issues task keys, aggregates round by round, pays (docs/protocols/training.md)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from consilia.crypto.key_string import seal_key_string
from consilia.crypto.keys import Identity
from consilia.errors import (
    HistoryChangedError,
    HomeError,
    TaskFailedError,
    TransactionRevertedError,
)
from consilia.federation.aggregate import WeightedUpdate
from consilia.federation.contribution import shares_by_samples
from consilia.federation.rules import next_global_model
from consilia.ledger.events import UpdateRegistered
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import (
    Decision,
    RoundClock,
    decide_round,
    to_bitmap,
)
from consilia.roles.artifacts import file_digest, publish_artifact
from consilia.roles.diagnosis.answering import Answering
from consilia.roles.diagnosis.diagnoser import offered_models, task_id_of
from consilia.roles.lock import alone_within
from consilia.roles.party import Party, key_holders
from consilia.roles.progress import Report
from consilia.roles.state import SealedArtifact
from consilia.roles.training.initial_model import InitialModel, with_initial_model
from consilia.roles.training.opening import Opening
from consilia.roles.training.recovery import fetch_last_models, require_start
from consilia.roles.training.rounds import (
    Closing,
    Examined,
    report_round,
    rule_of,
    samples_included,
)
from consilia.roles.training.task_log import RoundLog, TaskLog
from consilia.settings import ServerSettings
from consilia.values import Address, Digest

OVERTAKEN = ("training: task keys missing", "training: task key already issued")
"""How the contract refuses what was decided before the newest enrolment was confirmed."""

OTHER_UPDATES = "training: other updates than judged"
HANDOVER_SECONDS = 10.0
"""How long to wait for another process of this home that is ending."""


def _group_name(hospitals: Iterable[Address]) -> str:
    """Names a deed by whom it is for: done again for others, it is another deed."""
    return str(Digest.of(",".join(sorted(hospitals)).encode()))[:16]


def _closing_name(task_id: int, round_index: int) -> str:
    return f"closing/{task_id}/{round_index}"


class Server(Party):
    """Runs tasks. Whatever it does is decided by the ledger and its state, so it may be killed at any point."""

    settings: ServerSettings

    def __init__(self, home: Path, settings: ServerSettings, report: Report) -> None:
        super().__init__(home, settings, report)
        self.settings = settings
        self._opening = Opening(self, self._model_path)
        self.answering: Answering | None = None

    def follow(self, every_block: bool = False) -> Iterator[dict[int, TaskLog]]:
        """The tasks whenever the ledger moves; what is asked of this server's models is answered in between."""
        for tasks in super().follow(every_block):
            if self.answering is not None:
                self.answering.advance()
            yield tasks

    def offer_models(self, awaiting: bool = False) -> Answering:
        """Put the models of the settings onto the ledger; from now on `follow` answers queries.

        Args:
            awaiting: pass over models of tasks that have not ended.

        Raises:
            SettingsError: a model of the settings is not there.
        """
        section = self.settings.diagnosis
        self.answering = None
        tasks = self.tasks()
        offered = [task_id_of(offer.task, tasks) for offer in section.offers if offer.task is not None]
        own = [tasks[task_id] for task_id in offered if task_id and self.state.fact(f"models/{task_id}")]
        fetch_last_models(self, own, self._model_path)
        models = offered_models(section.offers, self.home, self.state, tasks, awaiting)
        self.answering = Answering(self, models, section.answer_seconds)
        self.answering.offer()
        return self.answering

    def await_history(self, wait_seconds: float) -> None:
        """Wait until the ledger tells of the tasks whose models the settings offer.

        A node that starts beside this server tells nothing until its neighbours agree with it.
        """
        wanted = [offer.task for offer in self.settings.diagnosis.offers if offer.task is not None]
        deadline, told = time.monotonic() + wait_seconds, False
        while True:
            try:
                for tasks in super().follow():
                    if all(task_id_of(number, tasks) for number in wanted) or time.monotonic() >= deadline:
                        return
                    if not told:
                        self.report("waiting for the ledger to tell of the tasks of the offers")
                    told = True
            except HistoryChangedError:
                continue

    def serve(self) -> None:
        """Answer queries until stopped."""
        self.offer_models()
        while True:
            try:
                for _ in self.follow():
                    pass
            except HistoryChangedError:
                continue  # what was concluded is asked of the ledger again

    def run_task(self, spec: TaskSpec, initial_model: InitialModel) -> TaskLog:
        """Take a task from publication to the last payment; called again, it goes on where it was.

        Raises:
            TaskFailedError: too few hospitals enrolled, or a round ended below its quorum.
            HomeError: another process of this home is at this task.
        """
        with alone_within(self.work(f"task-{Digest.of(spec.to_bytes())}.lock"), HANDOVER_SECONDS) as held:
            if not held:
                raise HomeError("another process of this home runs this task; let it, or end it first")
            return self._run_to_the_end(spec, initial_model)

    def _run_to_the_end(self, spec: TaskSpec, initial_model: InitialModel) -> TaskLog:
        while True:
            try:
                return self._run_once(spec, initial_model)
            except HistoryChangedError:
                continue
            except TransactionRevertedError:
                if not self._history_has_changed():  # the refusal may be older news than the log has
                    raise

    def history_changed(self) -> None:
        """Begin again: whatever was done is on the ledger, or in the outbox, or not done."""
        raise HistoryChangedError("the ledger's history has changed")

    def _history_has_changed(self) -> bool:
        try:
            self.tasks()
        except HistoryChangedError:
            return True
        return False

    def _run_once(self, spec: TaskSpec, initial_model: InitialModel) -> TaskLog:
        task_id = self._publish(spec, initial_model)
        self._enrol(task_id)
        self._start(task_id)
        for round_index in range(self._task(task_id).published.rounds):
            self._run_round(task_id, round_index)
        self._reward(task_id)
        self.clear_work(task_id)
        return self._task(task_id)

    # Step 0: publish

    def prepare(self, spec: TaskSpec, initial_model: InitialModel) -> TaskSpec:
        """Write w_0, for which no ledger is needed, and complete the spec with its digest.

        Raises:
            SpecError: the initial model is not what the spec says.
            WeightsError: no hospital could read it.
        """
        return with_initial_model(spec, self._models(spec), initial_model)

    def _models(self, spec: TaskSpec) -> Path:
        return self.home / "models" / str(spec.digest)[:16]

    def _publish(self, spec: TaskSpec, initial_model: InitialModel) -> int:
        draft, complete = f"publish/{spec.digest}", self.prepare(spec, initial_model)
        terms = complete.terms
        task_id = self.ledger.publish_task(
            draft,
            complete.to_bytes(),
            rounds=complete.training.rounds,
            quorum=terms.quorum,
            max_hospitals=terms.max_hospitals,
            enrol_seconds=terms.enrol_seconds,
            round_seconds=terms.round_seconds,
            reward_wei=terms.reward_wei,
        )
        self.state.remember(f"models/{task_id}", self._models(spec).name)
        self.report("published", task_id=task_id, spec_digest=str(complete.digest), title=spec.title)
        return task_id

    # Step 1: enrolment and task keys

    def _enrol(self, task_id: int) -> None:
        for tasks in self.follow():
            task = tasks.get(task_id)
            if task is None:
                continue
            self._refuse_dead(task)
            terms = task.spec.terms
            over = time.time() >= task.published.enrol_deadline
            if task.started or len(task.enrolled) >= terms.max_hospitals:
                return
            if over and len(task.enrolled) >= terms.quorum:
                return
            if over:
                self._abort(task)

    def _abort(self, task: TaskLog) -> None:
        """Declare a task dead; the log will tell, also where somebody else was faster.

        Raises:
            TaskFailedError: the contract waits, because enough updates came, though too few of them are usable.
        """
        try:
            self.ledger.abort(f"abort/{task.task_id}", task.task_id)
        except TransactionRevertedError as error:
            current = task.open_round
            if (
                error.reason == "training: still alive"
                and current
                and len(current.updates) >= task.published.quorum
            ):
                raise TaskFailedError(
                    f"round {current.opened.round_index} of task {task.task_id} cannot be closed: too many of its "
                    f"{len(current.updates)} updates were rejected. The ledger lets the task end days after the "
                    "deadline; run this again then, and the rest of the reward comes back"
                ) from error
            # else the newest block's clock is behind ours, or the task is dead already

    def _start(self, task_id: int) -> None:
        """Issue the task keys and open round 0."""
        for tasks in self.follow():
            if task_id not in tasks:
                continue
            self._refuse_dead(tasks[task_id])
            if tasks[task_id].started:
                return
            try:
                return self._start_with_enrolled(tasks[task_id])
            except TransactionRevertedError as error:
                if error.reason not in OVERTAKEN:
                    raise  # otherwise somebody enrolled in a block that is confirmed only now

    def _start_with_enrolled(self, task: TaskLog) -> None:
        task_id = task.task_id
        known = self.state.task_keys(task_id)
        fresh = {
            hospital: Identity.generate().secret_bytes for hospital in task.enrolled if hospital not in known
        }
        self.state.keep_task_keys(task_id, fresh)  # before the ledger hears of them
        kept = self.state.task_keys(task_id)
        keys = {hospital: Identity.from_bytes(kept[hospital]) for hospital in task.enrolled}
        unissued = {h: key.recipient for h, key in keys.items() if h not in task.task_keys}
        if unissued:
            self.ledger.issue_keys(f"keys/{task_id}/{_group_name(unissued)}", task_id, unissued)
        task = self._task(task_id)
        key_string = self._seal_keys(task, keys)
        model_digest = file_digest(self._model_path(task, 0))
        model = self._publish_model(task, 0, model_digest)
        self.ledger.start_task(
            f"start/{task_id}/{_group_name(keys)}",
            task_id,
            key_string_root=key_string.root,
            key_string_size=key_string.size,
            model_root=model.root,
            model_size=model.size,
            model_digest=model_digest,
        )
        self.report("started", task_id=task_id, hospitals=len(keys), key_string_bytes=key_string.size)

    def _seal_keys(self, task: TaskLog, keys: dict[Address, Identity]) -> SealedArtifact:
        holders = key_holders(task)
        sealed_keys = {recipient: keys[member] for recipient, member in holders.items() if member in keys}
        context = self.contexts(task).key_string()
        path = self.work_file(task.task_id, "keys")
        path.write_bytes(seal_key_string(sealed_keys, context.encode()))
        name = f"key string/{task.task_id}/{_group_name(keys)}"
        artifact = publish_artifact(self.store, self.state, name, path, list(holders), context)
        path.unlink()
        return artifact

    # Steps 2 and 3: rounds

    def _run_round(self, task_id: int, round_index: int) -> None:
        task = self._task(task_id)
        self._refuse_dead(task)
        if len(task.rounds) > round_index and task.rounds[round_index].closed:
            return
        began = time.monotonic()
        closing = self._kept_closing(task_id, round_index)
        waited = began
        if closing is None:
            examined = self._collect(task_id, round_index)
            waited = time.monotonic()
            closing = self._aggregate(self._task(task_id), round_index, examined)
        aggregated = time.monotonic()
        key = f"close/{task_id}/{round_index}"
        try:
            self.ledger.close_round(key, task_id, round_index, **closing.arguments())
        except TransactionRevertedError as error:
            if error.reason != OTHER_UPDATES:
                raise
            # A re-org brought the updates back in another order, or others among them: judge them again.
            self.state.remember(_closing_name(task_id, round_index), "")
            return self._run_round(task_id, round_index)
        self.report(
            "round closed",
            task_id=task_id,
            round_index=round_index,
            included=sum(word.bit_count() for word in closing.included),
            waited_seconds=round(waited - began, 3),
            aggregation_seconds=round(aggregated - waited, 3),
            closing_seconds=round(time.monotonic() - aggregated, 3),
        )

    def _collect(self, task_id: int, round_index: int) -> list[Examined]:
        """Open updates as they are registered, until the round may be aggregated."""
        examined: dict[int, Examined] = {}
        quorum_since: float | None = None
        for tasks in self.follow(every_block=True):
            task = tasks.get(task_id)
            if task is None or len(task.rounds) <= round_index:
                continue  # the ledger has not yet confirmed that the round is open
            self._refuse_dead(task)
            require_start(self, task, round_index, self._model_path(task, round_index))
            current = task.rounds[round_index]
            fresh = [update for update in current.updates if update.position not in examined]
            for update in (*fresh, *self._registered_ahead(current)):
                self._opening.begin(task, update)
            for update in fresh:
                if (result := self._opening.take(task, update)) is not None:
                    examined[update.position] = result
            usable = sum(not update.refusal for update in examined.values())
            if usable >= task.spec.terms.quorum and quorum_since is None:
                quorum_since = time.time()
            clock = RoundClock(current.opened.deadline, quorum_since)
            refused = len(examined) - usable
            decision = decide_round(task.spec, len(task.enrolled), usable, refused, clock, time.time())
            if decision is Decision.AGGREGATE:
                break
            if decision is Decision.GIVE_UP and time.time() >= current.opened.deadline:
                self._abort(task)
        return [examined[position] for position in sorted(examined)]

    def _registered_ahead(self, current: RoundLog) -> list[UpdateRegistered]:
        """Updates in blocks that are not confirmed yet. A hospital that has a confirmed one has that in its file."""
        opened = current.opened
        return [
            event
            for event in self.events_ahead(opened.task_id)
            if isinstance(event, UpdateRegistered)
            and event.round_index == opened.round_index
            and current.update_of(event.hospital) is None
        ]

    def _aggregate(self, task: TaskLog, round_index: int, examined: list[Examined]) -> Closing:
        """Average, seal the new model and the round report, and keep on disk what will be registered."""
        usable = [update for update in examined if not update.refusal]
        updates = [
            WeightedUpdate(u.registered.hospital, u.weights, u.registered.num_examples) for u in usable
        ]
        before, after = (self._model_path(task, index) for index in (round_index, round_index + 1))
        model_digest = next_global_model(rule_of(task.spec), updates, before, after, first=round_index == 0)
        account = report_round(task, round_index, examined)
        path = self.work_file(task.task_id, "report")
        path.write_bytes(account.to_bytes())
        name = f"report/{task.task_id}/{round_index}/{account.digest}"
        context = self.contexts(task).round_report(round_index)
        report = publish_artifact(self.store, self.state, name, path, self.model_recipients(task), context)
        model = self._publish_model(task, round_index + 1, model_digest)
        closing = Closing(
            trail=examined[-1].registered.trail,
            counted=len(examined),
            included=to_bitmap(update.registered.position for update in usable),
            report_root=report.root,
            report_size=report.size,
            report_digest=account.digest,
            model_root=model.root,
            model_size=model.size,
            model_digest=model_digest,
        )
        self.state.remember(_closing_name(task.task_id, round_index), closing.to_json())
        path.unlink()
        return closing

    def _kept_closing(self, task_id: int, round_index: int) -> Closing | None:
        """What was decided before a crash; deciding again, with one more update, would register another model."""
        text = self.state.fact(_closing_name(task_id, round_index))
        return Closing.from_json(text) if text else None

    def _publish_model(self, task: TaskLog, round_index: int, digest: Digest) -> SealedArtifact:
        path = self._model_path(task, round_index)
        name = f"model/{task.task_id}/{round_index}/{digest}/{_group_name(task.task_keys)}"
        context = self.contexts(task).model(round_index)
        return publish_artifact(self.store, self.state, name, path, self.model_recipients(task), context)

    # Step 5: reward

    def _reward(self, task_id: int) -> None:
        task = self._wait_finished(task_id)
        samples = samples_included(task)
        shares = shares_by_samples(samples, task.published.reward_wei)
        if shares.keys() - task.shares_wei.keys():
            self.ledger.settle(f"settle/{task_id}", task_id, shares)
        self.report("settled", task_id=task_id, shares={h: str(wei) for h, wei in shares.items()})

    def _wait_finished(self, task_id: int) -> TaskLog:
        for tasks in self.follow():
            if task_id in tasks:
                self._refuse_dead(tasks[task_id])
                if tasks[task_id].finished:
                    return tasks[task_id]
        raise TaskFailedError("the ledger ended")

    def _refuse_dead(self, task: TaskLog) -> None:
        """A dead task pays for the rounds that it closed; the rest of its reward goes back to the server."""
        died = task.died
        if died is None:
            return
        shares = shares_by_samples(samples_included(task), task.earned_wei)
        if shares.keys() - task.shares_wei.keys():
            self.ledger.settle(f"settle/{task.task_id}", task.task_id, shares)
        if died.refund_wei:
            self.ledger.refund(f"refund/{task.task_id}", task.task_id)
        self.clear_work(task.task_id)
        self.report("task died", task_id=task.task_id, reason=died.reason, refund_wei=str(died.refund_wei))
        raise TaskFailedError(
            f"task {task.task_id} died ({died.reason}) after {died.paid_rounds} paid rounds; "
            f"{died.refund_wei} wei of its reward went back to the server"
        )

    def _task(self, task_id: int) -> TaskLog:
        return next(tasks[task_id] for tasks in self.follow() if task_id in tasks)

    def _model_path(self, task: TaskLog, round_index: int) -> Path:
        folder = self.state.fact(f"models/{task.task_id}")
        return self.home / "models" / str(folder) / f"round-{round_index:03d}.safetensors"
