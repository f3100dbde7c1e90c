"""The sections of a party's settings, each with what it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

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


class SettingsSection(BaseModel):
    """A part of a file of settings; a key that nobody knows is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _url(text: str) -> str:
    try:
        urlsplit(text).port  # noqa: B018 - what has a port outside 1 to 65535 fails only now
    except ValueError as error:
        raise ValueError(
            f"expected an address such as http://127.0.0.1:8545, got {text!r}: {error}"
        ) from error
    return text


Url = Annotated[str, AfterValidator(_url)]
"""An address that can be taken apart; whether it leads anywhere is told when somebody dials it."""


class NodeSection(SettingsSection):
    """The embedded chain's node, which lives in the hospital's process group. Left out with an external ledger."""

    genesis: Path
    port: Annotated[int, Field(ge=1, le=65_535)]
    peers: tuple[Url, ...] = ()
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


class LedgerSection(SettingsSection):
    """Where the ledger answers, and when what it tells is true."""

    url: Url
    deployment: Path
    confirmations: Confirmations = "embedded"
    witnesses: tuple[Url, ...] = ()
    """Nodes of other members. Where there are some, only what more than half of all nodes tell is true."""

    @property
    def depth(self) -> int:
        """The confirmations as a number."""
        return depth_of(self.confirmations)


class StoreSection(SettingsSection):
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


class TokenSection(SettingsSection):
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


class KeysSection(SettingsSection):
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


class DataSection(SettingsSection):
    """The hospital's own training data; `patients` names a file of patient keys, one a line, if it uses only some."""

    path: Path
    patients: Path | None = None
    exchanged: Path = Path("exchanged")
    """Where `consilia exchange fetch` puts data sets of others; training takes them along."""
    proposals: Path = Path("proposals")
    """Where the regions of each image are kept, for the detectors that are given them; it can be deleted."""


class PolicySection(SettingsSection):
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


class ExchangeSection(SettingsSection):
    """What an owner says to requests for its data; by default a person is asked."""

    decide: Literal["person", "policy"] = "person"
    kinds: tuple[Literal["dataset", "update"], ...] = ("dataset", "update")
    buyers: tuple[str, ...] = ()
    """Accounts; empty: every active hospital."""
    arbiters: tuple[str, ...] = ()
    """Accounts; empty: whom the buyer names."""
    minimum_price_wei: Annotated[int, Field(ge=0)] = 0
    minimum_bond_wei: Annotated[int, Field(ge=0)] | None = None
    """What a false complaint must cost the buyer; left out, a tenth of the price."""
    maximum_bond_wei: Annotated[int, Field(ge=0)] = 10**18


class OfferSection(SettingsSection):
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


class DiagnosisSection(SettingsSection):
    """The second opinions that a server gives."""

    answer_seconds: Annotated[float, Field(ge=0, le=3600)] = 30
    """An answer leaves so long after its query, or a multiple of it: how long the model worked is nobody's business."""
    offers: tuple[OfferSection, ...] = ()


Section = TypeVar("Section", bound=BaseModel)


def resolved(section: Section, home: Path) -> Section:
    """The section with its relative paths starting at a home."""
    changes: dict[str, object] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, Path):
            changes[name] = home / value
        elif isinstance(value, BaseModel):
            changes[name] = resolved(value, home)
    return section.model_copy(update=changes)
