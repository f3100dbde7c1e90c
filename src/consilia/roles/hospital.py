"""A hospital: enrols where its policy admits, trains on its own data, hands in sealed updates, claims its pay."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from consilia.crypto.key_string import open_key_string
from consilia.crypto.keys import Identity
from consilia.errors import (
    DatasetError,
    PolicyError,
    SpecError,
    StoreError,
    TransactionRefusedError,
    TransactionRevertedError,
    VerificationError,
    reason_of,
)
from consilia.protocols.policy import admit
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import METRICS_KEY, LocalMetrics, SkippedStudy
from consilia.roles.artifacts import fetch_artifact, file_digest, publish_artifact
from consilia.roles.diagnosis.consultation import Consultation
from consilia.roles.exchange.deals import Exchange
from consilia.roles.keys import PartyKeys
from consilia.roles.party import Party, key_holders
from consilia.roles.progress import Report
from consilia.roles.training.task_log import RoundLog, TaskLog
from consilia.settings import HospitalSettings
from consilia.values import Digest, Role


class LocalTrainer(Protocol):
    """The local step of one task: w_k = w - eta * grad F_k(w), on the n_k points of this hospital."""

    num_examples: int
    studies_used: int
    studies_skipped: tuple[SkippedStudy, ...]

    def train(self, weights: Path, round_index: int) -> tuple[float, int]:
        """Start from the global model in `weights` and train one round; return the mean loss and the steps taken."""

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write the local weights w_k."""


SERVER_GRACE_SECONDS = 3 * 86_400
"""How long after a deadline a silent server is waited for (contracts/training.vy has the same number)."""

CLAIM_TOO_EARLY = "escrow: nothing to claim"
"""How the escrow refuses a claim that a re-org has put before the settlement; the log will tell, and then again."""

TrainerFactory = Callable[[TaskSpec, int], LocalTrainer]
"""Makes the trainer of a TaskSpec; the number is this hospital's own random seed."""


class Hospital(Party):
    """Takes part in every task that its policy admits, until it is stopped. It may be killed at any point."""

    settings: HospitalSettings

    def __init__(
        self,
        home: Path,
        settings: HospitalSettings,
        report: Report,
        new_trainer: TrainerFactory,
        keys: PartyKeys | None = None,
    ) -> None:
        super().__init__(home, settings, report, keys)
        self.settings = settings
        self.exchange = Exchange(self, settings.exchange)
        self.consultation = Consultation(self)
        self._new_trainer = new_trainer
        self._trainers: dict[int, LocalTrainer] = {}
        self._task_keys: dict[int, Identity] = {}
        self._over: set[int] = set()
        self._standing = True
        self._said: set[tuple[int, str]] = set()

    def run(self) -> None:
        """Follow the ledger and do what each task asks of this hospital, for ever."""
        for tasks in self.follow():
            for task in tasks.values():
                self.advance(task)
            self.exchange.advance()
            self.consultation.advance()

    def history_changed(self) -> None:
        """What was over may have begun again."""
        self._over.clear()

    def advance(self, task: TaskLog) -> None:
        """Do the next thing that a task asks of this hospital, if there is one."""
        try:
            self._advance(task)
        except TransactionRefusedError as error:  # as for want of gas; again with the next block
            self._say_once("the ledger's node refused a step", task.task_id, str(error))

    def _advance(self, task: TaskLog) -> None:
        if task.task_id in self._over or self.state.fact(f"refused/{task.task_id}"):
            return
        if self.address not in task.enrolled:
            self._consider(task)
        elif task.finished or task.died:
            self._finish(task)
        elif time.time() >= task.deadline + SERVER_GRACE_SECONDS:
            self._bury(task)
        elif (current := task.open_round) and current.update_of(self.address) is None:
            self._attempt(task, current)

    # Step 1: enrol

    def _consider(self, task: TaskLog) -> None:
        if task.started or task.died or time.time() >= task.published.enrol_deadline:
            return
        if not self._in_good_standing():
            return  # a newcomer waits for the vote on it, and a suspended one for its end
        try:
            spec = task.spec
            admit(spec, self.settings.policy)
            self._trainer(task, spec)
        except (PolicyError, SpecError, DatasetError) as refusal:
            self.state.remember(f"refused/{task.task_id}", str(refusal))
            self.report("refused", task_id=task.task_id, reason=str(refusal))
            return
        try:
            self.ledger.enrol(f"enrol/{task.task_id}", task.task_id)
        except TransactionRevertedError as error:
            self._over.add(task.task_id)  # not for good: another history may admit it
            self.report("refused", task_id=task.task_id, reason=error.reason)
            return
        self.report("enrolled", task_id=task.task_id, title=spec.title)

    def _task_key(self, task: TaskLog) -> Identity:
        """Open this hospital's own entry of the key string; nothing is kept, for it can be opened again."""
        if task.task_id not in self._task_keys:
            started = task.started
            assert started is not None
            context = self.contexts(task).key_string()
            recipients = list(key_holders(task))
            path = self.work_file(task.task_id, "keys")
            fetch_artifact(self.store, started.key_string_root, self.identity, recipients, context, path)
            key = open_key_string(path.read_bytes(), self.identity, context.encode())
            path.unlink()
            if key.recipient != task.task_keys[self.address]:
                raise VerificationError(
                    "the task key in the key string is not the one registered for this hospital"
                )
            self._task_keys[task.task_id] = key
        return self._task_keys[task.task_id]

    # Step 2: a round

    def _attempt(self, task: TaskLog, current: RoundLog) -> None:
        """One round; whatever goes wrong costs this hospital only this round's update."""
        index = current.opened.round_index
        if time.time() >= current.opened.deadline or not self._in_good_standing():
            return
        try:
            self._take_part(task, current)
        except TransactionRevertedError as error:
            self.report("update late", task_id=task.task_id, round_index=index, reason=error.reason)
        except (VerificationError, StoreError, DatasetError, PolicyError) as error:
            self.report("round failed", task_id=task.task_id, round_index=index, reason=str(error))
        except OSError as error:  # as of a full disk, which may have room again
            self.report("round failed", task_id=task.task_id, round_index=index, reason=reason_of(error))

    def _take_part(self, task: TaskLog, current: RoundLog) -> None:
        opened = current.opened
        name = f"update/{task.task_id}/{opened.round_index}"
        weights = self.work_file(task.task_id, "update.safetensors")
        trainer = self._trainer(task, task.spec)
        began = time.monotonic()
        metrics_digest = self._kept_metrics(name, weights)
        if metrics_digest is None:
            metrics = self._train(task, current, trainer, weights)
            metrics_digest = metrics.digest
            self.state.remember(f"metrics/{name}", str(metrics_digest))
            self.state.remember(f"weights/{name}", _stamp(weights))
        trained = time.monotonic()
        recipients = [self._task_key(task).recipient, task.recipients[task.published.server]]
        context = self.contexts(task).update(opened.round_index, self.address)
        artifact = publish_artifact(self.store, self.state, name, weights, recipients, context)
        sealed = time.monotonic()
        self.ledger.register_update(
            name,
            task.task_id,
            opened.round_index,
            root=artifact.root,
            key_hash=artifact.key_hash,
            size=artifact.size,
            num_examples=trainer.num_examples,
            metrics_digest=metrics_digest,
        )
        self.report(
            "update registered",
            task_id=task.task_id,
            round_index=opened.round_index,
            num_examples=trainer.num_examples,
            bytes=artifact.size,
            training_seconds=round(trained - began, 3),
            sealing_seconds=round(sealed - trained, 3),
            registering_seconds=round(time.monotonic() - sealed, 3),
            studies_used=trainer.studies_used,
            studies_skipped=len(trainer.studies_skipped),
        )

    def _kept_metrics(self, name: str, weights: Path) -> Digest | None:
        """After a crash, or when the store failed: the metrics of an update that is trained, or even in the store."""
        digest = self.state.fact(f"metrics/{name}")
        if digest is None:
            return None
        artifact = self.state.artifact(name)
        in_store = artifact is not None and self.store.has(artifact.root)
        if in_store or self.state.fact(f"weights/{name}") == _stamp(weights):
            return Digest.from_hex(digest)
        return None

    def _train(self, task: TaskLog, current: RoundLog, trainer: LocalTrainer, out: Path) -> LocalMetrics:
        asked = time.monotonic()
        model = self._global_model(task, current)
        began = time.monotonic()
        self.report(
            "training",
            task_id=task.task_id,
            round_index=current.opened.round_index,
            opening_seconds=round(began - asked, 3),
        )
        loss, steps = trainer.train(model, current.opened.round_index)
        seconds = round(time.monotonic() - began, 3)
        metrics = LocalMetrics(float(loss), steps, seconds, trainer.studies_used, trainer.studies_skipped)
        trainer.save(out, {METRICS_KEY: metrics.to_bytes().decode()})
        return metrics

    def _global_model(self, task: TaskLog, current: RoundLog) -> Path:
        opened = current.opened
        path = self.work_file(task.task_id, "model.safetensors")
        context = self.contexts(task).model(opened.round_index)
        recipients = self.model_recipients(task)
        fetch_artifact(self.store, opened.model_root, self._task_key(task), recipients, context, path)
        if file_digest(path) != opened.model_digest:
            raise VerificationError(
                "the global model in the store is not the one whose digest opened the round"
            )
        if opened.round_index == 0 and str(opened.model_digest) != task.spec.model.initial_digest:
            raise VerificationError("the first global model is not the initial model that the TaskSpec names")
        return path

    # Step 5: reward

    def _bury(self, task: TaskLog) -> None:
        """Declare a task dead whose server fell silent: the hospitals are paid for what they handed in."""
        try:
            self.ledger.abort(f"abort/{task.task_id}", task.task_id)
        except TransactionRevertedError as error:
            self.report("abort refused", task_id=task.task_id, reason=error.reason)

    def _finish(self, task: TaskLog) -> None:
        share_wei = task.shares_wei.get(self.address)
        if share_wei is None and not task.settled:
            self._settle_alone(task)
            return
        if share_wei and self.address not in task.claimed and not self._in_good_standing():
            return  # the money waits
        try:
            if share_wei and self.address not in task.claimed:
                self.ledger.claim(f"claim/{task.task_id}", task.task_id)
        except TransactionRevertedError as error:
            self.report("claim refused", task_id=task.task_id, reason=error.reason)
            if error.reason == CLAIM_TOO_EARLY:
                return
        self._over.add(task.task_id)
        self._trainers.pop(task.task_id, None)
        self.clear_work(task.task_id)
        self.report("done", task_id=task.task_id, share_wei=str(share_wei or 0), died=task.died is not None)

    def _settle_alone(self, task: TaskLog) -> None:
        """The server has a week to divide the reward; after that each hospital draws its part by updates."""
        handed_in = any(current.update_of(self.address) for current in task.rounds)
        if not handed_in or time.time() < self.ledger.task(task.task_id).deadline:
            return
        try:
            self.ledger.settle_by_updates(f"settle/{task.task_id}", task.task_id, self.address)
        except TransactionRevertedError as error:
            self.report("settlement refused", task_id=task.task_id, reason=error.reason)

    def _say_once(self, step: str, task_id: int, reason: str) -> None:
        if (task_id, reason) not in self._said:  # each block asks again; a person reads it once
            self._said.add((task_id, reason))
            self.report(step, task_id=task_id, reason=reason)

    def _in_good_standing(self) -> bool:
        """Whether the registry lets this hospital act; asked before it works for what would be refused."""
        standing = self.ledger.registry.is_active(self.address, Role.HOSPITAL)
        if standing != self._standing:
            self._standing = standing
            self.report("in good standing" if standing else "not in good standing")
        return standing

    def _trainer(self, task: TaskLog, spec: TaskSpec) -> LocalTrainer:
        if task.task_id not in self._trainers:
            trainer = self._new_trainer(spec, self._seed(spec))
            if trainer.num_examples < spec.data.minimum_images:
                raise PolicyError(
                    f"the task wants {spec.data.minimum_images} images or more, there are {trainer.num_examples}"
                )
            self._trainers[task.task_id] = trainer
        return self._trainers[task.task_id]

    def _seed(self, spec: TaskSpec) -> int:
        """Follows from the spec's seed and this hospital's place among the members.

        Its account would do to tell hospitals apart, but a consortium that is made anew has new ones, and the same
        training would not run twice.
        """
        accounts = [member.account for member in self.ledger.members()]
        place = accounts.index(self.address)
        return int.from_bytes(
            Digest.of(spec.model.seed.to_bytes(8, "big") + place.to_bytes(4, "big"))[:4], "big"
        )


def _stamp(path: Path) -> str:
    """Tells whether a file is still the one that was written; nothing of it is read."""
    if not path.exists():
        return "none"
    stat = path.stat()
    return f"{stat.st_size} bytes at {stat.st_mtime_ns}"
