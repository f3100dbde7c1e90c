"""Detectors by name: torchvision's parts, put together so small that they learn from scratch on one CPU core.

A detector is a `torch.nn.Module` in torchvision's manner: called with pictures and targets in training it gives a
dictionary of losses, otherwise findings. Which ones there are is `families`; what each is built from is in the modules
beside this one.
"""

from __future__ import annotations

import torch
from torch import nn

from consilia.detection.detectors.blueprint import Blueprint
from consilia.detection.detectors.bodies import BODIES
from consilia.detection.detectors.families import (
    BUILT_IN,
    ENTRY_POINTS,
    Family,
    Registered,
    UserDetector,
    families,
)
from consilia.errors import SpecError

__all__ = [
    "BODIES",
    "DETECTORS",
    "ENTRY_POINTS",
    "Blueprint",
    "Family",
    "UserDetector",
    "build",
    "families",
    "require_known",
]

DETECTORS = tuple(BUILT_IN)
"""The detectors that come with the package."""


def build(name: str, *, num_classes: int, image_size: int, seed: int, backbone: str = "") -> nn.Module:
    """A detector with random weights that depend on `seed` alone.

    Args:
        name: one of `families()`.
        num_classes: finding classes, without the background.
        image_size: the longer side of the pictures in pixels; sets the sizes of the anchors.
        seed: of the initial weights.
        backbone: one of `BODIES`; empty takes the detector's own.

    Raises:
        SpecError: no detector or no backbone has this name.
    """
    family, body = require_known(name, backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.build(num_classes, image_size, body)


def require_known(name: str, backbone: str = "") -> tuple[Family | Registered, str]:
    """The detector of this name, and the name of its backbone.

    Raises:
        SpecError: no detector or no backbone has this name.
    """
    known = families()
    if name not in known:
        raise SpecError(f"model.detector: expected one of {', '.join(sorted(known))}, got {name!r}")
    family = known[name]
    body = backbone or family.backbone
    if body not in family.backbones:
        raise SpecError(
            f"model.backbone: expected one of {', '.join(family.backbones)} for {name}, got {body!r}"
        )
    return family, body
