"""`network.json`: where the pieces of a consortium lie that runs in one home."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, field_validator, model_validator

from consilia.errors import SettingsError
from consilia.settings.sections import SettingsSection, StoreSection, Url, resolved

NETWORK_FILE = "network.json"


class Network(SettingsSection):
    """Where the pieces of a consortium lie that runs in one home, as the demo makes it; the audit starts from here."""

    genesis: Path | None = None
    """Of the embedded chain; left out where the contracts are on a network of another engine."""
    url: Url | None = None
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
            network = cls.model_validate_json((home / NETWORK_FILE).read_bytes())
        except OSError as error:
            raise SettingsError(f"expected {NETWORK_FILE} in the home; {error.strerror}") from error
        except ValidationError as error:
            raise SettingsError(f"{NETWORK_FILE}: {error}") from error
        hospitals = tuple(home.resolve() / path for path in network.hospitals)
        return resolved(network, home.resolve()).model_copy(update={"hospitals": hospitals})

    def save(self, home: Path) -> None:
        """Write `network.json` into a home."""
        text = self.model_dump_json(indent=1, exclude_unset=True)
        (home / NETWORK_FILE).write_text(text + "\n", "utf-8")
