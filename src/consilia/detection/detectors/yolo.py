"""YOLOv3 (Redmon and Farhadi 2018): three scales, each cell judges three boxes; network, loss and decoding.

Three departures from the report, each because it learns from few pictures: boxes are learnt by complete IoU (Zheng et
al. 2020) instead of squared errors, every prior that resembles a lesion's shape is asked for it instead of the best
alone, and centres may reach half a cell beyond their cell's edge.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, complete_box_iou_loss

from consilia.detection.detectors.blueprint import (
    FINDINGS,
    NMS_IOU,
    SCORE_THRESHOLD,
    Blueprint,
    input_transform,
)
from consilia.detection.detectors.bodies import Body, conv_leaky

Target = dict[str, Tensor]

STRIDES = (8, 16, 32)
PRIORS = ((3, 4, 6), (9, 12, 16), (24, 32, 48))
"""Sides of the square priors of each scale, in 64ths of the picture."""

ALIKE_IOU = 0.4
"""Priors whose shape overlaps with a lesion's so much are asked for it, and the best one always."""

IGNORED_IOU = 0.5
"""A box that overlaps so much with a lesion that another prior is asked for is not told that it is wrong."""

EMPTY_WEIGHT = 0.5
"""Of the boxes without a lesion, in the objectness loss: there are hundreds of times as many."""

LARGEST_LOG_SIDE = 4.0
MOST_CANDIDATES = 1000
"""The best boxes of a picture that reach the suppression of doubles."""


def yolo(blueprint: Blueprint) -> nn.Module:
    """Five convolutions a scale, as in the report: 62 M parameters on a Darknet-53."""
    return Yolo(blueprint, convolutions=5)


def yolo_small(blueprint: Blueprint) -> nn.Module:
    """Three convolutions a scale: 1.8 M parameters on the small Darknet."""
    return Yolo(blueprint, convolutions=3)


class Yolo(nn.Module):
    """The detector, in torchvision's manner: a dictionary of losses in training, findings otherwise."""

    def __init__(self, blueprint: Blueprint, convolutions: int) -> None:
        super().__init__()
        self.num_classes = blueprint.num_classes
        self.backbone = YoloMaps(blueprint.body, convolutions)
        self.heads = nn.ModuleList(
            _head(width, len(PRIORS[0]) * (5 + self.num_classes)) for width in self.backbone.widths
        )
        self.transform = input_transform(blueprint.image_size)
        self.priors_px = tuple(tuple(blueprint.image_size * part / 64 for part in parts) for parts in PRIORS)
        for head in self.heads:
            _expect_little(head, self.num_classes)

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        batch, targets = self.transform(images, targets)
        maps = self.backbone(batch.tensors)
        raw, cells = self._raw(maps)
        boxes = decode(raw, cells)
        if self.training:
            if targets is None:
                raise ValueError("expected targets in training, got none")
            return yolo_loss(raw, boxes, cells, targets)
        found = [
            findings(scores, own, shape)
            for scores, own, shape in zip(_scores(raw), boxes, batch.image_sizes, strict=True)
        ]
        out: list[Target] = self.transform.postprocess(found, batch.image_sizes, sizes)
        return out

    def _raw(self, maps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What the heads say, (N, boxes, 5 + K), and of each box (cell x, cell y, stride, prior), (boxes, 4)."""
        raw, cells = [], []
        for features, head, stride, priors in zip(maps, self.heads, STRIDES, self.priors_px, strict=True):
            height, width = features.shape[-2:]
            said = head(features).float().unflatten(1, (len(priors), 5 + self.num_classes))
            raw.append(said.permute(0, 3, 4, 1, 2).flatten(1, 3))
            rows, columns, sides = torch.meshgrid(
                torch.arange(height, device=said.device, dtype=torch.float32),
                torch.arange(width, device=said.device, dtype=torch.float32),
                torch.tensor(priors, device=said.device, dtype=torch.float32),
                indexing="ij",
            )
            cells.append(torch.stack([columns, rows, torch.full_like(rows, stride), sides], -1).flatten(0, 2))
        return torch.cat(raw, 1), torch.cat(cells)


class YoloMaps(nn.Module):
    """From coarse to fine: some convolutions, then the result, enlarged, joins the next finer stage of the body."""

    def __init__(self, body: Body, convolutions: int) -> None:
        super().__init__()
        self.body = body.net
        # multiples of 16, so that GroupNorm divides them whatever the body
        self.widths = [max(32, channels // 2 // 16 * 16) for channels in body.channels[1:]]
        joined = [
            channels + (width if finer < 2 else 0)
            for finer, (channels, width) in enumerate(zip(body.channels[1:], self.widths, strict=True))
        ]
        self.sets = nn.ModuleList(
            _set(channels, width, convolutions) for channels, width in zip(joined, self.widths, strict=True)
        )
        self.routes = nn.ModuleList(
            conv_leaky(coarse, fine, 1) for fine, coarse in zip(self.widths, self.widths[1:], strict=False)
        )

    def forward(self, pictures: Tensor) -> list[Tensor]:
        stages = []
        features = pictures
        for name, layer in self.body.named_children():
            features = layer(features)
            if name in ("layer2", "layer3", "layer4"):
                stages.append(features)
        maps: list[Tensor] = []
        for scale in (2, 1, 0):
            features = stages[scale]
            if maps:
                route = F.interpolate(self.routes[scale](maps[0]), size=features.shape[-2:], mode="nearest")
                features = torch.cat([features, route], dim=1)
            maps.insert(0, self.sets[scale](features))
        return maps


def decode(raw: Tensor, cells: Tensor) -> Tensor:
    """Boxes xyxy in pixels, (N, boxes, 4): centres near their cell, sides as multiples of their prior."""
    cell, stride, prior = cells[:, :2], cells[:, 2:3], cells[:, 3:]
    centre = (raw[..., :2].sigmoid() * 2 - 0.5 + cell) * stride
    half = raw[..., 2:4].clamp(max=LARGEST_LOG_SIDE).exp() * prior / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def asked(boxes_xyxy: Tensor, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Which boxes of the grid are asked for which lesions: two index tensors of equal length.

    The cells that hold a lesion's centre, with the priors alike in shape; a box that two lesions ask for gets one.
    """
    if not len(boxes_xyxy):
        nothing = torch.zeros(0, dtype=torch.int64, device=cells.device)
        return nothing, nothing
    sides = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]
    centre = (boxes_xyxy[:, 2:] + boxes_xyxy[:, :2]) / 2
    prior = cells[:, 3]
    overlap = sides[:, :1].clamp(max=prior) * sides[:, 1:].clamp(max=prior)
    alike = overlap / (sides.prod(1, keepdim=True) + prior**2 - overlap)
    here = (centre[:, None] / cells[:, 2:3]).floor() == cells[:, :2]
    alike = torch.where(here.all(-1), alike, -1.0)
    wanted = (alike > ALIKE_IOU) | (alike == alike.amax(1, keepdim=True)) & (alike >= 0)
    # of several lesions in one place, the one whose shape fits best
    best = torch.where(wanted, alike, -1.0).argmax(0)
    index = torch.nonzero(wanted.any(0)).flatten()
    return index, best[index]


def yolo_loss(raw: Tensor, boxes: Tensor, cells: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
    """Complete IoU of the boxes asked for, binary cross-entropy of objectness and classes, each a lesion's share."""
    parts = [
        _picture_loss(said, own, cells, target) for said, own, target in zip(raw, boxes, targets, strict=True)
    ]
    total = max(1, sum(count for _, count in parts))
    names = ("loss_box", "loss_objectness", "loss_class")
    sums = torch.stack([losses for losses, _ in parts]).sum(0) / total
    return dict(zip(names, sums, strict=True))


def _picture_loss(raw: Tensor, boxes: Tensor, cells: Tensor, target: Target) -> tuple[Tensor, int]:
    index, lesion = asked(target["boxes"], cells)
    truth = torch.zeros_like(raw[:, 4])
    weight = torch.full_like(truth, EMPTY_WEIGHT)
    if len(target["boxes"]):
        overlap = box_iou(boxes.detach(), target["boxes"]).amax(1)
        weight[overlap > IGNORED_IOU] = 0.0
    truth[index], weight[index] = 1.0, 1.0
    objectness = F.binary_cross_entropy_with_logits(raw[:, 4], truth, weight, reduction="sum")
    labels = F.one_hot(target["labels"][lesion] - 1, raw.shape[1] - 5).to(raw.dtype)
    classes = F.binary_cross_entropy_with_logits(raw[index, 5:], labels, reduction="sum")
    box = complete_box_iou_loss(boxes[index], target["boxes"][lesion], reduction="sum")
    return torch.stack([box, objectness, classes]), len(index)


def findings(scores: Tensor, boxes_xyxy: Tensor, shape: tuple[int, int]) -> Target:
    """The findings of one picture: `scores` (boxes, K), `boxes_xyxy` (boxes, 4), `shape` (height, width)."""
    box, label = torch.nonzero(scores > SCORE_THRESHOLD, as_tuple=True)
    values = scores[box, label]
    # no condition on the number: an exported graph would keep what it was on the picture of the export
    order = values.argsort(descending=True)[:MOST_CANDIDATES]
    values, box, label = values[order], box[order], label[order]
    found = clip_boxes_to_image(boxes_xyxy[box], shape)
    kept = batched_nms(found, values, label, NMS_IOU)[:FINDINGS]
    return {"boxes": found[kept], "scores": values[kept], "labels": label[kept] + 1}


def _scores(raw: Tensor) -> Tensor:
    return raw[..., 4:5].sigmoid() * raw[..., 5:].sigmoid()


def _set(channels: int, width: int, convolutions: int) -> nn.Sequential:
    """1 x 1 and 3 x 3 by turns, from `channels` to `width`."""
    layers = [conv_leaky(channels, width, 1)]
    for number in range(1, convolutions):
        layers.append(conv_leaky(width, 2 * width, 3) if number % 2 else conv_leaky(2 * width, width, 1))
    return nn.Sequential(*layers)


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv_leaky(width, 2 * width, 3), nn.Conv2d(2 * width, outputs, 1))


def _expect_little(head: nn.Module, num_classes: int) -> None:
    """Begin with boxes that look like their priors and hardly expect a lesion (Lin et al. 2017, section 3.3)."""
    weight, bias = list(head.parameters())[-2:]
    nn.init.normal_(weight, std=0.01)
    nn.init.zeros_(bias)
    with torch.no_grad():
        bias.view(-1, 5 + num_classes)[:, 4] = -math.log(99)
