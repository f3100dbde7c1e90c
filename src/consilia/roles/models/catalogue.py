"""Global models by name: which task registered a file, and how a member gets one out of its home or the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from consilia.crypto.custody import Opener
from consilia.crypto.key_string import open_key_string
from consilia.errors import InputError, VerificationError
from consilia.ledger.contracts import Deployment
from consilia.ledger.events import RoundClosed, RoundOpened
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import TaskContexts
from consilia.roles.artifacts import fetch_artifact, file_digest
from consilia.roles.audit.trace import ArtifactTrace, Deed, find_deed, title_of
from consilia.roles.audit.view import LedgerView, open_view
from consilia.roles.keys import open_identities
from consilia.roles.party import key_holders
from consilia.roles.stores import open_store
from consilia.roles.training.task_log import TaskLog, fold
from consilia.settings import HospitalSettings, ServerSettings, load_party
from consilia.store import ArtifactStore
from consilia.values import Digest


@dataclass(frozen=True)
class RegisteredModel:
    """A global model as the ledger knows it: the one after `rounds_done` rounds of a task; 0 is the initial one."""

    task_id: int
    number: int
    title: str
    rounds_done: int
    artifact: ArtifactTrace
    deed: Deed
    is_newest: bool
    """No round was closed after it."""


@dataclass(frozen=True)
class NamedModel:
    """A model at hand: its file, what it detects, and where the ledger has it (None: a file that stands alone)."""

    path: Path
    digest: Digest
    spec: TaskSpec
    registered: RegisteredModel | None
    own_norm: Path | None = None
    """This hospital's own normalisation layers, where the task leaves them with it (FedBN)."""

    @property
    def own_norm_digest(self) -> Digest | None:
        """Of the hospital's own layers: with them it is another model than the digest names."""
        return None if self.own_norm is None else file_digest(self.own_norm)

    def require_whole(self) -> None:
        """A global model of FedBN has the layers that were drawn for w_0: on them it finds nothing, without a sign.

        Raises:
            InputError: normalisation layers of this round are not at hand.
        """
        is_initial = str(self.digest) == self.spec.model.initial_digest
        if not self.spec.training.local_norm or (is_initial and self.own_norm is None):
            return
        if self.registered is None or self.own_norm is None:
            raise InputError(
                "expected a hospital that trained in this task: with training.local_norm the global model lacks "
                "normalisation layers, each hospital keeps its own; name it by that hospital's --home"
            )
        if not self.registered.is_newest:
            raise InputError(
                "expected the newest round, or 0: with training.local_norm a hospital keeps its normalisation layers "
                f"of its last round, they do not fit the model after {self.registered.rounds_done}; leave out --round"
            )


def read_tasks(view: LedgerView) -> dict[int, TaskLog]:
    """All tasks of a ledger, in the order of their publication."""
    logged = view.history.events(0, view.history.head())
    return fold([event for item in logged if (event := item.typed()) is not None])


def registered_models(view: LedgerView, task: TaskLog, number: int) -> list[RegisteredModel]:
    """The global models of a task, the initial one first; `number` is the task's place among all."""
    events: list[RoundOpened | RoundClosed] = [task.rounds[0].opened] if task.rounds else []
    events += [current.closed for current in task.rounds if current.closed]
    found = []
    for rounds_done, event in enumerate(events):
        artifact = ArtifactTrace(event.model_root, event.model_size, event.model_digest)
        deed = find_deed(view, event)
        title, is_newest = title_of(task), rounds_done == len(events) - 1
        found.append(RegisteredModel(task.task_id, number, title, rounds_done, artifact, deed, is_newest))
    return found


def find_registrations(view: LedgerView, digest: Digest) -> list[RegisteredModel]:
    """Where a ledger has a model of this digest.

    Raises:
        VerificationError: nowhere; whoever says that it was trained here cannot show it.
    """
    tasks = list(read_tasks(view).values())
    found = [
        model
        for number, task in enumerate(tasks, start=1)
        for model in registered_models(view, task, number)
        if model.artifact.digest == digest
    ]
    if not found:
        raise VerificationError(
            f"expected {digest} among the global models of {len(tasks)} tasks at {view.source}, it is none of them: "
            "another file, a changed one, or one of another ledger"
        )
    return found


def digest_of(name: str) -> Digest:
    """The digest of a model given as 64 hex digits, or as a file.

    Raises:
        InputError: it is neither.
    """
    path = Path(name)
    if path.is_file():
        return file_digest(path)
    try:
        return Digest.from_hex(name)
    except ValueError as error:
        raise InputError(f"expected a file, or a digest of 64 hex digits, got {name}") from error


@contextmanager
def open_model(home: Path, number: int, rounds_done: int | None) -> Iterator[NamedModel]:
    """A task's global model as a file, which is gone afterwards if it had to be opened from the store.

    Args:
        home: of the server or of a hospital that took part.
        number: the task's place in the order of publication, or its id.
        rounds_done: after how many rounds; None for the newest.

    Raises:
        InputError: no such task or round.
        VerificationError: the store's file is not the registered one, or this party holds no key to it.
    """
    settings = load_party(home)
    with open_view(home, None, None) as view, tempfile.TemporaryDirectory(dir=home) as folder:
        tasks = read_tasks(view)
        task_id = choose_task(list(tasks), number)
        place = list(tasks).index(task_id) + 1
        model = _choose_round(registered_models(view, tasks[task_id], place), rounds_done)
        path = _own_copy(home, model) or _from_store(
            settings, view.ledger.deployment, tasks[task_id], model, Path(folder)
        )
        yield NamedModel(path, file_digest(path), tasks[task_id].spec, model)


def choose_model(view: LedgerView, number: int, rounds_done: int | None) -> RegisteredModel:
    """A task's global model after so many rounds, None for the newest, as the ledger has it.

    Raises:
        InputError: no such task or round.
    """
    tasks = read_tasks(view)
    task_id = choose_task(list(tasks), number)
    return _choose_round(registered_models(view, tasks[task_id], list(tasks).index(task_id) + 1), rounds_done)


def choose_task(task_ids: Sequence[int], name: int) -> int:
    """The id of a task called by its place in the order of publication, or by its id.

    Raises:
        InputError: there is none.
    """
    if 1 <= name <= len(task_ids):
        return task_ids[name - 1]
    if name in task_ids:
        return name
    raise InputError(f"expected a task of this ledger, 1 to {len(task_ids)} or an id, got {name}")


def _choose_round(models: Sequence[RegisteredModel], rounds_done: int | None) -> RegisteredModel:
    if not models:
        raise InputError("expected a task that has started, this one has no model yet")
    index = len(models) - 1 if rounds_done is None else rounds_done
    if not 0 <= index < len(models):
        raise InputError(f"expected --round 0 to {len(models) - 1}, got {index}: rounds that are closed")
    return models[index]


def _own_copy(home: Path, model: RegisteredModel) -> Path | None:
    """The server keeps what it averaged; only a file with the registered digest is taken."""
    files = sorted((home / "models").glob(f"*/round-{model.rounds_done:03d}.safetensors"))
    return next((file for file in files if file_digest(file) == model.artifact.digest), None)


def _from_store(
    settings: HospitalSettings | ServerSettings,
    deployment: Deployment,
    task: TaskLog,
    model: RegisteredModel,
    folder: Path,
) -> Path:
    store, identity = open_store(settings.store), open_identities(settings.keys)
    server = task.published.server
    contexts = TaskContexts(deployment.chain_id, deployment.training, task.task_id, server)
    opener = identity
    if isinstance(settings, HospitalSettings):
        opener = _task_key(store, identity, task, contexts, folder)
    recipients = [*task.task_keys.values(), task.recipients[server]]
    # the model after T rounds is what round T opens with; the last one, after which none opens, counts on
    context = contexts.model(model.rounds_done)
    path = folder / "model.safetensors"
    fetch_artifact(store, model.artifact.root, opener, recipients, context, path)
    if file_digest(path) != model.artifact.digest:
        raise VerificationError("the model in the store is not the one whose digest is on the ledger")
    return path


def _task_key(
    store: ArtifactStore, identity: Opener, task: TaskLog, contexts: TaskContexts, folder: Path
) -> Opener:
    if task.started is None:
        raise InputError("expected a task that has started, this one has no key string yet")
    path, context = folder / "keys", contexts.key_string()
    recipients = list(key_holders(task))
    fetch_artifact(store, task.started.key_string_root, identity, recipients, context, path)
    key = open_key_string(path.read_bytes(), identity, context.encode())
    path.unlink()
    return key
