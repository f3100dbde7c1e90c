"""What a server finds out and decides in a round: each update examined, the round's report, what closes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from consilia.crypto.envelope import Opened
from consilia.errors import UpdateRejectedError
from consilia.federation.rules import LEARNING_RATE, MOMENTUM, AggregationRule
from consilia.federation.tensors import TensorFile
from consilia.ledger.events import UpdateRegistered
from consilia.protocols.task_spec import TaskSpec
from consilia.protocols.training import (
    METRICS_KEY,
    LocalMetrics,
    Outcome,
    RoundReport,
    UpdateOutcome,
    from_bitmap,
)
from consilia.roles.training.task_log import RoundLog, TaskLog
from consilia.values import Address, Digest


@dataclass(frozen=True)
class Examined:
    """A registered update after the server has opened it: its weights, or the reason why it is refused."""

    registered: UpdateRegistered
    weights: Path
    metrics: LocalMetrics | None
    refusal: str = ""
    norm: float = 0.0
    """Of what it changes, ||w_k - w||."""
    opening_seconds: float = 0.0


@dataclass(frozen=True)
class Closing:
    """What closes a round on the ledger, decided once."""

    trail: Digest
    counted: int
    included: tuple[int, int]
    report_root: Digest
    report_size: int
    report_digest: Digest
    model_root: Digest
    model_size: int
    model_digest: Digest

    def arguments(self) -> dict[str, Any]:
        """The fields by name, for `Ledger.close_round`."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def to_json(self) -> str:
        """As the state keeps it."""
        values = self.arguments().items()
        return json.dumps(
            {name: str(value) if isinstance(value, Digest) else value for name, value in values}
        )

    @classmethod
    def from_json(cls, text: str) -> Closing:
        """What `to_json` wrote."""
        raw = json.loads(text)
        included = raw.pop("included")
        values: dict[str, Any] = {
            name: Digest.from_hex(v) if isinstance(v, str) else v for name, v in raw.items()
        }
        return cls(included=(included[0], included[1]), **values)


def rule_of(spec: TaskSpec) -> AggregationRule:
    """The aggregation rule that a TaskSpec names; server and auditor both ask here."""
    training = spec.training
    name, rate, momentum = training.aggregation, training.server_learning_rate, training.server_momentum
    return AggregationRule(
        name,
        LEARNING_RATE[name] if rate is None else rate,
        MOMENTUM[name] if momentum is None else momentum,
        training.local_norm,
    )


def require_registered(opened: Opened, registered: UpdateRegistered) -> None:
    """Check what else the ledger says of an envelope; who buys the update or audits the task relies on it.

    Raises:
        UpdateRejectedError: its size, or the hash of its secret, is not the registered one.
    """
    if opened.size != registered.size:
        raise UpdateRejectedError(f"its size is {opened.size} bytes, registered were {registered.size}")
    if opened.key_hash != registered.key_hash:
        raise UpdateRejectedError("the hash of its envelope's secret is not the one registered")


def read_metrics(weights: Path, registered: UpdateRegistered) -> LocalMetrics:
    """The metrics inside an update, checked against their digest on the ledger.

    Raises:
        UpdateRejectedError: they are missing, or not the registered ones.
    """
    with TensorFile(weights) as file:
        data = file.metadata.get(METRICS_KEY, "").encode()
    if not data:
        raise UpdateRejectedError(f"expected local metrics under {METRICS_KEY}, found none")
    metrics = LocalMetrics.from_bytes(data)
    if metrics.digest != registered.metrics_digest:
        raise UpdateRejectedError("its local metrics are not those whose digest was registered")
    return metrics


def report_round(task: TaskLog, round_index: int, examined: list[Examined]) -> RoundReport:
    """Every enrolled hospital's line: included, rejected with the reason, late, or missing."""
    by_hospital = {update.registered.hospital: update for update in examined}
    lines = [
        _line(hospital, by_hospital.get(hospital), task.rounds[round_index]) for hospital in task.enrolled
    ]
    return RoundReport(task.task_id, round_index, tuple(lines))


def _line(hospital: Address, examined: Examined | None, current: RoundLog) -> UpdateOutcome:
    if examined is None:
        if (late := current.update_of(hospital)) is None:
            return UpdateOutcome(
                hospital, Outcome.MISSING, "registered nothing before the round was aggregated"
            )
        return UpdateOutcome(
            hospital, Outcome.LATE, "registered after the round was aggregated", late.position
        )
    registered = examined.registered
    outcome = Outcome.REJECTED if examined.refusal else Outcome.INCLUDED
    return UpdateOutcome(
        hospital,
        outcome,
        examined.refusal,
        registered.position,
        registered.num_examples,
        registered.size,
        examined.metrics,
    )


def samples_included(task: TaskLog) -> dict[Address, int]:
    """How many examples of each hospital entered the averages, over all rounds."""
    samples: dict[Address, int] = {}
    for current in task.rounds:
        included = set(from_bitmap(current.closed.included)) if current.closed else set()
        for update in current.updates:
            if update.position in included:
                samples[update.hospital] = samples.get(update.hospital, 0) + update.num_examples
    return samples
