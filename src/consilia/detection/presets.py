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


# Many short rounds: what hospitals do side by side between two averages does not build on one another.

PHANTOM = Preset(
    name="phantom",
    image_size=160,
    rounds=40,
    local_epochs=0.14,
    learning_rate=1e-3,
    batch_size=1,
    reason="A demo of minutes on two cores: 10 steps of each of 4 hospitals in a round. The same number of steps in "
    "8 rounds of 50 reached mAP@.5 .48 instead of .56; higher learning rates were behind after half of them.",
)

CT_HEMORRHAGE = Preset(
    name="ct_hemorrhage",
    image_size=160,
    rounds=60,
    local_epochs=0.11,
    learning_rate=1e-3,
    batch_size=1,
    reason="About 6000 steps in all. 160 pixels show the bleeds and cost less than 256.",
)

BCCD = Preset(
    name="bccd",
    image_size=256,
    rounds=60,
    local_epochs=0.2,
    learning_rate=1e-3,
    batch_size=1,
    reason="About 3500 steps in all. The cells are small and many, so 256 pixels; each picture teaches much.",
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
