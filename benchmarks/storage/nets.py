"""The nets of the training figure, each as its paper describes it, for ten classes.

VGG-16: Simonyan and Zisserman 2015. ResNet: He et al. 2016. DenseNet-121: Huang et al. 2017.
SqueezeNet 1.1: Iandola et al. 2016. 3D U-Net: Çiçek et al. 2016, at a quarter of its width.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

CLASSES = 10


def _conv(into: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(out)
    )


def vgg16() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(count):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 4096), nn.ReLU(inplace=True),
        nn.Linear(4096, 4096), nn.ReLU(inplace=True), nn.Linear(4096, CLASSES),
    )  # fmt: skip
    return nn.Sequential(*layers, head)


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _resnet(counts: tuple[int, ...], bottleneck: bool) -> nn.Module:
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, count in enumerate(counts):
        width = 64 << stage
        out = width * 4 if bottleneck else width
        for block in range(count):
            stride = 2 if stage and not block else 1
            if bottleneck:
                parts = [_conv(channels, width, 1), _conv(width, width, 3, stride)]
                last = _conv(width, out, 1)
            else:
                parts, last = [_conv(channels, width, 3, stride)], _conv(width, out, 3)
            body = nn.Sequential(*(m for p in parts for m in (p, nn.ReLU(inplace=True))), last)
            same = channels == out and stride == 1
            shortcut = nn.Identity() if same else _conv(channels, out, 1, stride)
            layers.append(_Residual(body, shortcut))
            channels = out
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    return nn.Sequential(*layers, *head)


def resnet18() -> nn.Module:
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet101() -> nn.Module:
    return _resnet((3, 4, 23, 3), bottleneck=True)


class _Dense(nn.Module):
    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, 4 * growth, 1, bias=False),
            nn.BatchNorm2d(4 * growth), nn.ReLU(),
            nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.body(x)), 1)


def densenet121() -> nn.Module:
    growth, channels = 32, 64
    layers: list[nn.Module] = [_conv(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    for stage, count in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [
                nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels // 2, 1),
                nn.AvgPool2d(2),
            ]  # fmt: skip
            channels //= 2
        for _ in range(count):
            layers.append(_Dense(channels, growth))
            channels += growth
    head = (nn.BatchNorm2d(channels), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*layers, *head, nn.Linear(channels, CLASSES))


class _Fire(nn.Module):
    def __init__(self, into: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(into, squeeze, 1)
        self.one, self.three = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat((self.one(x), self.three(x)), 1))


def squeezenet() -> nn.Module:
    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2), nn.ReLU(inplace=True), pool(),
        _Fire(64, 16, 64), _Fire(128, 16, 64), pool(),
        _Fire(128, 32, 128), _Fire(256, 32, 128), pool(),
        _Fire(256, 48, 192), _Fire(384, 48, 192), _Fire(384, 64, 256), _Fire(512, 64, 256),
        nn.Conv2d(512, CLASSES, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip


class _UNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (8, 16, 32, 64)) -> None:
        super().__init__()

        def twice(into: int, out: int) -> nn.Module:
            parts: list[nn.Module] = []
            for channels in (into, out):
                parts += [nn.Conv3d(channels, out, 3, padding=1), nn.BatchNorm3d(out), nn.ReLU()]
            return nn.Sequential(*parts)

        self.down = nn.ModuleList(
            twice(a, b) for a, b in zip((1, *widths[:-1]), widths, strict=True)
        )
        pairs = list(pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, 2) for a, b in pairs)
        self.join = nn.ModuleList(twice(2 * a, a) for a, _ in pairs)
        self.last = nn.Conv3d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for number, step in enumerate(self.down):
            x = step(x if not number else nn.functional.max_pool3d(x, 2))
            kept.append(x)
        kept.pop()
        for up, join in zip(self.up, self.join, strict=True):
            x = join(torch.cat((kept.pop(), up(x)), 1))
        out: Tensor = self.last(x)
        return out


def unet3d() -> nn.Module:
    return _UNet()


NETS: dict[str, Callable[[], nn.Module]] = {
    "vgg16": vgg16, "resnet101": resnet101, "densenet121": densenet121, "resnet18": resnet18,
    "squeezenet": squeezenet, "unet3d": unet3d,
}  # fmt: skip
