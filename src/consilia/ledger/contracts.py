"""The compiled contracts, how their calls and events are encoded, and where they are deployed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.address import is_checksum_address, to_checksum_address
from eth_utils.crypto import keccak

from consilia.errors import LedgerError, SettingsError
from consilia.values import Address

REVERT_SELECTOR = keccak(text="Error(string)")[:4]


@dataclass(frozen=True)
class Parameter:
    """One input or output: its name and its canonical type, such as `(address,bytes32)[]`."""

    name: str
    type: str
    indexed: bool
    fields: tuple[Parameter, ...]


@dataclass(frozen=True)
class Function:
    """A function of a contract."""

    selector: bytes
    inputs: tuple[Parameter, ...]
    outputs: tuple[Parameter, ...]


@dataclass(frozen=True)
class EventAbi:
    """An event of a contract; `topic` is its first topic."""

    contract: str
    name: str
    topic: bytes
    inputs: tuple[Parameter, ...]

    def decode(self, topics: Sequence[bytes], data: bytes) -> dict[str, Any]:
        """The event's values by name, addresses in checksum form."""
        indexed = [p for p in self.inputs if p.indexed]
        plain = [p for p in self.inputs if not p.indexed]
        values = {p.name: decode([p.type], topic)[0] for p, topic in zip(indexed, topics[1:], strict=True)}
        values |= dict(zip((p.name for p in plain), decode([p.type for p in plain], data), strict=True))
        return {p.name: _with_checksums(p.type, values[p.name]) for p in self.inputs}


@dataclass(frozen=True)
class Argument:
    """One value of a call or an event, with the name and the type that the contract gives it."""

    name: str
    type: str
    value: Any


class ContractAbi:
    """A compiled contract: encodes calls, decodes results."""

    def __init__(self, artifact: Mapping[str, Any]) -> None:
        self.name: str = artifact["contract"]
        self._bytecode = bytes.fromhex(artifact["bytecode"].removeprefix("0x"))
        entries: list[dict[str, Any]] = artifact["abi"]
        self.events = tuple(self._event(e) for e in entries if e["type"] == "event")
        self._functions = {e["name"]: _function(e) for e in entries if e["type"] == "function"}
        constructors = [_parameters(e["inputs"]) for e in entries if e["type"] == "constructor"]
        self._constructor: tuple[Parameter, ...] = constructors[0] if constructors else ()

    def deployment(self, *arguments: object) -> bytes:
        """The data of the transaction that deploys the contract."""
        return self._bytecode + encode([p.type for p in self._constructor], arguments)

    def call(self, function: str, *arguments: object) -> bytes:
        """The data of a call."""
        found = self._functions[function]
        return found.selector + encode([p.type for p in found.inputs], arguments)

    def read_call(self, data: bytes) -> tuple[str, tuple[Argument, ...]] | None:
        """Which function a transaction's data call, and with what; None if it is none of this contract's."""
        for name, found in self._functions.items():
            if found.selector == data[:4]:
                try:
                    values = decode([p.type for p in found.inputs], data[4:])
                except (DecodingError, OverflowError):
                    return None
                return name, _arguments(found.inputs, values)
        return None

    def read_event(self, topics: Sequence[bytes], data: bytes) -> tuple[str, tuple[Argument, ...]] | None:
        """Which event a log is, and what it says; None if it is none of this contract's."""
        for event in self.events:
            if topics and event.topic == topics[0]:
                values = event.decode(topics, data)
                return event.name, tuple(Argument(p.name, p.type, values[p.name]) for p in event.inputs)
        return None

    def read_deployment(self, data: bytes) -> tuple[Argument, ...] | None:
        """With what arguments a transaction's data deploy this very contract; None if they deploy another."""
        if not data.startswith(self._bytecode):
            return None
        try:
            values = decode([p.type for p in self._constructor], data[len(self._bytecode) :])
        except (DecodingError, OverflowError):
            return None
        return _arguments(self._constructor, values)

    def result(self, function: str, data: bytes) -> Any:
        """The one result of a function; a struct (or a list of them) comes as a dict by field name.

        Raises:
            LedgerError: the data are not such a result, as when no contract is at the address.
        """
        output = self._functions[function].outputs[0]
        try:
            (value,) = decode([output.type], data)
        except (DecodingError, OverflowError) as error:
            raise LedgerError(
                f"expected the result of {self.name}.{function}, got {len(data)} bytes that are none: "
                "the deployment file does not fit this chain"
            ) from error
        return _named(output, value)

    def _event(self, entry: dict[str, Any]) -> EventAbi:
        inputs = _parameters(entry["inputs"])
        signature = f"{entry['name']}({','.join(p.type for p in inputs)})"
        return EventAbi(self.name, entry["name"], keccak(text=signature), inputs)


def _function(entry: dict[str, Any]) -> Function:
    inputs = _parameters(entry["inputs"])
    signature = f"{entry['name']}({','.join(p.type for p in inputs)})"
    return Function(keccak(text=signature)[:4], inputs, _parameters(entry["outputs"]))


def _parameters(entries: Sequence[dict[str, Any]]) -> tuple[Parameter, ...]:
    return tuple(_parameter(entry) for entry in entries)


def _parameter(entry: dict[str, Any]) -> Parameter:
    fields = _parameters(entry.get("components", ()))
    kind: str = entry["type"]
    if kind.startswith("tuple"):
        kind = f"({','.join(f.type for f in fields)}){kind.removeprefix('tuple')}"
    return Parameter(entry.get("name", ""), kind, entry.get("indexed", False), fields)


def _named(parameter: Parameter, value: Any) -> Any:
    if not parameter.fields:
        return _with_checksums(parameter.type, value)
    if parameter.type.endswith("]"):
        return [_by_field(parameter, item) for item in value]
    return _by_field(parameter, value)


def _arguments(parameters: Sequence[Parameter], values: Sequence[Any]) -> tuple[Argument, ...]:
    return tuple(
        Argument(p.name, p.type, _named(p, value)) for p, value in zip(parameters, values, strict=True)
    )


def _by_field(parameter: Parameter, values: Sequence[Any]) -> dict[str, Any]:
    return {f.name: _named(f, value) for f, value in zip(parameter.fields, values, strict=True)}


def _with_checksums(kind: str, value: Any) -> Any:
    if kind == "address":
        return to_checksum_address(value)
    if kind == "address[]":
        return tuple(to_checksum_address(item) for item in value)
    return value


@cache
def contract_abi(name: str) -> ContractAbi:
    """A contract by the name of its source, such as "training"; from its artifact, no compiler needed."""
    artifact = files("consilia.contracts").joinpath("artifacts", f"{name}.json")
    return ContractAbi(json.loads(artifact.read_text()))


def revert_reason(data: bytes) -> str:
    """The text in a contract's revert data, or "" where there is none."""
    if data[:4] != REVERT_SELECTOR:
        return ""
    try:
        return str(decode(["string"], data[4:])[0])
    except (DecodingError, OverflowError, UnicodeDecodeError):
        return ""


@dataclass(frozen=True)
class Deployment:
    """Where a consortium's contracts live. `block` holds the first of them: no event of theirs is older."""

    chain_id: int
    registry: Address
    escrow: Address
    training: Address
    exchange: Address
    diagnosis: Address
    block: int

    @property
    def contracts(self) -> dict[str, Address]:
        """Every contract's address by its name."""
        return {name: value for name, value in asdict(self).items() if isinstance(value, str)}

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Deployment:
        """Read what `save` wrote.

        Raises:
            SettingsError: the file is missing, or is not a deployment.
        """
        try:
            deployment = cls(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise SettingsError(f"expected a deployment file at {path}: {error}") from error
        deployment._check(path)
        return deployment

    def _check(self, path: Path) -> None:
        for name in ("registry", "escrow", "training", "exchange", "diagnosis"):
            if not is_checksum_address(getattr(self, name)):
                raise SettingsError(
                    f"{path}: expected {name} as a checksummed address, got {getattr(self, name)!r}"
                )
        for name in ("chain_id", "block"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise SettingsError(f"{path}: expected {name} as a number, got {getattr(self, name)!r}")
