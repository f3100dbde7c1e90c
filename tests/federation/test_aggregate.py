"""FedAvg: the same bits in any order, exact where it can be, and what never enters it."""

from __future__ import annotations

import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some

from consilia.errors import UpdateRejectedError, WeightsError
from consilia.federation.aggregate import WeightedUpdate, check_update, federated_average
from consilia.federation.tensors import TensorFile, write_tensors
from consilia.values import Digest

Tensors = Mapping[str, np.ndarray]
FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
TENSOR_SETS = st.builds(
    lambda a, b: {"a": a, "b": b},
    some.arrays(np.float32, (2, 3), elements=FLOATS),
    some.arrays(np.float32, (), elements=FLOATS),
)
IN_A_FOLDER = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60
)


def write(path: Path, tensors: Tensors) -> Path:
    shapes = {name: np.asarray(tensor).shape for name, tensor in tensors.items()}
    write_tensors(path, shapes, ((name, np.asarray(tensors[name], np.float32)) for name in sorted(tensors)))
    return path


def updates_of(folder: Path, sets: list[Tensors], counts: list[int]) -> list[WeightedUpdate]:
    return [
        WeightedUpdate(f"0x{(index * 7919 + 1) % 65536:040x}", write(folder / f"u{index}", tensors), count)
        for index, (tensors, count) in enumerate(zip(sets, counts, strict=True))
    ]


SEVERAL = st.lists(st.tuples(TENSOR_SETS, st.integers(1, 2**40)), min_size=1, max_size=5)


@given(SEVERAL, st.randoms())
@IN_A_FOLDER
def test_the_order_of_the_updates_changes_no_bit(tmp_path: Path, several: list, random: object) -> None:
    updates = updates_of(tmp_path, [t for t, _ in several], [n for _, n in several])
    digest = federated_average(updates, tmp_path / "one")
    assert digest == Digest.of((tmp_path / "one").read_bytes())
    random.shuffle(updates)
    federated_average(updates, tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


@given(TENSOR_SETS, st.lists(st.integers(1, 2**40), min_size=1, max_size=6))
@IN_A_FOLDER
def test_the_average_of_equals_is_their_value(tmp_path: Path, tensors: Tensors, counts: list[int]) -> None:
    federated_average(updates_of(tmp_path, [tensors] * len(counts), counts), tmp_path / "out")
    with TensorFile(tmp_path / "out") as out:
        assert all(np.array_equal(out.read(name), tensors[name]) for name in tensors)


@given(SEVERAL)
@IN_A_FOLDER
def test_it_is_the_weighted_mean(tmp_path: Path, several: list) -> None:
    updates = updates_of(tmp_path, [t for t, _ in several], [n for _, n in several])
    federated_average(updates, tmp_path / "out")
    total = sum(n for _, n in several)
    with TensorFile(tmp_path / "out") as out:
        for name in ("a", "b"):
            expected = sum(np.float64(n / total) * t[name].astype(np.float64) for t, n in several)
            largest = max(np.abs(t[name]).max() for t, _ in several)
            assert np.allclose(out.read(name), expected, rtol=1e-6, atol=float(largest) * 1e-6)


def test_addresses_order_whatever_their_case(tmp_path: Path) -> None:
    first, second = (
        write(tmp_path / "a", {"x": np.float32([1e8])}),
        write(tmp_path / "b", {"x": np.float32([1])}),
    )
    third = write(tmp_path / "c", {"x": np.float32([-1e8])})
    for name, spell in (("one", str.lower), ("two", lambda address: "0x" + address[2:].upper())):
        addresses = [spell("0x" + byte * 20) for byte in ("ab", "cd", "ef")]
        updates = [WeightedUpdate(a, p, 3) for a, p in zip(addresses, (first, second, third), strict=True)]
        federated_average(updates, tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_large_tensor_is_averaged_across_all_blocks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sets = [
        {"big": random.normal(size=200_003).astype(np.float32), "none": np.zeros((0, 3), np.float32)}
        for _ in range(3)
    ]
    federated_average(updates_of(tmp_path, sets, [1, 2, 5]), tmp_path / "out")
    expected = sum(
        np.float64(n / 8) * s["big"].astype(np.float64) for s, n in zip(sets, (1, 2, 5), strict=True)
    )
    with TensorFile(tmp_path / "out") as out:
        assert np.array_equal(out.read("big"), expected.astype(np.float32))
        assert out.read("none").shape == (0, 3)


def test_memory_is_one_tensors_not_the_models_nor_the_hospitals(tmp_path: Path) -> None:
    tensors = {f"layer{n:02d}": np.zeros(250_000, np.float32) for n in range(20)}  # 1 MB each, 20 MB together
    updates = updates_of(tmp_path, [tensors] * 6, [1] * 6)
    tracemalloc.start()
    federated_average(updates, tmp_path / "out")
    check_update(updates[0].weights, updates[1].weights, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6  # six tensors at a time would be 6 MB in float32 and 12 in float64


@pytest.mark.parametrize("counts", [[], [0], [1, 0], [-1]])
def test_no_examples_no_average(tmp_path: Path, counts: list[int]) -> None:
    with pytest.raises(ValueError):
        federated_average(
            updates_of(tmp_path, [{"a": np.float32([1])}] * len(counts), counts), tmp_path / "out"
        )


def test_different_models_have_no_average(tmp_path: Path) -> None:
    for other in ({"a": np.zeros(3)}, {"b": np.zeros(2)}, {"a": np.zeros(2), "b": np.zeros(1)}, {}):
        with pytest.raises(WeightsError):
            federated_average(updates_of(tmp_path, [{"a": np.zeros(2)}, other], [1, 1]), tmp_path / "out")
        assert not (tmp_path / "out").exists()


MODEL = {"a": np.float32([0, 0, 0]), "b": np.float32([[1]])}


@pytest.mark.parametrize(
    ("update", "reason"),
    [
        (MODEL | {"a": np.float32([0, np.nan, 0])}, "a holds a number that is not finite"),
        (MODEL | {"b": np.float32([[-np.inf]])}, "b holds a number that is not finite"),
        (MODEL | {"a": np.float32([0, 0])}, r"a: expected shape \(3,\), got \(2,\)"),
        ({"a": MODEL["a"]}, "b: expected shape"),
        (MODEL | {"c": np.float32([0])}, "c: the task's model has no such tensor"),
        (MODEL | {"a": np.float32([3, 4, 0.1])}, "norm 5.001, beyond the task's bound of 5"),
        (MODEL | {"a": np.float32([3e38, 3e38, 3e38])}, "beyond the task's bound"),
        (MODEL | {"a": np.float32([1e25, 0, 0])}, "beyond the task's bound"),
    ],
)
def test_what_may_not_enter_the_average(tmp_path: Path, update: Tensors, reason: str) -> None:
    model = write(tmp_path / "model", MODEL)
    assert check_update(write(tmp_path / "good", MODEL | {"a": np.float32([3, 4, 0])}), model, 5.0) == 5.0
    with pytest.raises(UpdateRejectedError, match=reason):
        check_update(write(tmp_path / "update", update), model, 5.0)
