"""A party's settings: one TOML file, read once, at the edge. Unknown keys are refused; secrets have their own files."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as EnvironmentValueError

from consilia.errors import SettingsError
from consilia.passwords import (
    PASSWORD_VARIABLE,
    PIN_VARIABLE,
    S3_SECRET_VARIABLE,
    S3_TOKEN_VARIABLE,
    password_is_typed,
    read_first_line,
    read_password,
)

SETTINGS_FILE = "consilia.toml"
NETWORK_FILE = "network.json"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NodeSection(_Section):
    """The embedded chain's node, which lives in the hospital's process group. Left out with an external ledger."""

    genesis: Path
    port: Annotated[int, Field(ge=1, le=65_535)]
    peers: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    beyond_this_machine: bool = False
    """Needed for a host or peers other than loopback; the risks are in docs/ledger.md, "Beyond one machine"."""

    @property
    def url(self) -> str:
        """Where other nodes reach this one."""
        return f"http://[{self.host}]:{self.port}" if ":" in self.host else f"http://{self.host}:{self.port}"


CONFIRMATIONS = {
    # Two blocks come on top of a transaction at once (the nodes' burial_blocks), and no two nodes of one machine
    # disagree for longer than it takes a block to cross it.
    "embedded": 3,
    # QBFT, IBFT, Raft, a single sealer: a block that is there stays.
    "finality": 1,
    # The old rule of Ethereum's exchanges: with a tenth of the work an attacker overtakes so many blocks in fewer than
    # one of a million attempts (Nakamoto 2008, section 11).
    "proof-of-work": 12,
}
"""How deep a block must lie before money or secrets follow it, by kind of engine."""


Confirmations = Literal["embedded", "finality", "proof-of-work"] | Annotated[int, Field(ge=1, le=1000)]
"""A kind of engine (see CONFIRMATIONS), or a number of blocks with the event's own counted."""


def depth_of(confirmations: Confirmations) -> int:
    """The confirmations as a number of blocks."""
    return confirmations if isinstance(confirmations, int) else CONFIRMATIONS[confirmations]


class LedgerSection(_Section):
    """Where the ledger answers, and when what it tells is true."""

    url: str
    deployment: Path
    confirmations: Confirmations = "embedded"
    witnesses: tuple[str, ...] = ()
    """Nodes of other members. Where there are some, only what more than half of all nodes tell is true."""

    @property
    def depth(self) -> int:
        """The confirmations as a number."""
        return depth_of(self.confirmations)


class StoreSection(_Section):
    """The store of sealed artifacts that all parties reach: a folder, or a bucket on a server that speaks S3."""

    path: Path | None = None
    url: str | None = None
    """s3://bucket/prefix, in place of `path`."""
    endpoint: str | None = None
    """http(s)://host:port of the server; left out, Amazon's own."""
    region: str = "us-east-1"
    access_key_file: Path | None = None
    secret_key_file: Path | None = None
    patience_seconds: Annotated[float, Field(gt=0, le=3600)] = 300
    """How long a request is tried again before the store counts as unreachable."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.url is None):
            raise ValueError("expected either path (a folder) or url (s3://bucket/prefix)")
        named = {"endpoint", "access_key_file", "secret_key_file"} & self.model_fields_set
        if self.path is not None and named:
            raise ValueError(f"{', '.join(sorted(named))}: these belong to a url, and a path is given")
        return self

    def credentials(self) -> tuple[str, str, str | None]:
        """Access key, secret key and session token: from their files, else from the environment, as S3 clients do.

        Raises:
            SettingsError: a file cannot be read, or there is neither file nor variable.
        """
        access_key = _store_key("access_key", self.access_key_file, "AWS_ACCESS_KEY_ID")
        secret_key = _store_key("secret_key", self.secret_key_file, S3_SECRET_VARIABLE)
        token = os.environ.get(S3_TOKEN_VARIABLE) if self.secret_key_file is None else None
        return access_key, secret_key, token or None


def _store_key(name: str, file: Path | None, variable: str) -> str:
    if file is not None:
        return read_first_line(f"store.{name}_file", f"{name} of the store", file)
    if value := os.environ.get(variable):
        return value
    raise SettingsError(f"store.{name}_file: expected a file that holds it, or {variable} in the environment")


class TokenSection(_Section):
    """A PKCS#11 token (a hardware security module), and the labels of this party's keys in it."""

    module: Path
    token: str
    pin_file: Path | None = None
    account_label: str = "consilia account"
    identity_label: str = "consilia identity"

    def pin(self) -> str:
        """The token's PIN: from the environment, its file, or a person.

        Raises:
            SettingsError: none of them has it.
        """
        return read_password(f"PIN of the token {self.token}", PIN_VARIABLE, self.pin_file)


class KeysSection(_Section):
    """Where the two secret halves are: each in a file under one password, or in a token."""

    signer: Literal["file", "pkcs11"] = "file"
    """What signs for the ledger account."""
    opener: Literal["file", "pkcs11"] = "file"
    """What opens envelopes: the identity."""
    account: Path = Path("keys/account.json")
    identity: Path = Path("keys/identity.key")
    password_file: Path | None = None
    pkcs11: TokenSection | None = None

    @model_validator(mode="after")
    def _token_is_described(self) -> Self:
        if self.uses_token and self.pkcs11 is None:
            raise ValueError(
                "signer or opener is pkcs11: expected a section [keys.pkcs11] with module and token"
            )
        return self

    @property
    def uses_token(self) -> bool:
        """Whether one of the two is in a token."""
        return "pkcs11" in (self.signer, self.opener)

    @property
    def password_is_typed(self) -> bool:
        """Whether a person is asked for the password."""
        return password_is_typed(PASSWORD_VARIABLE, self.password_file)

    def password(self) -> str:
        """The key files' password: from the environment, its file, or a person.

        Raises:
            SettingsError: none of them has it.
        """
        return read_password("password of the key files", PASSWORD_VARIABLE, self.password_file)


class DataSection(_Section):
    """The hospital's own training data; `patients` names a file of patient keys, one a line, if it uses only some."""

    path: Path
    patients: Path | None = None
    exchanged: Path = Path("exchanged")
    """Where `consilia exchange fetch` puts data sets of others; training takes them along."""
    proposals: Path = Path("proposals")
    """Where the regions of each image are kept, for the detectors that are given them; it can be deleted."""


class PolicySection(_Section):
    """What a hospital takes part in without asking a person. An empty list admits nothing."""

    applications: tuple[str, ...] = ("CT",)
    purposes: tuple[str, ...] = ("research",)
    detectors: tuple[str, ...] = (
        "r-cnn",
        "spp-net",
        "fast-rcnn",
        "faster-rcnn",
        "yolo",
        "yolo-small",
        "ssd",
        "retinanet",
    )
    """Those of this package; the name of one from elsewhere must be added, for it is another's code."""
    privacy: tuple[Literal["transparent"], ...] = ("transparent",)
    minimum_quorum: Annotated[int, Field(ge=1)] = 2
    minimum_reward_wei: Annotated[int, Field(ge=0)] = 0


class ExchangeSection(_Section):
    """What an owner says to requests for its data; by default a person is asked."""

    decide: Literal["person", "policy"] = "person"
    kinds: tuple[Literal["dataset", "update"], ...] = ("dataset", "update")
    buyers: tuple[str, ...] = ()
    """Accounts; empty: every active hospital."""
    arbiters: tuple[str, ...] = ()
    """Accounts; empty: whom the buyer names."""
    minimum_price_wei: Annotated[int, Field(ge=0)] = 0
    maximum_bond_wei: Annotated[int, Field(ge=0)] = 10**18


class OfferSection(_Section):
    """A model that a server answers for: of a task that it has run, or a file of weights with its TaskSpec."""

    task: Annotated[int, Field(ge=1)] | None = None
    """Its number in the order of publication, or its id."""
    model: Path | None = None
    spec: Path | None = None
    title: str = ""
    """Left out, the TaskSpec's."""
    price_wei: Annotated[int, Field(ge=0, lt=2**128)]
    bond_wei: Annotated[int, Field(ge=0, lt=2**128)]
    score_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Findings below this score are not reported."""
    grey: bool = False
    """Where the task is of plain pictures (PNG, JPEG): they are all grey, as what queries hold."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.task is None) == (self.model is None) or (self.model is None) != (self.spec is None):
            raise ValueError("expected either task, or model and spec (files of the home)")
        return self


class DiagnosisSection(_Section):
    """The second opinions that a server gives."""

    answer_seconds: Annotated[float, Field(ge=0, le=3600)] = 30
    """An answer leaves so long after its query, or a multiple of it: how long the model worked is nobody's business."""
    offers: tuple[OfferSection, ...] = ()


class Network(_Section):
    """Where the pieces of a consortium lie that runs in one home, as the demo makes it; the audit starts from here."""

    genesis: Path | None = None
    """Of the embedded chain; left out where the contracts are on a network of another engine."""
    url: str | None = None
    """A node of that other network; what it tells is believed, its chain is not replayed."""
    confirmations: Annotated[int, Field(ge=1, le=1000)] = 1
    """How deep a block of that network must lie to be audited."""
    deployment: Path
    store: StoreSection
    server: Path | None = None
    """Left out in the home of one member: it cannot open all updates, so its audit derives no models."""
    hospitals: tuple[Path, ...]

    @field_validator("store", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str | Path) else value

    @model_validator(mode="after")
    def _has_one_ledger(self) -> Network:
        if (self.genesis is None) == (self.url is None):
            raise ValueError(
                "expected genesis, of the embedded chain, or url, of another network: one of the two"
            )
        return self

    @classmethod
    def load(cls, home: Path) -> Network:
        """Read `network.json` of a home.

        Raises:
            SettingsError: no such file, or not such a network.
        """
        try:
            network = cls.model_validate_json((home / NETWORK_FILE).read_text())
        except OSError as error:
            raise SettingsError(f"expected {NETWORK_FILE} in the home; {error.strerror}") from error
        except ValidationError as error:
            raise SettingsError(f"{NETWORK_FILE}: {error}") from error
        resolved = _resolved(network, home.resolve())
        return resolved.model_copy(
            update={"hospitals": tuple(home.resolve() / path for path in network.hospitals)}
        )

    def save(self, home: Path) -> None:
        """Write `network.json` into a home."""
        text = self.model_dump_json(indent=1, exclude_unset=True)
        (home / NETWORK_FILE).write_text(text + "\n")


class _FileSettings(BaseSettings):
    """Values come from the file; an environment variable such as CONSILIA_LEDGER__URL outranks it."""

    model_config = SettingsConfigDict(
        extra="forbid",
        frozen=True,
        env_prefix="CONSILIA_",
        env_nested_delimiter="__",
        nested_model_default_partial_update=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return env_settings, init_settings


class HospitalSettings(_FileSettings):
    """All that a hospital's process needs to know."""

    name: str
    ledger: LedgerSection
    store: StoreSection
    keys: KeysSection
    data: DataSection
    policy: PolicySection = PolicySection()
    exchange: ExchangeSection = ExchangeSection()
    node: NodeSection | None = None


class ServerSettings(_FileSettings):
    """All that a server's process needs to know."""

    name: str
    ledger: LedgerSection
    store: StoreSection
    keys: KeysSection
    diagnosis: DiagnosisSection = DiagnosisSection()


class KeySettings(_FileSettings):
    """What `consilia keys` reads of any party's settings: whose keys, where they are, and the ledger if it is known."""

    model_config = SettingsConfigDict(extra="ignore")

    name: str = "keys"
    ledger: LedgerSection | None = None
    keys: KeysSection = KeysSection()


Settings = TypeVar("Settings", HospitalSettings, ServerSettings, KeySettings)


def load(kind: type[Settings], home: Path) -> Settings:
    """Read `consilia.toml` in a home; its relative paths start at that home.

    Raises:
        SettingsError: no such file, no TOML, an unknown or missing key, a bad value; each with the key's path.
    """
    return _parse(kind, _read_toml(home / SETTINGS_FILE), home)


def load_party(home: Path) -> HospitalSettings | ServerSettings:
    """Read `consilia.toml` of a hospital or a server; a hospital's has a section `data`.

    Raises:
        SettingsError: see `load`.
    """
    raw = _read_toml(home / SETTINGS_FILE)
    return _parse(HospitalSettings, raw, home) if "data" in raw else _parse(ServerSettings, raw, home)


def store_at(place: Path) -> StoreSection:
    """The store that an option names: a folder, or a TOML file with a section `store`, for a bucket.

    Raises:
        SettingsError: see `load`.
    """
    return load_store(place) if place.suffix == ".toml" else StoreSection(path=place.resolve())


def load_store(path: Path) -> StoreSection:
    """Read a TOML file with a section `store` and nothing else; its relative paths start where it lies.

    Raises:
        SettingsError: see `load`.
    """
    raw = _read_toml(path)
    if set(raw) != {"store"}:
        raise SettingsError(f"{path.name}: expected the section [store] alone, got {', '.join(sorted(raw))}")
    try:
        section = StoreSection.model_validate(raw["store"])
    except ValidationError as error:
        raise SettingsError(_explain_all(error)) from error
    return _resolved(section, path.parent.resolve())


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(f"expected settings in {path.name} of the home; {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name}: expected TOML; {error}") from error


def _parse(kind: type[Settings], raw: dict[str, Any], home: Path) -> Settings:
    try:
        settings = kind(**raw)
    except EnvironmentValueError as error:  # a variable for a section or a list must hold JSON
        raise SettingsError(f"environment variables: {error}; write it as JSON") from error
    except ValidationError as error:
        raise SettingsError(_explain_all(error)) from error
    return _resolved(settings, home.resolve())


def without_file(home: Path) -> KeySettings:
    """The settings of a home that has no file yet: keys in its folder `keys`, a password from environment or prompt."""
    return _resolved(KeySettings(), home.resolve())


def _explain_all(error: ValidationError) -> str:
    return "\n".join(_explain(item["loc"], item["msg"]) for item in error.errors())


def _explain(location: tuple[int | str, ...], message: str) -> str:
    return f"{SETTINGS_FILE}: {'.'.join(str(part) for part in location)}: {message}"


Section = TypeVar("Section", bound=BaseModel)


def _resolved(section: Section, home: Path) -> Section:
    changes: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changes[name] = home / value
        elif isinstance(value, BaseModel):
            changes[name] = _resolved(value, home)
    return section.model_copy(update=changes)
