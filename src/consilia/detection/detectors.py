"""Detectors small enough to learn from scratch on one CPU core: torchvision's parts around a compact body.

The body is a ResNet-10 of width 32 under a feature pyramid (He et al. 2016; Lin et al. 2017). Its
normalisation is GroupNorm (Wu and He 2018): it has no running statistics, so the average of two hospitals'
models is a model, whatever their scanners look like. There are no integer buffers either: every tensor of the
state is float32 and averages exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models.detection import FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import BasicBlock
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from consilia.errors import SpecError

WIDTH = 32
"""Channels of the body's first stage; each of the four stages doubles them."""

PYRAMID_CHANNELS = 64
GROUPS = 8
HEAD_FEATURES = 256
SCORE_THRESHOLD = 0.01
"""Findings below this score are not reported. Low, because FROC looks at up to 8 false positives an image."""

PIXEL_MEAN = (0.5, 0.5, 0.5)
PIXEL_STD = (0.25, 0.25, 0.25)
"""Fixed, and not a hospital's own statistics: every hospital must feed the shared model the same input."""

ASPECT_RATIOS = (0.5, 1.0, 2.0)


def build(name: str, *, num_classes: int, image_size: int, seed: int) -> nn.Module:
    """A detector with random weights that depend on `seed` alone.

    Args:
        name: one of `DETECTORS`.
        num_classes: finding classes, without the background.
        image_size: the longer side of the pictures in pixels; sets the sizes of the anchors.
        seed: of the initial weights.

    Raises:
        SpecError: no detector has this name.
    """
    if name not in DETECTORS:
        known = ", ".join(sorted(DETECTORS))
        raise SpecError(f"model.detector: expected one of {known}, got {name!r}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return DETECTORS[name](num_classes, image_size)


def _faster_rcnn(num_classes: int, image_size: int) -> nn.Module:
    """Faster R-CNN (Ren et al. 2015), "fr10": 2.3 M parameters. Few proposals: they took most of the time."""
    backbone = _backbone(stages=(1, 2, 3, 4))
    # a finding of 1/16 of the picture (12 px of 192) up to 3/4 of it: one size a pyramid level
    sizes = tuple((image_size * part // 64,) for part in (4, 8, 16, 32, 48))
    model: nn.Module = FasterRCNN(
        backbone,
        min_size=image_size,
        max_size=image_size,
        image_mean=PIXEL_MEAN,
        image_std=PIXEL_STD,
        rpn_anchor_generator=AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes)),
        rpn_pre_nms_top_n_train=400,
        rpn_post_nms_top_n_train=200,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=100,
        # with one anchor size a level few anchors pass the usual 0.7, and proposals learn to fit from too few
        rpn_fg_iou_thresh=0.5,
        rpn_batch_size_per_image=128,
        box_batch_size_per_image=64,
        box_head=TwoMLPHead(PYRAMID_CHANNELS * 7 * 7, HEAD_FEATURES),
        box_predictor=FastRCNNPredictor(HEAD_FEATURES, num_classes + 1),
        box_score_thresh=SCORE_THRESHOLD,
        _skip_resize=True,
    )
    return model


def _retinanet(num_classes: int, image_size: int) -> nn.Module:
    """RetinaNet (Lin et al. 2017) on the same body: 1.7 M parameters, one stage."""
    backbone = _backbone(stages=(2, 3, 4))
    sizes = tuple((image_size * part // 64, image_size * part // 40) for part in (4, 10, 24, 40))
    model: nn.Module = RetinaNet(
        backbone,
        num_classes + 1,  # torchvision's labels begin at 1 here too; output 0 stays unused
        min_size=image_size,
        max_size=image_size,
        image_mean=PIXEL_MEAN,
        image_std=PIXEL_STD,
        anchor_generator=AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes)),
        score_thresh=SCORE_THRESHOLD,
        detections_per_img=100,
        _skip_resize=True,
    )
    return model


DETECTORS: dict[str, Callable[[int, int], nn.Module]] = {"faster-rcnn": _faster_rcnn, "retinanet": _retinanet}
"""The detectors that a TaskSpec may name."""


def _backbone(stages: tuple[int, ...]) -> BackboneWithFPN:
    """ResNet-10 with a pyramid over `stages` (stage k has stride 2^(k+1)), and one coarser level on top."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, WIDTH, kernel_size=7, stride=2, padding=3, bias=False),
        norm1=_group_norm(WIDTH),
        relu=nn.ReLU(inplace=True),
        pool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    channels = WIDTH
    for stage in range(1, 5):
        width = WIDTH * 2 ** (stage - 1)
        layers[f"layer{stage}"] = _block(channels, width, stride=1 if stage == 1 else 2)
        channels = width
    body = nn.Sequential(layers)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return BackboneWithFPN(
        body,
        return_layers={f"layer{stage}": str(level) for level, stage in enumerate(stages)},
        in_channels_list=[WIDTH * 2 ** (stage - 1) for stage in stages],
        out_channels=PYRAMID_CHANNELS,
        extra_blocks=LastLevelMaxPool(),
    )


def _block(channels: int, width: int, stride: int) -> BasicBlock:
    downsample = None
    if stride != 1 or channels != width:
        downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), _group_norm(width))
    return BasicBlock(channels, width, stride, downsample, norm_layer=_group_norm)


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)
