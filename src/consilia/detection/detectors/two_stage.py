"""The two-stage family in one skeleton: regions that may hold a finding, then a head that judges each of them.

Four detectors differ in two parts alone, where the regions come from and how a region's features are pooled:

| detector | regions | pooled from |
|---|---|---|
| R-CNN (Girshick 2014) | selective search | the picture: each region is cut out, warped, sent through the body |
| SPP-Net (He et al. 2014) | selective search | one feature map, by a spatial pyramid of 4 x 4, 2 x 2 and 1 x 1 bins |
| Fast R-CNN (Girshick 2015) | selective search | one feature map, by 7 x 7 bins (RoIPool) |
| Faster R-CNN (Ren et al. 2015) | a network of its own | a feature pyramid, by 7 x 7 samples (RoIAlign) |

Heads and losses are Fast R-CNN's for all: softmax and box regression, trained jointly. The support vector machines and
the separate stages of the two oldest are not rebuilt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops import MultiScaleRoIAlign, roi_align, roi_pool

from consilia.detection.detectors.blueprint import (
    ASPECT_RATIOS,
    FINDINGS,
    HEAD_FEATURES,
    NMS_IOU,
    PIXEL_MEAN,
    PIXEL_STD,
    PYRAMID_CHANNELS,
    SCORE_THRESHOLD,
    Blueprint,
    pyramid,
)

Features = dict[str, Tensor]
Shapes = list[tuple[int, int]]
Target = dict[str, Tensor]

FINE_UP_TO_PX = 400
"""Pictures up to this size keep a map of stride 8, larger ones have one of stride 16."""


def faster_rcnn(blueprint: Blueprint) -> nn.Module:
    """Faster R-CNN, "fr10" on a ResNet-10: 2.3 M parameters. Few proposals: they took most of the time."""
    backbone = pyramid(blueprint.body, (1, 2, 3, 4))
    head = TwoMLPHead(PYRAMID_CHANNELS * 7 * 7, HEAD_FEATURES)
    pool = MultiScaleRoIAlign(featmap_names=["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    roi_heads = _roi_heads(pool, head, blueprint)
    # a finding of 1/16 of the picture (12 px of 192) up to 3/4 of it: one size a pyramid level
    sizes = tuple((blueprint.image_size * part // 64,) for part in (4, 8, 16, 32, 48))
    anchors = AnchorGenerator(sizes, (ASPECT_RATIOS,) * len(sizes))
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(PYRAMID_CHANNELS, anchors.num_anchors_per_location()[0]),
        # with one anchor size a level few anchors pass the usual 0.7, and proposals learn to fit from too few
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.3,
        batch_size_per_image=128,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 400, "testing": 300},
        post_nms_top_n={"training": 200, "testing": 100},
        nms_thresh=0.7,
    )
    return _assembled(backbone, rpn, roi_heads, blueprint)


def fast_rcnn(blueprint: Blueprint) -> nn.Module:
    """Fast R-CNN: regions from outside, RoIPool on one map."""
    backbone, stride = _one_map(blueprint)
    pool = _RoIPool(7, stride)
    head = TwoMLPHead(PYRAMID_CHANNELS * 7 * 7, HEAD_FEATURES)
    return _assembled(backbone, ExternalProposals(), _roi_heads(pool, head, blueprint), blueprint)


def spp_net(blueprint: Blueprint) -> nn.Module:
    """SPP-Net: regions from outside, a spatial pyramid of bins on one map."""
    backbone, stride = _one_map(blueprint)
    pool = _SpatialPyramid((4, 2, 1), stride)
    head = TwoMLPHead(PYRAMID_CHANNELS * (4 * 4 + 2 * 2 + 1), HEAD_FEATURES)
    return _assembled(backbone, ExternalProposals(), _roi_heads(pool, head, blueprint), blueprint)


def r_cnn(blueprint: Blueprint) -> nn.Module:
    """R-CNN: each region is cut out of the picture and sent through the body on its own."""
    pool, head = _WarpedCrops(), _CropHead(blueprint)
    return _assembled(nn.Identity(), ExternalProposals(), _roi_heads(pool, head, blueprint), blueprint)


class ExternalProposals(nn.Module):
    """Stands where Faster R-CNN has its proposal network, and hands on the regions that came with the targets."""

    def forward(
        self, images: ImageList, features: Features, targets: list[Target] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        if targets is None:
            raise ValueError("expected a target with `proposals` for every picture, got none")
        return [target["proposals"] for target in targets], {}


class _Transform(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """torchvision's, which knows boxes, masks and keypoints but would leave proposals where they were."""

    def resize(self, image: Tensor, target: Target | None = None) -> tuple[Tensor, Target | None]:
        before = image.shape[-2:]
        image, target = super().resize(image, target)
        if target is not None and "proposals" in target:
            target["proposals"] = resize_boxes(target["proposals"], before, image.shape[-2:])
        return image, target


class _RoIPool(nn.Module):
    """Max pooling of the bins of each region on one map."""

    def __init__(self, size: int, stride: int) -> None:
        super().__init__()
        self.size, self.scale = size, 1 / stride

    def forward(self, features: Features, boxes: list[Tensor], shapes: Shapes) -> Tensor:
        # float: RoIPool has no bfloat16 kernel, and under autocast the map may come in that
        pooled: Tensor = roi_pool(features["0"].float(), boxes, self.size, self.scale)
        return pooled


class _SpatialPyramid(nn.Module):
    """The same at several sizes of bins, side by side: a vector of one length whatever the region's size."""

    def __init__(self, levels: tuple[int, ...], stride: int) -> None:
        super().__init__()
        self.pools = nn.ModuleList(_RoIPool(level, stride) for level in levels)

    def forward(self, features: Features, boxes: list[Tensor], shapes: Shapes) -> Tensor:
        return torch.cat([pool(features, boxes, shapes).flatten(1) for pool in self.pools], dim=1)


class _WarpedCrops(nn.Module):
    """Each region of the picture, with a margin that shows what lies around it, warped to one square size."""

    SIZE_PX = 64
    MARGIN = 0.15

    def forward(self, features: Features, boxes: list[Tensor], shapes: Shapes) -> Tensor:
        margins = [self.MARGIN * (box[:, 2:] - box[:, :2]) for box in boxes]
        wider = [
            torch.cat([box[:, :2] - margin, box[:, 2:] + margin], dim=1)
            for box, margin in zip(boxes, margins, strict=True)
        ]
        crops: Tensor = roi_align(
            features["0"].float(), wider, self.SIZE_PX, 1.0, sampling_ratio=2, aligned=True
        )
        return crops


class _CropHead(nn.Module):
    """The whole body on each crop."""

    def __init__(self, blueprint: Blueprint) -> None:
        super().__init__()
        self.body = blueprint.body.net
        self.fc = nn.Linear(blueprint.body.channels[-1], HEAD_FEATURES)

    def forward(self, crops: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.body(crops), 1).flatten(1)
        return F.relu(self.fc(pooled))


def _one_map(blueprint: Blueprint) -> tuple[nn.Module, int]:
    """A body up to one stage, brought to `PYRAMID_CHANNELS`, and the map's stride in pixels."""
    stage = 2 if blueprint.image_size <= FINE_UP_TO_PX else 3
    return pyramid(blueprint.body, (stage,), coarser=False), 2 ** (stage + 1)


def _roi_heads(pool: nn.Module, head: nn.Module, blueprint: Blueprint) -> RoIHeads:
    return RoIHeads(
        box_roi_pool=pool,
        box_head=head,
        box_predictor=FastRCNNPredictor(HEAD_FEATURES, blueprint.num_classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=64,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=NMS_IOU,
        detections_per_img=FINDINGS,
    )


def _assembled(backbone: nn.Module, rpn: nn.Module, roi_heads: RoIHeads, blueprint: Blueprint) -> nn.Module:
    size = blueprint.image_size
    transform = _Transform(size, size, PIXEL_MEAN, PIXEL_STD, _skip_resize=True)
    model = GeneralizedRCNN(backbone, rpn, roi_heads, transform)
    model.judges_proposals = isinstance(rpn, ExternalProposals)  # whoever calls it must bring them
    out: nn.Module = model
    return out
