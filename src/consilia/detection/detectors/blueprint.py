"""What every detector is built from, and how a picture reaches it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from consilia.detection.detectors.bodies import Body

PYRAMID_CHANNELS = 64
HEAD_FEATURES = 256
SCORE_THRESHOLD = 0.01
"""Findings below this score are not reported. Low, because FROC looks at up to 8 false positives an image."""

NMS_IOU = 0.5
FINDINGS = 100
"""The most on a picture."""

PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.25, 0.25, 0.25)
"""Fixed, and not a hospital's own statistics: every hospital must feed the shared model the same input."""

ASPECT_RATIOS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Blueprint:
    """What a detector is built for.

    `num_classes` does not count the background; `image_size` is the longer side of the pictures in pixels and sets
    the sizes of the anchors.
    """

    num_classes: int
    image_size: int
    body: Body


def pyramid(body: Body, stages: Sequence[int], *, coarser: bool = True) -> BackboneWithFPN:
    """A feature pyramid (Lin et al. 2017) over `stages` of a body, with one coarser level on top."""
    return BackboneWithFPN(
        body.net,
        return_layers={f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        in_channels_list=[body.channels[stage - 1] for stage in stages],
        out_channels=PYRAMID_CHANNELS,
        extra_blocks=LastLevelMaxPool() if coarser else None,
    )


def input_transform(image_size: int) -> GeneralizedRCNNTransform:
    """Normalise pictures whose longer side is `image_size` already, and pad them to one shape."""
    return GeneralizedRCNNTransform(image_size, image_size, PIXEL_MEAN, PIXEL_STD, _skip_resize=True)
