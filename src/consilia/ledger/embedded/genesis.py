"""What all nodes of one chain agree on before its first block, and the settings of a single node."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, TypeVar
from urllib.parse import urlsplit

from eth_utils.address import is_hex_address, to_checksum_address
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from consilia.errors import SettingsError
from consilia.values import Address, Digest, canonical_json

Model = TypeVar("Model", bound=BaseModel)
LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "::1")


def _checksummed(text: str) -> str:
    if not is_hex_address(text) or not text.startswith("0x"):
        raise ValueError(f"expected an address of 0x and 40 hex digits, got {text!r}")
    return str(to_checksum_address(text))


def _peer_url(text: str) -> str:
    parts = urlsplit(text)
    if parts.scheme != "http" or not parts.hostname or not parts.port or parts.path not in ("", "/"):
        raise ValueError(f"expected http://ADDRESS:PORT, got {text!r}")
    return text.rstrip("/")


AccountField = Annotated[Address, AfterValidator(_checksummed)]
PeerUrl = Annotated[str, AfterValidator(_peer_url)]


class Genesis(BaseModel):
    """Block 0 and the constants of the chain. Two nodes whose genesis differs in anything share no block.

    The reasons for the defaults are in docs/ledger.md; `timestamp` is in Unix seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    chain_id: int = Field(ge=1, lt=2**53)
    timestamp: int = Field(ge=0, lt=2**40)
    miners: tuple[AccountField, ...] = Field(min_length=1)
    """Who may mine until the registry is there; for ever, where `registry` is None."""
    registry: AccountField | None = None
    """Where registry.vy will be, `contract_address(deployer, 0)`: from then on it says who may mine."""
    balances_wei: dict[AccountField, Annotated[int, Field(ge=0, lt=2**128)]] = Field(default_factory=dict)
    min_difficulty: int = Field(default=1 << 13, ge=1, lt=2**64)
    block_time_ms: int = Field(default=200, ge=1)
    gas_limit: int = Field(default=30_000_000, ge=100_000, lt=2**40)
    base_fee_wei: int = Field(default=7, ge=0, lt=2**64)
    block_reward_wei: int = Field(default=2 * 10**18, ge=0, lt=2**128)

    @model_validator(mode="after")
    def _miners_are_distinct(self) -> Genesis:
        if len(set(self.miners)) != len(self.miners):
            raise ValueError("miners must be distinct addresses: remove the repeated one")
        return self

    @classmethod
    def load(cls, path: Path) -> Genesis:
        """Read the genesis from a JSON file.

        Raises:
            SettingsError: the file is missing or is not a genesis.
        """
        return _load(cls, path)

    def save(self, path: Path) -> None:
        """Write the genesis as canonical JSON: equal genesis, equal bytes."""
        path.write_bytes(self._canonical())

    def digest(self) -> Digest:
        """What block 0 carries as its mix hash, so that the chain's identity covers every constant."""
        return Digest.of(b"consilia/genesis/v1" + self._canonical())

    def _canonical(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))


class NodeSettings(BaseModel):
    """One node: where it keeps its chain, whom its rewards go to, and where it and its peers listen."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path
    genesis: Path
    coinbase: AccountField
    host: str = "127.0.0.1"
    port: int = Field(ge=0, lt=65536)
    peers: tuple[PeerUrl, ...] = ()
    beyond_this_machine: bool = False
    """Whether `host` and peers may be other addresses than loopback. The risk: messages are signed, but travel
    in clear, so whoever is on the way reads and delays them; anybody who reaches the port can keep it busy; and
    with little work in the chain, one strong machine of a member can re-order its last blocks. Only behind a
    private network of the hospitals; for anything else use an established network (docs/ledger.md)."""

    @model_validator(mode="after")
    def _stays_on_this_machine(self) -> NodeSettings:
        if self.host in ("0.0.0.0", "::", ""):
            raise ValueError(f"host must be one address of this machine, got {self.host!r}")
        hosts = [self.host, *(urlsplit(peer).hostname or "" for peer in self.peers)]
        strangers = [host for host in hosts if host not in LOOPBACK_HOSTS]
        if strangers and not self.beyond_this_machine:
            raise ValueError(
                f"host and peers must be among {', '.join(LOOPBACK_HOSTS)}, got {strangers[0]!r}: the embedded "
                "chain is for one machine; read about its risks in docs/ledger.md before you set "
                "beyond_this_machine"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether the node listens on loopback alone."""
        return self.host in LOOPBACK_HOSTS

    @classmethod
    def load(cls, path: Path) -> NodeSettings:
        """Read a node's settings from a JSON file.

        Raises:
            SettingsError: the file is missing, or a key is unknown, missing or out of range.
        """
        return _load(cls, path)

    def save(self, path: Path) -> None:
        """Write the settings as JSON, for `python -m consilia.ledger.embedded`."""
        path.write_text(self.model_dump_json(indent=1))

    @property
    def chain_file(self) -> Path:
        """The one file that holds this node's blocks, state and waiting transactions."""
        return self.home / "chain.sqlite"


def _load(model: type[Model], path: Path) -> Model:
    try:
        return model.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise SettingsError(f"expected a {model.__name__} file at {path}: {error.strerror}") from error
    except (ValidationError, ValueError, RecursionError) as error:
        raise SettingsError(f"{path} is not a {model.__name__}: {error}") from error
