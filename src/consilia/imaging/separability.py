"""The membership check: could a server tell the real case from its covers by how the images look?

A fixed measure of strangeness, learnt from the archive alone: how far an image lies from the archive's middle in
features that a scanner, a kernel, a dose or a text mark changes. A trained classifier would recognise the patient in
the case's neighbours and always cry wolf; a server has no neighbours to learn from either. docs/consulting.md has more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

WARN_AUC = 0.70
"""From here a server's best guess among 12 is right in .23 of the queries instead of .08: three times chance."""
REFUSE_AUC = 0.90
"""From here it would name the real case in more than half of the queries."""

WARN_ODDS = 0.20
REFUSE_ODDS = 0.05
"""One patient's images are alike, so that matched patients too can reach a high AUC by chance. What counts as well is
how many of the archive's own patients are as strange as the case; below these parts of them it is no chance."""


FEATURES = (
    "noise",
    "sharpness",
    "smoothness",
    "bone or metal",
    "air",
    "grey levels",
    "brightness",
    "contrast",
    "marks in the corners",
)
"""What the numbers of `features` are, for a person who asks why."""

# Below these differences no feature counts: the archive's own spread can be nothing at all (no mark on any image).
_FLOOR = np.array([0.03, 0.03, 0.03, 0.02, 0.05, 0.05, 0.05, 0.05, 0.5])
_CORNER = 0.15


class Verdict(StrEnum):
    """What follows from the check."""

    ADMIT = "admit"
    WARN = "warn"
    REFUSE = "refuse"


@dataclass(frozen=True)
class Separability:
    """How strange the case is among the archive's images."""

    auc: float
    """P(an image of the case is stranger than one of the archive); .5 where they are alike."""
    as_strange: float
    """The part of the archive's patients, the case among them, that are at least as strange."""
    guess: float
    """How often a server's best guess would be right, at this AUC among the hidden images; by chance at least."""
    feature: str
    """What is strangest about the case."""

    @property
    def verdict(self) -> Verdict:
        """Admit, warn or refuse."""
        if self.auc >= REFUSE_AUC and self.as_strange <= REFUSE_ODDS:
            return Verdict.REFUSE
        if self.auc >= WARN_AUC and self.as_strange <= WARN_ODDS:
            return Verdict.WARN
        return Verdict.ADMIT


def separability(
    case: Sequence[Pixels], archive: Sequence[Pixels], patients: Sequence[str], hidden: int
) -> Separability:
    """Compare the case, and its neighbours in the series if there are any, with the images it is to hide among.

    Args:
        case: canonical pixels of the case, all (S, S) uint8.
        archive: canonical pixels of the matched images.
        patients: whose each of them is; an image is judged by the others' patients alone.
        hidden: how many images of the query are never opened, the case among them.

    Raises:
        ValueError: fewer than two patients: nothing can be compared.
    """
    own = np.stack([features(pixels) for pixels in case])
    others = np.stack([features(pixels) for pixels in archive])
    who = np.array(patients)
    names = sorted(set(patients))
    if len(names) < 2:
        raise ValueError(f"expected images of at least two patients, got {len(names)}")
    strange = np.zeros(len(others))
    for name in names:
        held_out = who == name
        strange[held_out] = _distance(others[held_out], others[~held_out]).max(axis=1)
    distances = _distance(own, others)
    auc = _auc(distances.max(axis=1), strange)
    typical = np.median(distances.max(axis=1))
    as_strange = (1 + sum(np.median(strange[who == name]) >= typical for name in names)) / (1 + len(names))
    strangest = int(np.median(distances, axis=0).argmax())
    guess = guess_probability(max(auc, 0.5), hidden)
    return Separability(auc, float(as_strange), guess, FEATURES[strangest])


def features(pixels: Pixels) -> NDArray[np.float64]:
    """What of an image tells how it was made rather than what it shows, (9,); logarithms where ratios matter."""
    image = pixels.astype(np.float64)
    # tissue: neither clipped nor beside what is clipped, where an edge would pass for noise
    tissue = _eroded((pixels > 8) & (pixels < 247))
    fine, middle, coarse = (np.abs(_ripple(image, step))[tissue] for step in (1, 2, 4))
    levels = [float(np.median(ripple)) if len(ripple) else 0.0 for ripple in (fine, middle, coarse)]
    noise, twice, fourfold = (np.log(level + 0.5) for level in levels)
    grey = image[tissue] if tissue.any() else np.zeros(1)
    wide = max(1, round(_CORNER * pixels.shape[0]))
    ends = np.r_[:wide, -wide:0]  # where viewers and scanners write, and where a round body is not
    corners = pixels[np.ix_(ends, ends)]
    return np.array(
        [
            noise,
            noise - twice,
            twice - fourfold,
            float((pixels >= 247).mean()),
            float((pixels <= 8).mean()),
            float(np.log(len(np.unique(pixels[tissue])) + 1.0)),
            float(np.log(np.median(grey) + 1.0)),
            float(np.log(grey.std() + 1.0)),
            float(np.log((corners > 96).sum() + 1.0)),
        ]
    )


def guess_probability(auc: float, hidden: int) -> float:
    """How often the strangest of `hidden` images is the real one, if strangeness is normal and has this AUC.

    The chance that one normal value, shifted by d = sqrt(2) * quantile(AUC), exceeds hidden - 1 others.
    """
    normal = NormalDist()
    shift = 2.0**0.5 * normal.inv_cdf(min(max(auc, 1e-9), 1.0 - 1e-9))
    grid = np.linspace(-8.0, 8.0 + max(shift, 0.0), 2001)
    below = np.array([normal.cdf(value) for value in grid]) ** (hidden - 1)
    density = np.exp(-0.5 * (grid - shift) ** 2) / (2.0 * np.pi) ** 0.5
    return float((below * density).sum() * (grid[1] - grid[0]))


def _ripple(image: NDArray[np.float64], step: int) -> NDArray[np.float64]:
    """What is left of the image at a scale of `step` pixels: each pixel against the mean of its four neighbours."""
    neighbours = sum(np.roll(image, shift, axis) for axis in (0, 1) for shift in (-step, step))
    return np.asarray(image - neighbours / 4.0)


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    for _ in range(4):
        mask = mask & np.roll(mask, 1, 0) & np.roll(mask, -1, 0) & np.roll(mask, 1, 1) & np.roll(mask, -1, 1)
    return mask


def _distance(of: NDArray[np.float64], reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many robust standard deviations each feature lies from the reference's middle, (n, 9)."""
    middle = np.median(reference, axis=0)
    away = np.abs(reference - middle)
    # the tail decides, where it is heavier than a normal one: slices at the skull's base are odd everywhere
    spread = np.maximum(1.4826 * np.median(away, axis=0), np.quantile(away, 0.95, axis=0) / 1.96)
    return np.asarray(np.abs(of - middle) / np.maximum(spread, _FLOOR))


def _auc(these: NDArray[np.float64], those: NDArray[np.float64]) -> float:
    """Mann and Whitney: the part of pairs in which `these` is larger; ties count half."""
    larger = (these[:, None] > those[None, :]).mean()
    return float(larger + 0.5 * (these[:, None] == those[None, :]).mean())
