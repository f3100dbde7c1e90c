"""From a global model and a round's updates to the next global model: FedAvg, and what servers do after averaging.

Every rule begins with the average (`aggregate.py`). FedAvgM (Hsu et al. 2019) and FedAdam (Reddi et al. 2021,
Algorithm 2) take its difference from the old model for a gradient, and take a step with moments that they keep from
round to round. The moments follow from the updates of all rounds, so an auditor derives them again as it goes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from consilia.errors import WeightsError
from consilia.federation.aggregate import BLOCK_FLOATS, WeightedUpdate, federated_average
from consilia.federation.tensors import (
    LOCAL_KEY,
    Float32Array,
    TensorFile,
    local_tensors,
    require_same_shapes,
    shared_shapes,
    write_tensors,
)
from consilia.values import Digest

Float64Array = npt.NDArray[np.float64]

LEARNING_RATE = {"fedavg": 1.0, "fedavgm": 1.0, "fedadam": 0.003}
"""Where the task names none. FedAvgM's is plain momentum; FedAdam moves each weight by about its rate a round."""

MOMENTUM = {"fedavg": 0.0, "fedavgm": 0.5, "fedadam": 0.9}
"""Where the task names none. FedAvgM's usual 0.9 moves ten times as far as the average: in 15 rounds that was far
worse than no momentum, and 0.5 a little better (docs/results.md)."""

SECOND_DECAY = 0.99
"""FedAdam's beta_2, as in Reddi et al."""
ADAPTIVITY = 1e-3
"""FedAdam's tau, as in Reddi et al.; the second moments begin at its square."""


@dataclass(frozen=True)
class AggregationRule:
    """How a task's server makes the next global model."""

    name: Literal["fedavg", "fedavgm", "fedadam"] = "fedavg"
    learning_rate: float = 1.0
    momentum: float = 0.9
    local_norm: bool = False
    """The model names tensors that stay at the hospitals (FedBN); they pass from model to model unchanged."""

    @property
    def is_plain_average(self) -> bool:
        """Whether the updates alone make the next model."""
        return self.name == "fedavg" and not self.local_norm

    @property
    def moments(self) -> tuple[str, ...]:
        """What the rule keeps from round to round, for every shared tensor."""
        return {"fedavg": (), "fedavgm": ("first",), "fedadam": ("first", "second")}[self.name]


def moments_beside(model: Path) -> Path:
    """Where the moments lie that came with a global model."""
    return model.with_suffix(".moments")


def next_global_model(
    rule: AggregationRule, updates: Sequence[WeightedUpdate], model: Path, out: Path, *, first: bool
) -> Digest:
    """Write w_{t+1} of w_t and the round's updates, and the rule's moments beside it; return its SHA-256.

    Bit-reproducible as the average is: one operation at a time in float64, each rounded as IEEE 754 says, and one
    rounding to float32 for the moments and one for the weights. In blocks: no more in memory than the average needs.

    Args:
        model: w_t, with its moments beside it; not read where the average is all.
        first: this is the task's first round: there are no moments yet.

    Raises:
        WeightsError: the updates do not have the model's shared tensors, or the moments of the last round are gone.
        ValueError: there is no update, or one without examples.
    """
    if rule.is_plain_average:
        return federated_average(updates, out)
    average, digest = out.with_suffix(".average"), hashlib.sha256()
    try:
        federated_average(updates, average)
        with ExitStack() as stack:
            mean, before = (stack.enter_context(TensorFile(path)) for path in (average, model))
            require_same_shapes(mean, shared_shapes(before))
            moments = moments_beside(out)
            if rule.moments:
                _write_moments(rule, mean, before, None if first else moments_beside(model), moments)
            metadata = {key: value for key, value in before.metadata.items() if key == LOCAL_KEY}
            write_tensors(
                out, before.shapes, _stepped(rule, mean, before, moments), metadata, written=digest.update
            )
    finally:
        average.unlink(missing_ok=True)
    return Digest(digest.digest())


def _write_moments(
    rule: AggregationRule, mean: TensorFile, before: TensorFile, kept: Path | None, out: Path
) -> None:
    """m = beta m + d (FedAvgM), or m = beta m + (1 - beta) d and v = b2 v + (1 - b2) d^2 (FedAdam)."""
    if kept is not None and not kept.exists():
        raise WeightsError(
            f"the moments of the last round ({kept.name}) are missing; restore them from a backup"
        )
    shapes = {f"{moment}/{name}": shape for moment in rule.moments for name, shape in mean.shapes.items()}
    with ExitStack() as stack:
        last = stack.enter_context(TensorFile(kept)) if kept is not None else None
        if last is not None:
            require_same_shapes(last, shapes)
        write_tensors(out, shapes, _moments(rule, mean, before, last))


def _moments(
    rule: AggregationRule, mean: TensorFile, before: TensorFile, last: TensorFile | None
) -> Iterator[tuple[str, Float32Array]]:
    for moment in rule.moments:
        for name in sorted(mean.tensors):
            tensor = np.empty(mean.tensors[name].shape, np.float32)
            for block in _blocks(tensor):
                change = _read(mean, name, block).astype(np.float64)
                change -= _read(before, name, block)
                if last is None:
                    start = ADAPTIVITY**2 if moment == "second" else 0.0
                    value = np.full(change.shape, start)
                else:
                    value = _read(last, f"{moment}/{name}", block).astype(np.float64)
                tensor.reshape(-1)[block] = _moved(rule, moment, value, change)
            yield f"{moment}/{name}", tensor


def _moved(rule: AggregationRule, moment: str, value: Float64Array, change: Float64Array) -> Float64Array:
    if moment == "second":
        return SECOND_DECAY * value + (1 - SECOND_DECAY) * (change * change)
    if rule.name == "fedavgm":
        return rule.momentum * value + change
    return rule.momentum * value + (1 - rule.momentum) * change


def _stepped(
    rule: AggregationRule, mean: TensorFile, before: TensorFile, moments: Path
) -> Iterator[tuple[str, Float32Array]]:
    """The next model's tensors: local ones as they were, the others averaged or moved by the moments."""
    local = local_tensors(before)
    with ExitStack() as stack:
        kept = stack.enter_context(TensorFile(moments)) if rule.moments else None
        for name in sorted(before.tensors):
            if kept is None or name in local:
                yield name, (before if name in local else mean).read(name)
                continue
            tensor = np.empty(before.tensors[name].shape, np.float32)
            for block in _blocks(tensor):
                step = _read(kept, f"first/{name}", block).astype(np.float64)
                if rule.name == "fedadam":
                    second = _read(kept, f"second/{name}", block).astype(np.float64)
                    step /= np.sqrt(second) + ADAPTIVITY
                tensor.reshape(-1)[block] = _read(before, name, block) + rule.learning_rate * step
            yield name, tensor


def _blocks(tensor: Float32Array) -> Iterator[slice]:
    for begin in range(0, tensor.size, BLOCK_FLOATS):
        yield slice(begin, min(begin + BLOCK_FLOATS, tensor.size))


def _read(file: TensorFile, name: str, block: slice) -> Float32Array:
    numbers = np.empty(block.stop - block.start, np.float32)
    file.read_block(name, block.start, numbers)
    return numbers
