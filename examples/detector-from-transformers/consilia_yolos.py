"""YOLOS (Fang et al. 2021) from transformers: a plain vision transformer that hands in a set of boxes.

It normalises with LayerNorm, so every tensor of its state has an average. Weights are random; nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, clip_boxes_to_image
from transformers import YolosConfig, YolosForObjectDetection

Target = dict[str, Tensor]

WIDTHS = {"vit-96": 96, "vit-192": 192}
"""Backbones by name, and how wide they are; 192 is the width of the paper's "tiny"."""


class Yolos(nn.Module):
    """transformers' model in torchvision's manner: boxes in pixels in and out, losses in training."""

    def __init__(self, num_classes: int, image_size: int, width: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.net = YolosForObjectDetection(
            YolosConfig(
                hidden_size=width,
                num_hidden_layers=4,
                num_attention_heads=width // 32,
                intermediate_size=2 * width,
                image_size=[image_size, image_size],
                patch_size=16,
                num_detection_tokens=50,
                num_labels=num_classes,
                use_mid_position_embeddings=False,
            )
        )

    def forward(
        self, images: list[Tensor], targets: list[Target] | None = None
    ) -> dict[str, Tensor] | list[Target]:
        batch = torch.stack([self._square(image) for image in images])
        if not self.training:
            said = self.net(batch)
            shapes = [image.shape[-2:] for image in images]
            return [self._findings(*one) for one in zip(said.logits, said.pred_boxes, shapes, strict=True)]
        if targets is None:
            raise ValueError("expected targets in training, got none")
        said = self.net(batch, labels=[self._label(target) for target in targets])
        return {"loss_set": said.loss}

    def _square(self, image: Tensor) -> Tensor:
        """Normalised, and padded to the right and below, so that boxes stay where they are."""
        height, width = image.shape[-2:]
        padded = nn.functional.pad(image, (0, self.image_size - width, 0, self.image_size - height))
        return (padded - 0.5) / 0.25

    def _label(self, target: Target) -> Target:
        """Classes from 0, boxes as (centre, size) in parts of the square."""
        boxes = box_convert(target["boxes"], "xyxy", "cxcywh") / self.image_size
        return {"class_labels": target["labels"] - 1, "boxes": boxes}

    def _findings(self, logits: Tensor, boxes: Tensor, shape: tuple[int, int]) -> Target:
        """Each token's best class; the last class means that there is nothing."""
        scores, labels = logits.softmax(-1)[:, :-1].max(-1)
        scores, order = scores.sort(descending=True)
        pixels = box_convert(boxes[order], "cxcywh", "xyxy") * self.image_size
        return {"boxes": clip_boxes_to_image(pixels, shape), "scores": scores, "labels": labels[order] + 1}


class YolosDetector:
    """What the entry point leads to: the two methods that Consilia asks for."""

    def backbones(self) -> Sequence[str]:
        return tuple(WIDTHS)

    def build(self, num_classes: int, image_size: int, backbone: str) -> nn.Module:
        return Yolos(num_classes, image_size, WIDTHS[backbone])


YOLOS = YolosDetector()
