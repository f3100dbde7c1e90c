"""FedAvg, w_{t+1} = sum_k (n_k / n) w_k, the same bits whoever computes it (equation 3 of the paper; McMahan 2017)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from consilia.errors import UpdateRejectedError, WeightsError
from consilia.federation.tensors import (
    Float32Array,
    TensorFile,
    require_same_shapes,
    shared_shapes,
    write_tensors,
)
from consilia.values import Address, Digest

BLOCK_FLOATS = 1 << 15
"""Averaged at a time: what this needs stays in a core's own cache."""


@dataclass(frozen=True)
class WeightedUpdate:
    """One hospital's weights w_k after its local steps, and the n_k points that they were trained on."""

    hospital: Address
    weights: Path
    num_examples: int


def federated_average(updates: Sequence[WeightedUpdate], out: Path) -> Digest:
    """Write the mean of the updates, weighted by their examples; return the SHA-256 of the file.

    Bit-reproducible: hospitals in the order of their addresses, float64 sums, one rounding to float32 at the end.
    In blocks, so that the memory is that of the largest tensor, however many hospitals there are.

    Raises:
        WeightsError: the updates do not have the same tensors.
        ValueError: there is no update, or one without examples.
    """
    ordered = sorted(updates, key=lambda update: bytes.fromhex(update.hospital.removeprefix("0x")))
    if not ordered or any(update.num_examples < 1 for update in ordered):
        raise ValueError("an average needs at least one update, and each at least one example")
    total = sum(update.num_examples for update in ordered)
    with ExitStack() as stack:
        files = [stack.enter_context(TensorFile(update.weights)) for update in ordered]
        for file in files[1:]:
            require_same_shapes(file, files[0].shapes)
        shares = [update.num_examples / total for update in ordered]
        digest = hashlib.sha256()
        with ThreadPoolExecutor(1) as hasher:
            write_tensors(
                out,
                files[0].shapes,
                _averages(files, shares),
                written=lambda piece: hasher.submit(digest.update, piece),
            )
    return Digest(digest.digest())


def _averages(files: Sequence[TensorFile], shares: Sequence[float]) -> Iterator[tuple[str, Float32Array]]:
    part = np.empty(BLOCK_FLOATS, np.float32)
    scaled, total = np.empty(BLOCK_FLOATS), np.empty(BLOCK_FLOATS)
    for name in sorted(files[0].tensors):
        average = np.empty(files[0].tensors[name].shape, np.float32)
        flat = average.reshape(-1)
        for first in range(0, flat.size, BLOCK_FLOATS):
            count = min(BLOCK_FLOATS, flat.size - first)
            total[:count] = 0
            for file, share in zip(files, shares, strict=True):
                file.read_block(name, first, part[:count])
                scaled[:count] = part[
                    :count
                ]  # a pass of its own: multiplying while widening goes by small buffers
                scaled[:count] *= share
                total[:count] += scaled[:count]
            flat[first : first + count] = total[:count]
        yield name, average


def check_update(weights: Path, global_model: Path, max_norm: float) -> float:
    """Decide whether an update may enter the average; return the norm of what it changes, ||w_k - w||.

    Raises:
        UpdateRejectedError: wrong tensors, a number that is not finite, or a change beyond `max_norm`.
    """
    square = 0.0
    try:
        with TensorFile(weights) as update, TensorFile(global_model) as model:
            shared = shared_shapes(model)
            require_same_shapes(update, shared)
            for name in shared:
                square += _squared_change(update, model, name)
    except WeightsError as error:
        raise UpdateRejectedError(f"not the weights of this task's model: {error}") from error
    norm = float(np.sqrt(square))
    if not norm <= max_norm:
        raise UpdateRejectedError(
            f"its change has norm {norm:.6g}, beyond the task's bound of {max_norm:.6g}"
        )
    return norm


def _squared_change(update: TensorFile, model: TensorFile, name: str) -> float:
    """The squared norm of what an update changes in one tensor."""
    square = 0.0
    floats = int(np.prod(model.shapes[name], dtype=np.int64))
    change, before = np.empty(BLOCK_FLOATS, np.float32), np.empty(BLOCK_FLOATS, np.float32)
    for first in range(0, floats, BLOCK_FLOATS):
        count = min(BLOCK_FLOATS, floats - first)
        update.read_block(name, first, change[:count])
        model.read_block(name, first, before[:count])
        change[:count] -= before[:count]
        block = float(np.vdot(change[:count], change[:count]))
        # a single number that is not finite shows in the sum, so most blocks need no second look
        if not np.isfinite(block) and not np.isfinite(change[:count]).all():
            raise UpdateRejectedError(f"{name} holds a number that is not finite")
        square += block
    return square
