"""The model and the local work of the benchmark: weights of a chosen size, moved by a known amount, so that the
average that must come out is known to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from consilia.federation.tensors import TensorFile, write_tensors
from consilia.protocols.training import SkippedStudy

TENSOR_FLOATS = 655_360  # 2.6 MB tensors: about what ResNet-50-FPN detectors carry


def ballast_shapes(megabytes: float) -> dict[str, tuple[int, ...]]:
    """Tensors of `megabytes` * 10^6 bytes of float32 altogether."""
    floats = max(1, round(megabytes * 1e6 / 4))
    sizes = [min(TENSOR_FLOATS, floats - at) for at in range(0, floats, TENSOR_FLOATS)]
    return {f"ballast.{index:03d}": (size,) for index, size in enumerate(sizes)}


def write_initial(path: Path, megabytes: float) -> None:
    """Write the initial model w_0: all zeros."""
    shapes = ballast_shapes(megabytes)
    write_tensors(path, shapes, ((name, np.zeros(shape, np.float32)) for name, shape in shapes.items()))


def local_amount(number: int) -> np.float32:
    """By how much hospital `number` (from 1) moves each weight in a round."""
    return np.float32(number * 1e-3)


def examples_of(number: int) -> int:
    """How many examples hospital `number` claims: unequal ones, so that a plain mean would be found out."""
    return 10 * number


def expected_value(order: Sequence[int], rounds: int) -> np.float32:
    """What every weight must be at the end, when the hospitals' weights are summed in this order."""
    total = sum(examples_of(number) for number in order)
    weight = np.float32(0)
    for _ in range(rounds):
        average = np.float64(0)
        for number in order:
            average += examples_of(number) / total * np.float64(weight + local_amount(number))
        weight = np.float32(average)
    return weight


def require_exact(tensors: Sequence[npt.NDArray[np.float32]], expected: np.float32) -> None:
    """Check that every weight is exactly the expected one.

    Raises:
        AssertionError: one is not: the framework under test did not average, or not in float64.
    """
    for tensor in tensors:
        if not (tensor == expected).all():
            raise AssertionError(
                f"expected every weight to be {expected!r}, got {tensor[tensor != expected][:3]}"
            )


class BallastTrainer:
    """A `LocalTrainer` that adds a constant. Like a real one it keeps its model in memory between the rounds."""

    studies_used = 0
    studies_skipped: tuple[SkippedStudy, ...] = ()

    def __init__(self, number: int) -> None:
        self.num_examples = examples_of(number)
        self._amount = local_amount(number)
        self._local: dict[str, npt.NDArray[np.float32]] = {}

    def train(self, weights: Path, round_index: int) -> tuple[float, int]:
        """w_k = w + amount; the loss is none."""
        with TensorFile(weights) as file:
            for name, shape in file.shapes.items():
                local = self._local.setdefault(name, np.empty(shape, np.float32))
                np.add(file.read(name), self._amount, out=local)
        return 0.0, 1

    def save(self, path: Path, metadata: dict[str, str]) -> None:
        """Write w_k."""
        shapes = {name: tensor.shape for name, tensor in self._local.items()}
        write_tensors(path, shapes, sorted(self._local.items()), metadata)
