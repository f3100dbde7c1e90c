"""A party's settings: one TOML file, read once, at the edge. Unknown keys are refused; secrets have their own files."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as EnvironmentValueError

from consilia.errors import SettingsError
from consilia.settings.sections import (
    DataSection,
    DiagnosisSection,
    ExchangeSection,
    KeysSection,
    LedgerSection,
    NodeSection,
    PolicySection,
    StoreSection,
    resolved,
)

SETTINGS_FILE = "consilia.toml"


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
    return resolved(section, path.parent.resolve())


def toml_value(value: int | str | Path | tuple[str, ...]) -> str:
    """A value as TOML has it, whatever characters it holds.

    Raises:
        SettingsError: a text that is not Unicode, as of a path with bytes that are no UTF-8: TOML cannot hold it.
    """
    plain = str(value) if isinstance(value, Path) else value
    written = json.dumps(plain, ensure_ascii=False).replace(
        "\x7f", "\\u007f"
    )  # the rest of JSON's escapes are TOML's
    try:
        written.encode()
    except UnicodeEncodeError as error:
        raise SettingsError(f"expected a name or path in UTF-8, got {plain!a}: choose another one") from error
    return written


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
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
    return resolved(settings, home.resolve())


def without_file(home: Path) -> KeySettings:
    """The settings of a home that has no file yet: keys in its folder `keys`, a password from environment or prompt."""
    return resolved(KeySettings(), home.resolve())


def _explain_all(error: ValidationError) -> str:
    return "\n".join(_explain(item["loc"], item["msg"]) for item in error.errors())


def _explain(location: tuple[int | str, ...], message: str) -> str:
    return f"{SETTINGS_FILE}: {'.'.join(str(part) for part in location)}: {message}"
