"""Weights files: one form or refused, and the same form as that of the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from consilia.errors import WeightsError
from consilia.federation.tensors import MAX_HEADER_BYTES, TensorFile, write_tensors

TENSORS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.float32([1.5]),
    "z": np.array(7, np.float32),
}
HEADER: dict[str, Any] = {
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "b": {"dtype": "F32", "shape": [2, 3], "data_offsets": [4, 28]},
}


def written(path: Path, **metadata: str) -> Path:
    shapes = {name: tensor.shape for name, tensor in TENSORS.items()}
    write_tensors(path, shapes, ((name, TENSORS[name]) for name in sorted(TENSORS)), metadata)
    return path


def raw(path: Path, header: object, data_bytes: int = 28) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(data_bytes))
    return path


def test_what_was_written_is_read(tmp_path: Path) -> None:
    with TensorFile(written(tmp_path / "w", note="hello")) as file:
        assert file.metadata == {"note": "hello"}
        assert file.shapes == {"a": (1,), "b": (2, 3), "z": ()}
        assert all(np.array_equal(file.read(name), tensor) for name, tensor in TENSORS.items())


def test_the_library_reads_ours_and_we_read_the_librarys(tmp_path: Path) -> None:
    ours = load_file(written(tmp_path / "ours", note="hello"))
    assert ours.keys() == TENSORS.keys()
    assert all(np.array_equal(ours[name], tensor) for name, tensor in TENSORS.items())
    save_file(TENSORS, tmp_path / "theirs", {"note": "hello"})
    with TensorFile(tmp_path / "theirs") as file:
        assert file.metadata == {"note": "hello"}
        assert all(np.array_equal(file.read(name), tensor) for name, tensor in TENSORS.items())


def test_equal_weights_are_equal_bytes(tmp_path: Path) -> None:
    first = written(tmp_path / "one", b="2", a="1").read_bytes()
    assert first == written(tmp_path / "two", a="1", b="2").read_bytes()


def changed(**entry: object) -> dict[str, Any]:
    return HEADER | {"b": HEADER["b"] | entry}


BAD_HEADERS: dict[str, tuple[object, int]] = {
    "a gap": (changed(data_offsets=[8, 32]), 32),
    "an overlap": (changed(data_offsets=[0, 24]), 24),
    "reversed offsets": (changed(data_offsets=[28, 4]), 28),
    "negative offsets": (changed(data_offsets=[-4, 20]), 28),
    "offsets of another length": (changed(data_offsets=[4, 24]), 24),
    "another type": (changed(dtype="F16"), 28),
    "a type that is a list": (changed(dtype=["F32"]), 28),
    "a negative size": (changed(shape=[-2, -3]), 28),
    "a size that is true": (changed(shape=[True, 6]), 28),
    "a size with a fraction": (changed(shape=[2.0, 3]), 28),
    "a size beyond 2^64": (changed(shape=[2**64, 2**64]), 28),
    "a shape of thousands of digits": (changed(shape=[10**4000, 10**4000]), 28),
    "many large sizes": (changed(shape=[2**47] * 400), 28),
    "offsets that are true": ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [False, 4]}}, 4),
    "a shape that is a number": (changed(shape=6), 28),
    "another key": (changed(pickle="cos\nsystem"), 28),
    "too few bytes": (HEADER, 27),
    "too many bytes": (HEADER, 29),
    "another order": (
        {"b": {**HEADER["b"], "data_offsets": [0, 24]}, "a": {**HEADER["a"], "data_offsets": [24, 28]}},
        28,
    ),
    "a list": ([1], 28),
    "no JSON": (b"{", 28),
    "no UTF-8": (b'{"\xff":1}', 28),
    "nested deep": (b"[" * 200_000, 28),
    "a long number": (b'{"a":' + b"9" * 5000 + b"}", 28),
    "not a number": (b'{"a":NaN}', 28),
    "half a character": (b'{"\\ud800":1}', 28),
    "half a character in the metadata": ({"__metadata__": {"x": "\ud800"}, **HEADER}, 28),
    "a key twice": (b'{"a":1,"a":2}', 28),
    "metadata of numbers": ({"__metadata__": {"x": 1}, **HEADER}, 28),
    "metadata that are a list": ({"__metadata__": ["x"], **HEADER}, 28),
}


def test_the_good_header_is_read(tmp_path: Path) -> None:
    with TensorFile(raw(tmp_path / "w", HEADER)) as file:
        assert file.read("b").shape == (2, 3)


@pytest.mark.parametrize("harm", BAD_HEADERS)
def test_a_bad_header_is_refused(tmp_path: Path, harm: str) -> None:
    header, data_bytes = BAD_HEADERS[harm]
    with pytest.raises(WeightsError) as refused, TensorFile(raw(tmp_path / "w", header, data_bytes)):
        pass
    str(refused.value).encode()  # it goes into a round report


@pytest.mark.parametrize("size", [0, 7, 8])
def test_a_file_without_a_header_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "w").write_bytes(bytes(size))
    with pytest.raises(WeightsError), TensorFile(tmp_path / "w"):
        pass


@pytest.mark.parametrize("length", [29, MAX_HEADER_BYTES + 1, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_or_any_honest_one_is_refused(tmp_path: Path, length: int) -> None:
    (tmp_path / "w").write_bytes(length.to_bytes(8, "little") + bytes(28))
    with pytest.raises(WeightsError, match="header"), TensorFile(tmp_path / "w"):
        pass


@pytest.mark.parametrize("name", ["x" * 100_000, "\x1b[2J"])
def test_a_strange_name_stays_short_and_plain_in_the_message(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError) as refused, TensorFile(raw(tmp_path / "w", {name: {"dtype": "F16"}})):
        pass
    assert len(str(refused.value)) < 500 and "\x1b" not in str(refused.value)


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
def test_any_flipped_byte_is_refused_or_changes_a_number(tmp_path: Path, data: st.DataObject) -> None:
    good = written(tmp_path / "good", note="hello").read_bytes()
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    (tmp_path / "bad").write_bytes(bad)
    try:
        with TensorFile(tmp_path / "bad") as file:
            for name in file.tensors:
                file.read(name)
    except WeightsError:
        pass


@pytest.mark.parametrize("order", [["b", "a", "z"], ["a", "b"], ["a", "a", "b", "z"]])
def test_a_writer_that_muddles_the_order_writes_nothing(tmp_path: Path, order: list[str]) -> None:
    shapes = {name: tensor.shape for name, tensor in TENSORS.items()}
    with pytest.raises(WeightsError):
        write_tensors(tmp_path / "w", shapes, ((name, TENSORS[name]) for name in order))
    assert not (tmp_path / "w").exists()
