"""Weights files read and written one tensor at a time: safetensors, with nothing in memory but the tensor at hand."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from consilia.errors import WeightsError
from consilia.values import parse_json
from consilia.whole_file import whole_file

Float32Array = npt.NDArray[np.float32]

MAX_HEADER_BYTES = 16 << 20
"""No honest header is longer; a length beyond it is an attack on our memory."""

LOCAL_KEY = "consilia.local"
"""Where a global model names the tensors that stay at the hospitals, as a JSON list in order; none without it."""

_NAME = re.compile(r"[A-Za-z0-9._/-]{1,200}", re.ASCII)


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its shape, and its bytes' begin and end behind the header."""

    shape: tuple[int, ...]
    begin: int
    end: int


class TensorFile:
    """A weights file, open for reading. Only float32, in the order of the names, without gaps: one form, or refused.

    Raises:
        WeightsError: the file is not such a safetensors file; the message names the tensor.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            self.tensors, self.metadata, self._data = _read_header(self._file)
        except WeightsError:
            self._file.close()
            raise

    def __enter__(self) -> TensorFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The name and shape of each tensor."""
        return {name: info.shape for name, info in self.tensors.items()}

    def read(self, name: str) -> Float32Array:
        """The tensor of that name."""
        tensor = np.empty(self.tensors[name].shape, dtype="<f4")
        self.read_block(name, 0, tensor.reshape(-1))
        return tensor

    def read_block(self, name: str, first: int, out: Float32Array) -> None:
        """Fill `out`, flat and contiguous, with the tensor's numbers from the `first` one on, in C order.

        Raises:
            WeightsError: the file has become shorter since it was opened.
        """
        # not mapped: a mapping would count as memory in use, and kill this process if the file were cut
        at = self._data + self.tensors[name].begin + 4 * first
        left = out.view(np.uint8).data
        while left:
            count = os.preadv(self._file.fileno(), [left], at)
            if not count:
                raise WeightsError(f"{name}: {self.path.name} was cut while it was read")
            left, at = left[count:], at + count


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Float32Array]],
    metadata: Mapping[str, str] | None = None,
    written: Callable[[memoryview], object] | None = None,
) -> None:
    """Write a weights file from tensors that come in the order of their names.

    Equal weights and metadata give equal bytes. The file appears under its name only when it is whole.

    Args:
        written: told every piece of the file, in order; nothing changes it afterwards.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offset = 0
    for name in sorted(shapes):
        end = offset + 4 * int(np.prod(shapes[name], dtype=np.int64))
        header[name] = {"dtype": "F32", "shape": list(shapes[name]), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    names = []
    with whole_file(path) as file:

        def write(piece: memoryview) -> None:
            file.write(piece)
            if written is not None:
                written(piece)

        write(memoryview(len(text).to_bytes(8, "little") + text))
        for name, tensor in tensors:
            if tensor.shape != shapes[name]:
                raise WeightsError(f"{name}: expected shape {shapes[name]}, got {tensor.shape}")
            write(np.ascontiguousarray(tensor, dtype="<f4").data)
            names.append(name)
        if names != sorted(shapes):
            raise WeightsError("the tensors must come in the order of their names, each once")


def require_same_shapes(file: TensorFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file has exactly the expected tensors.

    Raises:
        WeightsError: a tensor is missing, is not known, or has another shape.
    """
    for name, shape in expected.items():
        if name not in file.tensors:
            raise WeightsError(f"{name}: expected shape {shape}, but the tensor is missing")
        if file.tensors[name].shape != shape:
            raise WeightsError(f"{name}: expected shape {shape}, got {file.tensors[name].shape}")
    unknown = sorted(set(file.tensors) - set(expected))
    if unknown:
        raise WeightsError(f"{unknown[0]}: the task's model has no such tensor")


def local_tensors(model: TensorFile) -> frozenset[str]:
    """The tensors of a global model that no update holds and no rule averages.

    Raises:
        WeightsError: the model names others than its own, or not in the one form.
    """
    if LOCAL_KEY not in model.metadata:
        return frozenset()
    try:
        names = parse_json(model.metadata[LOCAL_KEY].encode())
    except ValueError as error:
        raise WeightsError(f"{LOCAL_KEY}: expected names of tensors in JSON; {error}") from error
    known = isinstance(names, list) and all(isinstance(name, str) and name in model.tensors for name in names)
    if not known or model.metadata[LOCAL_KEY] != local_names(names) or len(names) == len(model.tensors):
        raise WeightsError(f"{LOCAL_KEY}: expected some of the model's tensors, in order and each once")
    return frozenset(names)


def local_names(names: Iterable[str]) -> str:
    """The value of `LOCAL_KEY` for these tensors."""
    return json.dumps(sorted(set(names)), separators=(",", ":"))


def shared_shapes(model: TensorFile) -> dict[str, tuple[int, ...]]:
    """What an update of a global model must hold: its tensors but the local ones."""
    local = local_tensors(model)
    return {name: shape for name, shape in model.shapes.items() if name not in local}


def _read_header(file: FileIO) -> tuple[dict[str, TensorInfo], dict[str, str], int]:
    """The tensors, the metadata, and where the data begin."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise WeightsError(f"expected a safetensors file of at least 8 bytes, got {size}")
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise WeightsError(
            f"expected a safetensors file, the header says it has {length} bytes, more than the file or any honest one"
        )
    header = _parse_json(file.read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError("__metadata__: expected texts by name")
    tensors: dict[str, TensorInfo] = {}
    offset = 0
    for name in sorted(header):
        tensors[name] = info = _parse_entry(name, header[name], offset)
        offset = info.end
    if 8 + length + offset != size:
        raise WeightsError(f"the tensors need {offset} bytes, the file has {size - 8 - length}")
    return tensors, metadata, 8 + length


def _parse_json(text: bytes) -> dict[str, object]:
    try:
        header = parse_json(text)
    except ValueError as error:
        raise WeightsError(f"expected a safetensors header in JSON; {error}") from error
    if not isinstance(header, dict):
        raise WeightsError("expected a safetensors header, a JSON object")
    # names go into error messages and from there into round reports and onto terminals
    if not all(_NAME.fullmatch(name) for name in header):
        raise WeightsError("expected names of tensors of 1 to 200 letters, digits and ._-/ only")
    return header


def _parse_entry(name: str, entry: object, begin: int) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{name}: expected dtype, shape and data_offsets")
    if entry["dtype"] != "F32":
        raise WeightsError(f"{name}: expected F32, got {_shown(entry['dtype'])}")
    shape = entry["shape"]
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 48 for n in shape):
        raise WeightsError(f"{name}: expected a list of sizes as shape, got {_shown(shape)}")
    size = 4
    for n in shape:  # Python integers: no overflow for a hostile shape to hide in
        size *= n
    offsets = entry["data_offsets"]
    if offsets != [begin, begin + size] or not all(type(n) is int for n in offsets):
        raise WeightsError(
            f"{name}: expected its bytes at {_shown([begin, begin + size])}, got {_shown(offsets)}"
        )
    return TensorInfo(tuple(shape), begin, begin + size)


def _shown(value: object) -> str:
    """What a stranger wrote, short and in plain letters."""
    try:
        return ascii(value)[:80]
    except ValueError:  # a number of thousands of digits
        return "something too long to be shown"
