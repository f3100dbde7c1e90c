"""Global models that this disk has lost, fetched from the store: a backup of keys and databases holds none."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from consilia.errors import StoreError, VerificationError, WeightsError
from consilia.federation.rules import moments_beside
from consilia.roles.artifacts import fetch_artifact, file_digest
from consilia.roles.party import Party
from consilia.roles.training.opening import ModelOf
from consilia.roles.training.rounds import rule_of
from consilia.roles.training.task_log import TaskLog


def require_start(party: Party, task: TaskLog, round_index: int, model: Path) -> None:
    """See to it that what a round starts from is here, before updates are waited for in vain.

    Raises:
        StoreError: w_t is not at `model`, and the store has not got it or does not answer.
        VerificationError: what is in the store is not what was registered, or the rule's moments are gone.
    """
    _require_moments(task, round_index, model)
    _require_model(party, task, round_index, model)


def fetch_last_models(party: Party, tasks: Iterable[TaskLog], model_of: ModelOf) -> None:
    """Fetch the models of finished tasks that are not here; what cannot be fetched is reported."""
    for task in tasks:
        rounds = task.published.rounds
        if not task.finished:
            continue
        try:
            _require_model(party, task, rounds, model_of(task, rounds))
        except (StoreError, VerificationError) as error:
            party.report("model not fetched", task_id=task.task_id, reason=str(error))


def _require_model(party: Party, task: TaskLog, round_index: int, path: Path) -> None:
    """See to it that w_t, which opens a round or is a task's last, lies at `path`: the server is a recipient of it."""
    if path.exists():
        return
    registered = task.rounds[0].opened if round_index == 0 else task.rounds[round_index - 1].closed
    assert registered is not None, "a model is looked for once it is registered"
    fetched = party.work_file(task.task_id, "fetched-model")
    recipients, context = party.model_recipients(task), party.contexts(task).model(round_index)
    fetch_artifact(party.store, registered.model_root, party.identity, recipients, context, fetched)
    if (digest := file_digest(fetched)) != registered.model_digest:
        raise WeightsError(
            f"the model in the store has digest {digest}, registered was {registered.model_digest}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    fetched.replace(path)
    party.report("model fetched again", task_id=task.task_id, round_index=round_index, digest=str(digest))


def _require_moments(task: TaskLog, round_index: int, model: Path) -> None:
    """What the rule kept from the rounds before must lie beside the model: it is in no store."""
    rule, kept = rule_of(task.spec), moments_beside(model)
    if rule.moments and round_index > 0 and not kept.exists():
        raise WeightsError(
            f"task {task.task_id}, round {round_index}: the moments of {rule.name} are missing, and neither the store "
            f"nor a backup of keys holds them; copy {kept.name} from the old machine's models/{kept.parent.name}. "
            "Without it the task cannot go on; it ends some time after the round's deadline, and then this command "
            "takes back the rest of its reward"
        )
