"""The audit of a consortium's home: chain, store, money, and every global model derived again (PROTOCOLS 3, step 4)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from consilia.crypto.custody import Opener
from consilia.errors import AuditError, SpecError, StoreError, VerificationError
from consilia.federation.aggregate import WeightedUpdate
from consilia.federation.rules import moments_beside, next_global_model
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.replay import ReplayReport, open_readonly_provider
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import RoundReport, TaskContexts, from_bitmap
from consilia.roles.artifacts import fetch_artifact, file_digest
from consilia.roles.audit.chain import replay_all
from consilia.roles.audit.money import check_escrow, check_shares
from consilia.roles.audit.registered import check_objects, registered_objects
from consilia.roles.audit.told import read_ledger, told_by_node
from consilia.roles.keys import open_identities
from consilia.roles.progress import Report
from consilia.roles.stores import open_store
from consilia.roles.training.rounds import read_metrics, require_registered, rule_of
from consilia.roles.training.task_log import RoundLog, TaskLog, fold
from consilia.settings import ServerSettings
from consilia.settings import load as load_settings
from consilia.settings.network import Network
from consilia.store import ArtifactStore
from consilia.values import ArtifactContext, Digest


@dataclass
class AuditResult:
    """What was found to be in order, and what was read on the way."""

    chain: ReplayReport | None
    """None for a network of another engine: its chain is believed, not replayed."""
    height: int
    transactions: int
    """On the embedded chain all, elsewhere those that the contracts logged."""
    tasks: dict[int, TaskLog]
    deployment: Deployment
    block_seconds: dict[int, int]
    """Unix seconds of the blocks that hold events."""
    shares: int = 0
    objects: int = 0
    objects_not_in_order: int = 0
    """Of those that training did not use; each was reported."""
    models_rederived: int = 0
    tasks_not_derived: int = 0
    """Of other servers, or with a malformed spec; each was reported."""
    reports: dict[tuple[int, int], RoundReport] = field(default_factory=dict)
    seconds: float = 0.0


def audit(home: Path, report: Report) -> AuditResult:
    """Check everything that can be checked in a home.

    Raises:
        AuditError: something is wrong; the message names the block, transaction or object.
        SettingsError: the home has no `network.json`, or not what it names.
    """
    began = time.monotonic()
    network = Network.load(home)
    deployment = Deployment.load(network.deployment)
    if network.genesis is None:
        chain, told = None, told_by_node(network, deployment, report)
    else:
        chain, file = replay_all(network, report)
        with closing(open_readonly_provider(file, Genesis.load(network.genesis))) as provider:
            told = read_ledger(Ledger("chain file", deployment, provider=provider))
    events, block_seconds = told.events, told.block_seconds
    result = AuditResult(
        chain=chain,
        height=told.height if chain is None else chain.height,
        transactions=len({e.transaction_hash for e in events}) if chain is None else chain.transactions,
        tasks=fold(events),
        deployment=deployment,
        block_seconds=block_seconds,
    )
    check_escrow(events, told.open_wei, told.escrow_wei)
    report("money conserved", escrow_wei=str(told.escrow_wei))
    result.shares = sum(check_shares(task, events, block_seconds, report) for task in result.tasks.values())
    report("shares computed again", shares=result.shares)
    store = open_store(network.store)
    with tempfile.TemporaryDirectory(prefix="consilia-audit-") as work:
        found = check_objects(store, registered_objects(events), report)
        result.objects, result.objects_not_in_order = found.there, found.not_in_order
        report("store checked", objects=found.there, not_in_order=found.not_in_order)
        if network.server is not None:
            keys = ExaminerKeys(_server_identity(network.server), network.server / "models")
            mine = derivable(result.tasks.values(), keys, report)
            result.tasks_not_derived = len(result.tasks) - len(mine)
            for task in mine:
                examined = Examiner(keys, deployment, task, store, Path(work)).run(report)
                result.reports |= {(task.task_id, index): opened for index, opened in examined.items()}
    result.models_rederived = len(result.reports)
    result.seconds = time.monotonic() - began
    return result


@dataclass(frozen=True)
class ExaminerKeys:
    """What opens a task's artifacts: the server's identity; and its folder of models in clear, where it is at hand."""

    identity: Opener
    models: Path | None = None


def derivable(tasks: Iterable[TaskLog], keys: ExaminerKeys, report: Report) -> list[TaskLog]:
    """The tasks whose models these keys can derive again; the others are reported.

    Any member that serves may publish a task and write into it what it likes: that says nothing against this one's,
    and must not keep them from being examined.
    """
    found = []
    for task in tasks:
        if reason := _why_not_derivable(task, keys):
            server = task.published.server
            report("models not derived", task_id=task.task_id, server=server, reason=reason)
        else:
            found.append(task)
    return found


def _why_not_derivable(task: TaskLog, keys: ExaminerKeys) -> str:
    if task.recipients[task.published.server] not in keys.identity.recipients:
        return "sealed for another identity than the one at hand"
    try:
        rule_of(task.spec)
    except SpecError as error:
        return str(error)
    return ""


class Examiner:
    """Opens a task with the server's identity and derives every global model again, bit for bit."""

    def __init__(
        self,
        keys: ExaminerKeys,
        deployment: Deployment,
        task: TaskLog,
        store: ArtifactStore,
        work: Path,
    ) -> None:
        self._models = keys.models
        self._task = task
        self._store = store
        self._work = work
        self._contexts = TaskContexts(
            deployment.chain_id, deployment.training, task.task_id, task.published.server
        )
        self._server_key = task.recipients[task.published.server]
        self._identity = keys.identity
        self._rule = rule_of(task.spec)

    def run(self, report: Report) -> dict[int, RoundReport]:
        """Derive the models of all closed rounds, and compare the server's own copies; the rounds' reports.

        Raises:
            AuditError: a model, a report, an update or a copy is not what was registered.
        """
        task = self._task
        reports: dict[int, RoundReport] = {}
        if task.rounds and str(task.rounds[0].opened.model_digest) != task.spec.model.initial_digest:
            raise AuditError(
                f"task {task.task_id}: round 0 did not open with the initial model that its spec names"
            )
        for current in task.rounds:
            if current.closed is None:
                continue
            index = current.opened.round_index
            try:
                reports[index] = self._open_report(current)
                self._derive(current)
            except (VerificationError, StoreError) as error:
                raise AuditError(f"task {task.task_id}, round {index}: {error}") from error
            report(
                "model derived again",
                task_id=task.task_id,
                round_index=index,
                digest=str(current.closed.model_digest),
            )
        if self._models is not None:
            self._check_copies(self._models)
        return reports

    def _open_report(self, current: RoundLog) -> RoundReport:
        closed = current.closed
        assert closed is not None
        context = self._contexts.round_report(current.opened.round_index)
        path = self._open(closed.report_root, self._model_recipients(), context, "report")
        report = RoundReport.from_bytes(path.read_bytes())
        if report.digest != closed.report_digest:
            raise AuditError("the round report is not the one whose digest was registered")
        included = {(update.position, update.hospital) for update in report.included}
        positions = set(from_bitmap(closed.included))
        if included != {(u.position, u.hospital) for u in current.updates if u.position in positions}:
            raise AuditError("the round report names other included updates than the ledger")
        return report

    def _derive(self, current: RoundLog) -> None:
        closed = current.closed
        assert closed is not None
        index = current.opened.round_index
        included = set(from_bitmap(closed.included))
        updates = []
        for update in current.updates:
            if update.position not in included:
                continue
            recipients = [self._task.task_keys[update.hospital], self._server_key]
            context = self._contexts.update(index, update.hospital)
            path = self._work / f"update-{update.position}"
            opened = fetch_artifact(self._store, update.root, self._identity, recipients, context, path)
            require_registered(opened, update)
            read_metrics(path, update)
            updates.append(WeightedUpdate(update.hospital, path, update.num_examples))
        before, derived = (self._work / f"derived-{number}.safetensors" for number in (index, index + 1))
        if index == 0 and not self._rule.is_plain_average:
            self._open_initial(current, before)
        derived_digest = next_global_model(self._rule, updates, before, derived, first=index == 0)
        context = self._contexts.model(index + 1)
        published = self._open(closed.model_root, self._model_recipients(), context, "model")
        for what, digest in (
            ("the model derived from the updates", derived_digest),
            ("the model in the store", file_digest(published)),
        ):
            if digest != closed.model_digest:
                raise AuditError(f"{what} has digest {digest}, registered was {closed.model_digest}")
        # the derived model and its moments, made from nothing but updates, are what the next round starts from
        for path in (before, moments_beside(before), published, *(update.weights for update in updates)):
            path.unlink(missing_ok=True)

    def _open_initial(self, current: RoundLog, target: Path) -> None:
        opened = current.opened
        context = self._contexts.model(0)
        self._open(opened.model_root, self._model_recipients(), context, target.name)
        if file_digest(target) != opened.model_digest:
            raise AuditError("the initial model in the store is not the one whose digest opened round 0")

    def _check_copies(self, models: Path) -> None:
        """The server keeps global models in clear; the copies that are there must be the registered ones.

        Which are this task's their folder tells, not their bytes: other tasks may begin with the same initial model.
        """
        task = self._task
        if not task.rounds:
            return
        digests = {current.opened.round_index: current.opened.model_digest for current in task.rounds}
        if task.finished:
            digests[len(task.rounds)] = task.finished.model_digest
        for name in _folder_names(task.spec):
            for index, digest in digests.items():
                path = models / name / f"round-{index:03d}.safetensors"
                if path.exists() and file_digest(path) != digest:
                    raise AuditError(
                        f"the server's copy {name}/{path.name} is not the model that was registered"
                    )

    def _open(self, root: Digest, recipients: list[bytes], context: ArtifactContext, name: str) -> Path:
        target = self._work / name
        fetch_artifact(self._store, root, self._identity, recipients, context, target)
        return target

    def _model_recipients(self) -> list[bytes]:
        return [*self._task.task_keys.values(), self._server_key]


def _folder_names(spec: TaskSpec) -> set[str]:
    """A server names a task's folder by the spec as it was given, with or without the initial model's digest."""
    draft = spec.model_copy(update={"model": spec.model.model_copy(update={"initial_digest": ""})})
    return {str(given.digest)[:16] for given in (spec, draft)}


def _server_identity(server: Path) -> Opener:
    return open_identities(load_settings(ServerSettings, server).keys)
