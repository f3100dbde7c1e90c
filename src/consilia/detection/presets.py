"""Settings that were measured, by the data they were measured on (docs/detection.md has the figures)."""

from __future__ import annotations

from dataclasses import dataclass

from consilia.errors import SpecError


@dataclass(frozen=True)
class Preset:
    """What a TaskSpec takes from here, and why."""

    name: str
    image_size: int
    rounds: int
    local_epochs: float
    """Passes of each hospital over its own images in a round."""
    learning_rate: float
    batch_size: int
    reason: str
    detector: str = "faster-rcnn"


PHANTOM = Preset(
    name="phantom",
    image_size=160,
    rounds=8,
    local_epochs=0.7,
    learning_rate=1e-3,
    batch_size=1,
    reason="",
)

CT_HEMORRHAGE = Preset(
    name="ct_hemorrhage",
    image_size=160,
    rounds=20,
    local_epochs=0.33,
    learning_rate=1e-3,
    batch_size=1,
    reason="",
)

BCCD = Preset(
    name="bccd",
    image_size=256,
    rounds=12,
    local_epochs=1.0,
    learning_rate=1e-3,
    batch_size=1,
    reason="",
)

PRESETS = {preset.name: preset for preset in (PHANTOM, CT_HEMORRHAGE, BCCD)}
"""By the name of the data set's folder, so that `--data` finds its own."""


def preset_for(name: str) -> Preset:
    """The preset for a data set.

    Raises:
        SpecError: there is none of this name.
    """
    if name not in PRESETS:
        raise SpecError(f"preset: expected one of {', '.join(sorted(PRESETS))}, got {name!r}")
    return PRESETS[name]
