"""What the server does after averaging: the published formulas, the same bits again, and nothing forgotten."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from consilia.errors import UpdateRejectedError, WeightsError
from consilia.federation.aggregate import WeightedUpdate, check_update, federated_average
from consilia.federation.rules import AggregationRule, moments_beside, next_global_model
from consilia.federation.tensors import LOCAL_KEY, TensorFile, local_names, write_tensors
from consilia.values import Digest

Tensors = Mapping[str, np.ndarray]
MODEL = {"a": np.float32([1, -2, 0.5]), "b": np.float32([[4]]), "norm": np.float32([1, 1])}
RULES = [
    AggregationRule("fedavgm", 0.5, 0.9),
    AggregationRule("fedadam", 0.01, 0.9),
    AggregationRule("fedavg", local_norm=True),
    AggregationRule("fedadam", 0.01, 0.9, local_norm=True),
]


def write(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_tensors(path, shapes, ((name, tensors[name]) for name in sorted(tensors)), metadata)
    return path


def read(path: Path) -> dict[str, np.ndarray]:
    with TensorFile(path) as file:
        return {name: file.read(name) for name in file.tensors}


def first_model(folder: Path, rule: AggregationRule) -> Path:
    return write(folder / "m0", MODEL, {LOCAL_KEY: local_names(["norm"])} if rule.local_norm else None)


def updates_of(folder: Path, rule: AggregationRule, round_index: int) -> list[WeightedUpdate]:
    rng = np.random.default_rng(round_index)
    updates = []
    for k in range(3):
        drawn = {name: (t + rng.normal(size=t.shape)).astype(np.float32) for name, t in MODEL.items()}
        shared = {name: t for name, t in drawn.items() if not (rule.local_norm and name == "norm")}
        path = write(folder / f"r{round_index}-u{k}", shared)
        updates.append(WeightedUpdate(f"0x{k * 77 + 1:040x}", path, k + 1))
    return updates


def three_rounds(folder: Path, rule: AggregationRule, source: Path) -> list[Digest]:
    folder.mkdir(exist_ok=True)
    model, digests = first_model(folder, rule), []
    for t in range(3):
        updates = updates_of(source, rule, t)
        random.Random(t).shuffle(updates)
        digests.append(next_global_model(rule, updates, model, folder / f"m{t + 1}", first=t == 0))
        model = folder / f"m{t + 1}"
        assert digests[-1] == Digest.of(model.read_bytes())
    return digests


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_same_updates_give_the_same_bits_and_nothing_is_left_behind(
    tmp_path: Path, rule: AggregationRule
) -> None:
    assert three_rounds(tmp_path / "one", rule, tmp_path) == three_rounds(tmp_path / "two", rule, tmp_path)
    left = {path.suffix for path in (tmp_path / "one").iterdir()}
    assert left == ({"", ".moments"} if rule.moments else {""})


def test_momentum_and_adam_are_the_published_formulas(tmp_path: Path) -> None:
    for rule in RULES[:2]:
        folder = tmp_path / rule.name
        three_rounds(folder, rule, tmp_path)
        weights = {name: t.astype(np.float64) for name, t in MODEL.items()}
        first = {name: np.zeros_like(t) for name, t in weights.items()}
        second = {name: np.full_like(t, 1e-6) for name, t in weights.items()}
        for t in range(3):
            updates = [read(update.weights) for update in updates_of(tmp_path, rule, t)]
            for name, w in weights.items():
                change = sum((k + 1) / 6 * u[name].astype(np.float64) for k, u in enumerate(updates)) - w
                if rule.name == "fedavgm":
                    first[name] = 0.9 * first[name] + change
                    w += 0.5 * first[name]
                else:
                    first[name] = 0.9 * first[name] + 0.1 * change
                    second[name] = 0.99 * second[name] + 0.01 * change**2
                    w += 0.01 * first[name] / (np.sqrt(second[name]) + 1e-3)
            found = read(folder / f"m{t + 1}")
            assert all(np.allclose(found[name], w, rtol=1e-5, atol=1e-6) for name, w in weights.items())


def test_without_momentum_the_server_lands_on_the_average(tmp_path: Path) -> None:
    rule = AggregationRule("fedavgm", 1.0, 0.0)
    updates = updates_of(tmp_path, rule, 0)
    next_global_model(rule, updates, first_model(tmp_path, rule), tmp_path / "out", first=True)
    federated_average(updates, tmp_path / "average")
    out, average = read(tmp_path / "out"), read(tmp_path / "average")
    assert all(np.allclose(out[name], average[name], rtol=1e-6) for name in MODEL)


def test_the_plain_average_is_what_it_was(tmp_path: Path) -> None:
    rule = AggregationRule()
    updates = updates_of(tmp_path, rule, 0)
    digest = next_global_model(rule, updates, tmp_path / "not read", tmp_path / "out", first=True)
    assert digest == federated_average(updates, tmp_path / "average")
    assert not moments_beside(tmp_path / "out").exists()


def test_local_tensors_pass_unchanged_and_an_update_must_not_hold_them(tmp_path: Path) -> None:
    rule = RULES[2]
    model, updates = first_model(tmp_path, rule), updates_of(tmp_path, rule, 0)
    next_global_model(rule, updates, model, tmp_path / "out", first=True)
    out = read(tmp_path / "out")
    assert np.array_equal(out["norm"], MODEL["norm"])
    assert not np.array_equal(out["a"], MODEL["a"])
    assert check_update(updates[0].weights, tmp_path / "out", 100.0) > 0
    with pytest.raises(UpdateRejectedError, match="norm: the task's model has no such tensor"):
        check_update(write(tmp_path / "whole", MODEL), model, 100.0)
    with pytest.raises(UpdateRejectedError, match="b: expected shape"):
        check_update(write(tmp_path / "less", {"a": MODEL["a"]}), model, 100.0)


@pytest.mark.parametrize(
    "named", ["", "[", '"norm"', '["other"]', '["norm","norm"]', '["norm","a"]', '["a","b","norm"]', "[[]]"]
)
def test_a_model_that_names_local_tensors_in_another_way_is_refused(tmp_path: Path, named: str) -> None:
    model = write(tmp_path / "model", MODEL, {LOCAL_KEY: named})
    with pytest.raises(UpdateRejectedError, match=LOCAL_KEY):
        check_update(model, model, 1.0)


@pytest.mark.parametrize("rule", RULES[:2], ids=str)
def test_moments_that_are_gone_or_of_another_model_are_no_fresh_start(
    tmp_path: Path, rule: AggregationRule
) -> None:
    """Beginning again in silence would make a model that no auditor could derive."""
    three_rounds(tmp_path, rule, tmp_path)
    updates = updates_of(tmp_path, rule, 3)
    moments = moments_beside(tmp_path / "m3")
    kept = moments.read_bytes()
    moments.unlink()
    with pytest.raises(WeightsError, match=r"m3\.moments.*missing"):
        next_global_model(rule, updates, tmp_path / "m3", tmp_path / "m4", first=False)
    write(moments, {"first/a": MODEL["a"]})
    with pytest.raises(WeightsError, match="the tensor is missing"):
        next_global_model(rule, updates, tmp_path / "m3", tmp_path / "m4", first=False)
    assert not (tmp_path / "m4").exists()
    moments.write_bytes(kept)
    next_global_model(rule, updates, tmp_path / "m3", tmp_path / "m4", first=False)


def test_one_bit_of_the_moments_changes_the_model(tmp_path: Path) -> None:
    rule = RULES[0]
    three_rounds(tmp_path, rule, tmp_path)
    updates = updates_of(tmp_path, rule, 3)
    honest = next_global_model(rule, updates, tmp_path / "m3", tmp_path / "m4", first=False)
    moments = moments_beside(tmp_path / "m3")
    data = bytearray(moments.read_bytes())
    data[-2] ^= 0x40
    moments.write_bytes(data)
    assert next_global_model(rule, updates, tmp_path / "m3", tmp_path / "m4", first=False) != honest


def test_a_large_tensor_is_stepped_across_all_blocks(tmp_path: Path) -> None:
    rule = AggregationRule("fedadam", 0.01, 0.9)
    rng = np.random.default_rng(0)
    before, after = (rng.normal(size=100_003).astype(np.float32) for _ in range(2))
    model = write(tmp_path / "m0", {"big": before, "none": np.zeros((0, 3), np.float32)})
    update = write(tmp_path / "u", {"big": after, "none": np.zeros((0, 3), np.float32)})
    next_global_model(rule, [WeightedUpdate("0x" + "1" * 40, update, 7)], model, tmp_path / "m1", first=True)
    change = after.astype(np.float64) - before
    step = 0.1 * change / (np.sqrt(0.99e-6 + 0.01 * change**2) + 1e-3)
    found = read(tmp_path / "m1")
    assert np.allclose(found["big"], before + 0.01 * step, rtol=1e-6, atol=1e-7)
    assert found["none"].shape == (0, 3)
