"""Updates opened by the server as soon as any block has them (docs/adr/0063).

Opening reveals nothing and pays nobody, so it need not wait until the block is confirmed; what came of it counts only
then, and only if the confirmed event names the same update.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from consilia.artifact import read_frame
from consilia.errors import StoreError, StoreUnreachableError, UpdateRejectedError, VerificationError
from consilia.federation.aggregate import check_update
from consilia.federation.tensors import MAX_HEADER_BYTES
from consilia.ledger.events import UpdateRegistered
from consilia.roles.artifacts import fetch_artifact
from consilia.roles.party import Party
from consilia.roles.training.rounds import Examined, read_metrics, require_registered
from consilia.roles.training.task_log import TaskLog
from consilia.values import Address

OPENERS = 2
"""Updates opened at the same time. Ciphers and hashes release the interpreter lock; each holds a few MiB in memory."""

ModelOf = Callable[[TaskLog, int], Path]
"""Where the global model of a round lies on this disk."""


@dataclass(frozen=True)
class _Begun:
    """An update that is being opened, or has been."""

    registered: UpdateRegistered
    outcome: Future[Examined | None]

    def is_for(self, registered: UpdateRegistered) -> bool:
        """Whether an event names the same update, in whatever block, and after whatever others, it stands."""
        return _named(self.registered) == _named(registered)


class Opening:
    """Opens and checks updates in threads. Each hospital has one file: what it held before is gone with the next."""

    def __init__(self, party: Party, model_of: ModelOf) -> None:
        self._party = party
        self._model_of = model_of
        self._threads = ThreadPoolExecutor(OPENERS)
        self._begun: dict[Address, _Begun] = {}

    def begin(self, task: TaskLog, registered: UpdateRegistered) -> None:
        """Open an update, unless it is the one of this hospital that is being opened already."""
        begun = self._begun.get(registered.hospital)
        if begun is not None:
            if begun.is_for(registered):
                return
            begun.outcome.exception()  # wait: both write the same file
        outcome = self._threads.submit(self._examine, task, registered)
        self._begun[registered.hospital] = _Begun(registered, outcome)

    def take(self, task: TaskLog, registered: UpdateRegistered) -> Examined | None:
        """What came of a confirmed update; None: the store does not answer, look again later."""
        begun = self._begun.pop(registered.hospital, None)
        outcome = None if begun is None else begun.outcome.result()  # in any case: it writes the same file
        # another update than the confirmed one, or a refusal of what was not confirmed yet, says nothing
        if begun is None or outcome is None or outcome.refusal or not begun.is_for(registered):
            outcome = self._threads.submit(self._examine, task, registered).result()
        if outcome is None:
            return None
        self._report(outcome)
        return replace(outcome, registered=registered)

    def _report(self, outcome: Examined) -> None:
        registered = outcome.registered
        task_id, hospital = registered.task_id, registered.hospital
        if outcome.refusal:
            self._party.report("update rejected", task_id=task_id, hospital=hospital, reason=outcome.refusal)
            return
        self._party.report(
            "update opened",
            task_id=task_id,
            round_index=registered.round_index,
            hospital=hospital,
            bytes=registered.size,
            norm=round(outcome.norm, 4),
            opening_seconds=round(outcome.opening_seconds, 3),
        )

    def _examine(self, task: TaskLog, registered: UpdateRegistered) -> Examined | None:
        """Open one update and check its shapes, numbers, norm, context and metrics."""
        party, hospital = self._party, registered.hospital
        target = party.work_file(task.task_id, f"update-{hospital}.safetensors")
        context = party.contexts(task).update(registered.round_index, hospital)
        recipients = [task.task_keys[hospital], task.recipients[task.published.server]]
        began = time.monotonic()
        try:
            model = self._model_of(task, registered.round_index)
            self._refuse_oversize(registered, model)
            opened = fetch_artifact(party.store, registered.root, party.identity, recipients, context, target)
            require_registered(opened, registered)
            metrics = read_metrics(target, registered)
            norm = check_update(target, model, task.spec.training.max_update_norm)
        except StoreUnreachableError as error:  # no hospital's fault
            party.report("store unreachable", task_id=task.task_id, hospital=hospital, reason=str(error))
            return None
        except (VerificationError, StoreError) as error:
            return Examined(registered, target, None, str(error))
        return Examined(registered, target, metrics, "", norm, time.monotonic() - began)

    def _refuse_oversize(self, registered: UpdateRegistered, model: Path) -> None:
        """Look at the length in clear first: one hospital must not fill this disk."""
        most_bytes = model.stat().st_size + MAX_HEADER_BYTES
        with self._party.store.reader(registered.root) as envelope:
            came_bytes = read_frame(envelope).plaintext_bytes
        if came_bytes > most_bytes:
            raise UpdateRejectedError(
                f"it has {came_bytes} bytes, an update of this model {most_bytes} at most"
            )


def _named(registered: UpdateRegistered) -> tuple[object, ...]:
    return (
        registered.task_id,
        registered.round_index,
        registered.hospital,
        registered.root,
        registered.key_hash,
        registered.size,
        registered.num_examples,
        registered.metrics_digest,
    )
