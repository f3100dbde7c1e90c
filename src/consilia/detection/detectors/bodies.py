"""Bodies: the networks that turn a picture into feature maps of strides 4, 8, 16 and 32.

Each is an `nn.Sequential` whose last four children are `layer1` to `layer4`. Normalisation is GroupNorm (Wu and He
2018) in all of them: it has no running statistics, so the average of two hospitals' models is a model, whatever their
scanners look like. There are no integer buffers either: every tensor of the state is float32 and averages exactly.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models import mobilenet_v3_large, resnet18, resnet50
from torchvision.models.resnet import BasicBlock, ResNet

GROUPS = 8
STAGES = (1, 2, 3, 4)
WIDTH = 32
"""Channels of the first stage of the small bodies; each of the four stages doubles them."""


@dataclass(frozen=True)
class Body:
    """A network in stages; stage k (from 1) has `channels[k - 1]` channels and a stride of 2^(k+1) pixels."""

    net: nn.Sequential
    channels: tuple[int, int, int, int]


def resnet10() -> Body:
    """A ResNet (He et al. 2016) with one block a stage, half as wide as a ResNet-18: 1.2 M parameters."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(3, WIDTH, kernel_size=7, stride=2, padding=3, bias=False),
        norm1=group_norm(WIDTH),
        relu=nn.ReLU(inplace=True),
        pool=nn.MaxPool2d(kernel_size=3, stride=2, padding=1),
    )
    channels = WIDTH
    for stage in STAGES:
        width = WIDTH * 2 ** (stage - 1)
        layers[f"layer{stage}"] = _basic_block(channels, width, stride=1 if stage == 1 else 2)
        channels = width
    net = nn.Sequential(layers)
    _kaiming(net)
    return Body(net, _doubling(WIDTH))


def resnet_18() -> Body:
    """torchvision's ResNet-18, 11 M parameters."""
    return Body(_staged_resnet(resnet18(norm_layer=group_norm)), _doubling(64))


def resnet_50() -> Body:
    """torchvision's ResNet-50, 23 M parameters: for a GPU."""
    return Body(_staged_resnet(resnet50(norm_layer=group_norm)), _doubling(256))


def mobilenet() -> Body:
    """torchvision's MobileNetV3-Large (Howard et al. 2019) up to its last bottleneck, 2.8 M parameters."""
    blocks = list(mobilenet_v3_large(norm_layer=group_norm).features)
    # a stage ends where the next block halves the map
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(*blocks[:2]),
        layer1=nn.Sequential(*blocks[2:4]),
        layer2=nn.Sequential(*blocks[4:7]),
        layer3=nn.Sequential(*blocks[7:13]),
        layer4=nn.Sequential(*blocks[13:16]),
    )
    return Body(nn.Sequential(layers), (24, 40, 112, 160))


def cnn() -> Body:
    """A plain CNN without shortcuts: two 3 x 3 convolutions a stage, 1.2 M parameters."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(stem=_conv(3, WIDTH, 3, stride=2))
    channels = WIDTH
    for stage in STAGES:
        width = WIDTH * 2 ** (stage - 1)
        layers[f"layer{stage}"] = nn.Sequential(
            _conv(channels, width, 3, stride=2), _conv(width, width, 3, stride=1)
        )
        channels = width
    net = nn.Sequential(layers)
    _kaiming(net)
    return Body(net, _doubling(WIDTH))


def darknet53() -> Body:
    """YOLOv3's body (Redmon and Farhadi 2018), 53 convolutions with residual blocks, 41 M parameters: for a GPU."""
    return _darknet(stem=32, blocks=(1, 2, 8, 8, 4))


def darknet_small() -> Body:
    """The same of a quarter of the width and with fewer blocks: 0.9 M parameters."""
    return _darknet(stem=8, blocks=(0, 1, 2, 2, 1))


class DarknetBlock(nn.Module):
    """A shortcut around a 1 x 1 convolution to half the channels and a 3 x 3 one back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.squeeze = conv_leaky(channels, channels // 2, 1)
        self.expand = conv_leaky(channels // 2, channels, 3)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = features + self.expand(self.squeeze(features))
        return out


def _darknet(stem: int, blocks: tuple[int, int, int, int, int]) -> Body:
    first = [conv_leaky(3, stem, 3), conv_leaky(stem, 2 * stem, 3, stride=2)]
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        stem=nn.Sequential(*first, *(DarknetBlock(2 * stem) for _ in range(blocks[0])))
    )
    for stage in STAGES:
        width = stem * 2 ** (stage + 1)
        layers[f"layer{stage}"] = nn.Sequential(
            conv_leaky(width // 2, width, 3, stride=2), *(DarknetBlock(width) for _ in range(blocks[stage]))
        )
    net = nn.Sequential(layers)
    _kaiming(net)
    return Body(net, _doubling(4 * stem))


BODIES: dict[str, Callable[[], Body]] = {
    "cnn": cnn,
    "resnet-10": resnet10,
    "resnet-18": resnet_18,
    "resnet-50": resnet_50,
    "mobilenet": mobilenet,
    "darknet-53": darknet53,
    "darknet-small": darknet_small,
}
"""The bodies that a TaskSpec may name as `model.backbone`."""


def group_norm(channels: int) -> nn.GroupNorm:
    """What stands where torchvision has BatchNorm."""
    return nn.GroupNorm(GROUPS, channels)


def conv_leaky(channels: int, width: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Darknet's convolution: normalised, then a leaky ReLU of slope 0.1."""
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
        group_norm(width),
        nn.LeakyReLU(0.1, inplace=True),
    )


def _conv(channels: int, width: int, kernel: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
        group_norm(width),
        nn.ReLU(inplace=True),
    )


def _basic_block(channels: int, width: int, stride: int) -> BasicBlock:
    downsample = None
    if stride != 1 or channels != width:
        downsample = nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), group_norm(width))
    return BasicBlock(channels, width, stride, downsample, norm_layer=group_norm)


def _staged_resnet(resnet: ResNet) -> nn.Sequential:
    """Without the classifier."""
    return nn.Sequential(
        OrderedDict((name, child) for name, child in resnet.named_children() if name not in ("avgpool", "fc"))
    )


def _kaiming(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _doubling(first: int) -> tuple[int, int, int, int]:
    return first, 2 * first, 4 * first, 8 * first
