"""Detectors that judge a fixed grid of boxes in one stage, from torchvision: RetinaNet and SSD."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD, SSDHead

from consilia.detection.detectors.blueprint import (
    ASPECT_RATIOS,
    FINDINGS,
    NMS_IOU,
    PIXEL_MEAN,
    PIXEL_STD,
    SCORE_THRESHOLD,
    Blueprint,
    input_transform,
    pyramid,
)
from consilia.detection.detectors.bodies import Body, group_norm


def retinanet(blueprint: Blueprint) -> nn.Module:
    """RetinaNet (Lin et al. 2017): a feature pyramid, focal loss; 1.7 M parameters on a ResNet-10."""
    backbone = pyramid(blueprint.body, (2, 3, 4))
    size = blueprint.image_size
    sizes = tuple((size * part // 64, size * part // 40) for part in (4, 10, 24, 40))
    model: nn.Module = RetinaNet(
        backbone,
        blueprint.num_classes + 1,  # torchvision's labels begin at 1 here too; output 0 stays unused
        min_size=size,
        max_size=size,
        image_mean=PIXEL_MEAN,
        image_std=PIXEL_STD,
        anchor_generator=AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes)),
        score_thresh=SCORE_THRESHOLD,
        detections_per_img=FINDINGS,
        _skip_resize=True,
    )
    return model


SSD_SCALES = (0.06, 0.12, 0.25, 0.45, 0.7, 0.95)
"""Default boxes by their part of the picture's side, one scale a map, and the end of the last map's range."""


def ssd(blueprint: Blueprint) -> nn.Module:
    """SSD (Liu et al. 2016): five maps of falling size, softmax with the hardest negatives, no pyramid."""
    backbone = SsdMaps(blueprint.body)
    anchors = DefaultBoxGenerator([[2]] * len(backbone.out_channels), scales=list(SSD_SCALES))
    size = (blueprint.image_size, blueprint.image_size)
    model = SSD(
        backbone,
        anchors,
        size,
        blueprint.num_classes + 1,
        image_mean=PIXEL_MEAN,
        image_std=PIXEL_STD,
        head=SSDHead(backbone.out_channels, anchors.num_anchors_per_location(), blueprint.num_classes + 1),
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=NMS_IOU,
        detections_per_img=FINDINGS,
    )
    # SSD's own would stretch every picture to a square; default boxes are parts of the padded picture either way
    model.transform = input_transform(blueprint.image_size)
    out: nn.Module = model
    return out


class SsdMaps(nn.Module):
    """The body's maps of strides 8, 16 and 32, and two coarser ones made from the last."""

    EXTRA_CHANNELS = 64

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body.net
        self.extra = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, self.EXTRA_CHANNELS, 3, stride=2, padding=1, bias=False),
                group_norm(self.EXTRA_CHANNELS),
                nn.ReLU(inplace=True),
            )
            for channels in (body.channels[-1], self.EXTRA_CHANNELS)
        )
        self.out_channels = [*body.channels[1:], self.EXTRA_CHANNELS, self.EXTRA_CHANNELS]

    def forward(self, pictures: Tensor) -> dict[str, Tensor]:
        maps: OrderedDict[str, Tensor] = OrderedDict()
        features = pictures
        for name, layer in self.body.named_children():
            features = layer(features)
            if name in ("layer2", "layer3", "layer4"):
                maps[name] = features
        for number, layer in enumerate(self.extra):
            features = layer(features)
            maps[f"extra{number}"] = features
        return maps
