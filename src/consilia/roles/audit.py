"""The audit of a consortium's home: chain, store, money, and every global model derived again (PROTOCOLS 3, step 4)."""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path

from consilia.crypto.custody import Opener
from consilia.errors import AuditError, ConsiliaError, StoreError, VerificationError
from consilia.federation.aggregate import WeightedUpdate, federated_average
from consilia.ledger.client import Ledger
from consilia.ledger.contracts import Deployment
from consilia.ledger.embedded.genesis import Genesis
from consilia.ledger.embedded.replay import ReplayReport, open_readonly_provider, replay
from consilia.ledger.events import Claimed, Event, Funded, Refunded, UnclaimedWithdrawn
from consilia.protocols.training import RoundReport, TaskContexts, from_bitmap
from consilia.roles.artifacts import fetch_artifact, file_digest
from consilia.roles.keys import open_identities
from consilia.roles.progress import Report
from consilia.roles.rounds import read_metrics, require_registered
from consilia.roles.stores import open_store
from consilia.roles.task_log import RoundLog, TaskLog, fold
from consilia.settings import HospitalSettings, Network, ServerSettings
from consilia.settings import load as load_settings
from consilia.store import ArtifactStore
from consilia.store.verified import object_bytes
from consilia.values import ArtifactContext, Digest

CHAIN_FILE = Path("node/chain.sqlite")
FORK_BLOCKS = 6
"""Nodes that were stopped may differ in this many newest blocks at most."""


@dataclass
class AuditResult:
    """What was found to be in order, and what was read on the way."""

    chain: ReplayReport
    tasks: dict[int, TaskLog]
    deployment: Deployment
    block_seconds: dict[int, int]
    """Unix seconds of the blocks that hold events."""
    objects: int = 0
    models_rederived: int = 0
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
    chain, file = replay_all(network, report)
    with closing(open_readonly_provider(file, Genesis.load(network.genesis))) as provider:
        ledger = Ledger("chain file", deployment, provider=provider)
        events = ledger.events()
        open_wei, escrow_wei = ledger.open_wei(), ledger.balance_wei(deployment.escrow)
        block_seconds = {
            number: ledger.block(number).timestamp for number in {e.block_number for e in events}
        }
    result = AuditResult(chain, fold(events), deployment, block_seconds)
    check_escrow(events, open_wei, escrow_wei)
    report("money conserved", escrow_wei=str(escrow_wei))
    store = open_store(network.store)
    with tempfile.TemporaryDirectory(prefix="consilia-audit-") as work:
        for task in result.tasks.values():
            result.objects += check_objects(store, task, report)
        report("store checked", objects=result.objects)
        for task in result.tasks.values():
            examiner = Examiner(network, deployment, task, store, Path(work))
            examiner.run(result, report)
    result.seconds = time.monotonic() - began
    return result


def replay_all(network: Network, report: Report) -> tuple[ReplayReport, Path]:
    """Replay every hospital's chain file from genesis; the one with most work is the chain, all others lead to it.

    Raises:
        AuditError: a file is damaged or breaks a rule, or two files tell different histories.
    """
    files = [hospital / CHAIN_FILE for hospital in network.hospitals]
    genesis = Genesis.load(network.genesis)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(replay, file, genesis) for file in files]
        reports = []
        for file, future in zip(files, futures, strict=True):
            try:
                reports.append(future.result())
            except ConsiliaError as error:
                raise AuditError(f"{file.parent.parent.name}: {error}") from error
            report("chain replayed", file=file.parent.parent.name, height=reports[-1].height)
    best = max(range(len(files)), key=lambda index: reports[index].score)
    for file, other in zip(files, reports, strict=True):
        _check_same_history(network, (files[best], reports[best].height), (file, other.height))
    return reports[best], files[best]


def _check_same_history(network: Network, best: tuple[Path, int], other: tuple[Path, int]) -> None:
    """Compare two chain files up to the blocks on which nodes that were stopped may still differ.

    More work alone must not decide here: one hospital can rewrite its own file at leisure, with valid seals.
    """
    genesis, deployment = Genesis.load(network.genesis), Deployment.load(network.deployment)
    with ExitStack() as stack:
        ledgers = []
        for file, _ in (best, other):
            provider = stack.enter_context(closing(open_readonly_provider(file, genesis)))
            ledgers.append(Ledger("chain file", deployment, provider=provider))
        last = max(0, min(best[1], other[1]) - FORK_BLOCKS)
        if ledgers[0].block(last).hash == ledgers[1].block(last).hash:
            _check_own_deeds(other, ledgers[0].events())
            return
        first = next(n for n in range(last + 1) if ledgers[0].block(n).hash != ledgers[1].block(n).hash)
    names = [file.parent.parent.name for file, _ in (best, other)]
    raise AuditError(f"{names[0]} and {names[1]} tell different histories from block {first} on")


def _check_own_deeds(other: tuple[Path, int], events: list[Event]) -> None:
    """A node may have been stopped before it heard the last blocks, but it did hear what its hospital did itself."""
    file, height = other
    home = file.parent.parent
    account = load_settings(HospitalSettings, home).keys.account
    address = "0x" + json.loads(account.read_text())["address"].removeprefix("0x")
    for event in events:
        actor = getattr(event, "hospital", getattr(event, "member", ""))
        if event.block_number > height and actor.lower() == address.lower():
            raise AuditError(
                f"{home.name}: its chain ends at block {height}, but block {event.block_number} holds "
                f"transaction 0x{event.transaction_hash} of its own: the file was cut back"
            )


def check_escrow(events: list[Event], open_wei: int, balance_wei: int) -> None:
    """Money conserved: what went into the escrow is what came out of it and what it still owes, and that is there.

    Anybody can force wei upon a contract by destroying another one, so it may own more than it owes.

    Raises:
        AuditError: the sums differ.
    """
    paid_in = sum(event.amount_wei for event in events if isinstance(event, Funded))
    paid_out = sum(
        event.amount_wei for event in events if isinstance(event, Claimed | Refunded | UnclaimedWithdrawn)
    )
    if paid_in - paid_out != open_wei or balance_wei < open_wei:
        raise AuditError(
            f"the escrow took in {paid_in} wei and paid out {paid_out}, so {paid_in - paid_out} should be left; "
            f"it owes {open_wei} and holds {balance_wei}"
        )


@dataclass(frozen=True)
class Registered:
    """An object that a task registered; `needed` unless it is an update that entered no average."""

    what: str
    root: Digest
    size: int
    needed: bool = True


def registered_objects(task: TaskLog) -> list[Registered]:
    """Everything that a task registered."""
    objects: list[Registered] = []
    if task.started:
        objects.append(
            Registered("the key string", task.started.key_string_root, task.started.key_string_size)
        )
    for current in task.rounds:
        index, opened, closed = current.opened.round_index, current.opened, current.closed
        objects.append(
            Registered(f"the model that opens round {index}", opened.model_root, opened.model_size)
        )
        included = set(from_bitmap(closed.included)) if closed else set()
        for update in current.updates:
            what = f"the update of {update.hospital} in round {index}"
            objects.append(Registered(what, update.root, update.size, update.position in included))
        if closed is not None:
            objects.append(Registered(f"the report of round {index}", closed.report_root, closed.report_size))
            objects.append(Registered(f"the model of round {index}", closed.model_root, closed.model_size))
    return objects


def check_objects(store: ArtifactStore, task: TaskLog, report: Report) -> int:
    """Read every registered object of a task and compare it with its root and size; return how many are there.

    What a hospital registered and nobody used may be missing: one liar must not make every audit fail.

    Raises:
        AuditError: one that was used is missing, damaged, or of another size.
    """
    checked: set[Digest] = set()
    for item in registered_objects(task):
        if item.root in checked:
            continue
        try:
            _check_object(store, item)
        except (AuditError, StoreError) as error:
            if item.needed:
                raise AuditError(f"task {task.task_id}, {item.what}: {error}") from error
            report("unused object not in order", task_id=task.task_id, object=item.what, reason=str(error))
        else:
            checked.add(item.root)
    return len(checked)


def _check_object(store: ArtifactStore, item: Registered) -> None:
    actual = object_bytes(store, item.root)
    if actual != item.size:
        raise AuditError(f"object {item.root} has {actual} bytes, registered were {item.size}")


class Examiner:
    """Opens a task with the server's identity and derives every global model again, bit for bit."""

    def __init__(
        self,
        network: Network,
        deployment: Deployment,
        task: TaskLog,
        store: ArtifactStore,
        work: Path,
    ) -> None:
        self._network = network
        self._task = task
        self._store = store
        self._work = work
        self._contexts = TaskContexts(
            deployment.chain_id, deployment.training, task.task_id, task.published.server
        )
        self._server_key = task.recipients[task.published.server]
        self._identity = _server_identity(network)

    def run(self, result: AuditResult, report: Report) -> None:
        """Derive the models of all closed rounds, and compare the server's own copies.

        Raises:
            AuditError: a model, a report, an update or a copy is not what was registered.
        """
        task = self._task
        if task.rounds and str(task.rounds[0].opened.model_digest) != task.spec.model.initial_digest:
            raise AuditError(
                f"task {task.task_id}: round 0 did not open with the initial model that its spec names"
            )
        for current in task.rounds:
            if current.closed is None:
                continue
            index = current.opened.round_index
            try:
                result.reports[task.task_id, index] = self._open_report(current)
                self._derive(current)
            except (VerificationError, StoreError) as error:
                raise AuditError(f"task {task.task_id}, round {index}: {error}") from error
            result.models_rederived += 1
            report(
                "model derived again",
                task_id=task.task_id,
                round_index=index,
                digest=str(current.closed.model_digest),
            )
        self._check_copies()

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
        derived = self._work / "derived"
        federated_average(updates, derived)
        context = self._contexts.model(index + 1)
        published = self._open(closed.model_root, self._model_recipients(), context, "model")
        for what, path in (
            ("the model derived from the updates", derived),
            ("the model in the store", published),
        ):
            if file_digest(path) != closed.model_digest:
                raise AuditError(
                    f"{what} has digest {file_digest(path)}, registered was {closed.model_digest}"
                )
        for path in (derived, published, *(update.weights for update in updates)):
            path.unlink()

    def _check_copies(self) -> None:
        """The server keeps every global model in clear; its copies must be the registered ones."""
        task = self._task
        if not task.rounds:
            return
        digests = {current.opened.round_index: current.opened.model_digest for current in task.rounds}
        if task.finished:
            digests[len(task.rounds)] = task.finished.model_digest
        folders = [
            folder
            for folder in (self._network.server / "models").glob("*")
            if (first := folder / "round-000.safetensors").exists()
            and str(file_digest(first)) == task.spec.model.initial_digest
        ]
        if not folders:
            raise AuditError(
                f"task {task.task_id}: the server's copy of the initial model is missing or changed"
            )
        for folder in folders:
            for index, digest in digests.items():
                path = folder / f"round-{index:03d}.safetensors"
                if path.exists() and file_digest(path) != digest:
                    raise AuditError(
                        f"the server's copy {folder.name}/{path.name} is not the model that was registered"
                    )

    def _open(self, root: Digest, recipients: list[bytes], context: ArtifactContext, name: str) -> Path:
        target = self._work / name
        fetch_artifact(self._store, root, self._identity, recipients, context, target)
        return target

    def _model_recipients(self) -> list[bytes]:
        return [*self._task.task_keys.values(), self._server_key]


def _server_identity(network: Network) -> Opener:
    return open_identities(load_settings(ServerSettings, network.server).keys)
