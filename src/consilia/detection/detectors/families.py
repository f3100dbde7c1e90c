"""The names that a TaskSpec may give: those of this package, and those of packages that register an entry point."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol

from torch import nn

from consilia.detection.detectors.blueprint import Blueprint
from consilia.detection.detectors.bodies import BODIES
from consilia.detection.detectors.single_stage import retinanet, ssd
from consilia.detection.detectors.two_stage import fast_rcnn, faster_rcnn, r_cnn, spp_net
from consilia.detection.detectors.yolo import yolo, yolo_small
from consilia.errors import SpecError

ENTRY_POINTS = "consilia.detectors"
"""The group of entry points under which an installed package offers detectors (docs/detection.md)."""


class UserDetector(Protocol):
    """What an entry point of the group leads to: a detector from elsewhere."""

    def backbones(self) -> Sequence[str]:
        """The names that `model.backbone` may have; the first is taken where a TaskSpec gives none."""

    def build(self, num_classes: int, image_size: int, backbone: str) -> nn.Module:
        """A model with random weights, drawn from torch's own generator and from nothing else.

        Args:
            num_classes: finding classes, labels 1 to `num_classes`.
            image_size: the longer side of the pictures in pixels.
            backbone: one of `backbones()`.

        Returns:
            A module in torchvision's manner. In training, `model(images, targets)` is a dictionary of losses; otherwise
            `model(images)` is a list of `boxes` (n, 4) xyxy in pixels, `scores` (n,) and `labels` (n,), best first.
            `images` are float32 (3, H, W) in [0, 1] of differing sizes, a target has `boxes` and `labels`. All
            tensors of its state are float32, for only those have an average. If the module has an attribute
            `judges_proposals` that is true, targets have `proposals` (regions by selective search, xyxy) as well,
            and come with the pictures at all times.
        """


@dataclass(frozen=True)
class Family:
    """A detector of this package."""

    make: Callable[[Blueprint], nn.Module]
    backbone: str
    """Taken where a TaskSpec names none."""

    @property
    def backbones(self) -> tuple[str, ...]:
        """The bodies that it may stand on: all."""
        return tuple(BODIES)

    def build(self, num_classes: int, image_size: int, backbone: str) -> nn.Module:
        """A model with random weights."""
        return self.make(Blueprint(num_classes, image_size, BODIES[backbone]()))


BUILT_IN = {
    "r-cnn": Family(r_cnn, "resnet-10"),
    "spp-net": Family(spp_net, "resnet-10"),
    "fast-rcnn": Family(fast_rcnn, "resnet-10"),
    "faster-rcnn": Family(faster_rcnn, "resnet-10"),
    "yolo": Family(yolo, "darknet-53"),
    "yolo-small": Family(yolo_small, "darknet-small"),
    "ssd": Family(ssd, "resnet-10"),
    "retinanet": Family(retinanet, "resnet-10"),
}
"""The detectors of this package by the name that a TaskSpec gives."""


@dataclass(frozen=True)
class Registered:
    """A detector that another package registered."""

    point: EntryPoint

    @property
    def detector(self) -> UserDetector:
        """The other package's code, loaded now: never before its name is asked for."""
        detector: UserDetector = self.point.load()
        return detector

    @property
    def backbones(self) -> tuple[str, ...]:
        """The names that it takes."""
        return tuple(self.detector.backbones())

    @property
    def backbone(self) -> str:
        """The first of them."""
        return self.backbones[0]

    def build(self, num_classes: int, image_size: int, backbone: str) -> nn.Module:
        """A model with random weights, whose tensors can all be averaged.

        Raises:
            SpecError: they cannot.
        """
        model = self.detector.build(num_classes, image_size, backbone)
        odd = [name for name, tensor in model.state_dict().items() if str(tensor.dtype) != "torch.float32"]
        if odd:
            raise SpecError(
                f"model.detector: {self.point.name} holds tensors that have no average ({', '.join(odd[:3])}): "
                "expected float32 in all of its state; replace BatchNorm by GroupNorm, make buffers non-persistent"
            )
        return model


def families() -> dict[str, Family | Registered]:
    """All detectors by name; nothing of another package is loaded yet.

    Raises:
        SpecError: two packages register one name, or one takes a name of this package.
    """
    known: dict[str, Family | Registered] = dict(BUILT_IN)
    for point in entry_points(group=ENTRY_POINTS):
        if point.name in known:
            raise SpecError(
                f"model.detector: {point.name!r} is registered twice ({point.value}); uninstall one"
            )
        known[point.name] = Registered(point)
    return known
