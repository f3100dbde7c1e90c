"""The processes that torchrun started beside a hospital's: rank 0 is the hospital, the others only train with it.

    torchrun --nproc-per-node 4 -m consilia hospital run --home DIR

Rank 0 tells them what it is about to do, as canonical JSON; then all do it in step and average their gradients. They
open no keys, no ledger and no store, and write nothing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from consilia.detection.placement import Placement, join
from consilia.errors import InputError
from consilia.protocols.task_spec import TaskSpec, parse_bytes
from consilia.roles.progress import Report
from consilia.roles.training.local_training import DetectorTrainer
from consilia.settings.sections import DataSection
from consilia.values import Json, canonical_json, parse_json


class LeadingTrainer(DetectorTrainer):
    """Rank 0's trainer: it tells the other ranks of each task and of each round."""

    def __init__(
        self, spec: TaskSpec, data: DataSection, seed: int, report: Report, own_norm: Path | None = None
    ) -> None:
        join(Placement.here())
        self._name = f"{spec.digest}/{seed}"
        place = None if own_norm is None else str(own_norm.absolute())
        _tell({"task": self._name, "spec": spec.to_bytes().decode(), "seed": seed, "own_norm": place})
        super().__init__(spec, data, seed, report, own_norm)

    def train(self, weights: Path, round_index: int) -> tuple[float, int]:
        """The round, on all ranks."""
        _tell({"train": self._name, "weights": str(weights.absolute()), "round": round_index})
        return super().train(weights, round_index)


def follow(data: DataSection, report: Report) -> None:
    """What every other rank does: train as rank 0 says, until it says that it is over."""
    join(Placement.here())
    trainers: dict[str, DetectorTrainer] = {}
    while True:
        said = _hear()
        if "task" in said:
            spec = parse_bytes(said["spec"].encode())
            own_norm = None if said["own_norm"] is None else Path(said["own_norm"])
            with suppress(InputError):  # rank 0 refuses the task for the same reason
                trainers[said["task"]] = DetectorTrainer(spec, data, said["seed"], report, own_norm)
        elif "train" in said:
            trainers[said["train"]].train(Path(said["weights"]), said["round"])
        else:
            return


def dismiss() -> None:
    """Rank 0 is done: let the others end, also where there was no task yet."""
    join(Placement.here())
    _tell({"over": True})


def _tell(message: dict[str, Json]) -> None:
    data = torch.frombuffer(bytearray(canonical_json(message)), dtype=torch.uint8)
    distributed.broadcast(torch.tensor([data.numel()]), 0)
    distributed.broadcast(data, 0)


def _hear() -> dict[str, Any]:
    size = torch.zeros(1, dtype=torch.int64)
    distributed.broadcast(size, 0)
    data = torch.zeros(int(size), dtype=torch.uint8)
    distributed.broadcast(data, 0)
    message: dict[str, Any] = parse_json(data.numpy().tobytes())
    return message
