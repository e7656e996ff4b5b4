"""Nets of the benchmark, as torch modules with weights of their own making.

`rsunet`: a residual symmetric U-Net (Lee et al. 2017, arXiv:1706.00120): anisotropic, three
convolutions a level with a short skip, summing long skips, ELU, batch norm.
`unet3d`: the 3D U-Net (Cicek et al. 2016, arXiv:1606.06650): concatenating skips, ReLU, zero
padding.
`nccnet`: a 2D U-Net that filters image sections before template matching (Buniatyan et al. 2017,
arXiv:1705.08593).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional


class ResidualLevel(nn.Module):
    """Convolve within the plane, then twice in the volume, with a short skip."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int]) -> None:
        super().__init__()
        flat = (1, *kernel[1:])
        self.conv = nn.ModuleList(
            nn.Conv3d(i, outputs, k, padding=tuple(n // 2 for n in k), bias=False)
            for i, k in ((inputs, flat), (outputs, kernel), (outputs, kernel))
        )
        self.norm = nn.ModuleList(nn.BatchNorm3d(outputs) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, c, z, y, x)` of the same size."""
        skip = functional.elu(self.norm[0](self.conv[0](x)))
        y = functional.elu(self.norm[1](self.conv[1](skip)))
        return functional.elu(self.norm[2](self.conv[2](y) + skip))


class RSUNet(nn.Module):
    """Residual symmetric U-Net."""

    def __init__(self, widths: Sequence[int] = (28, 36, 48, 64, 80), outputs: int = 3) -> None:
        super().__init__()
        kernels = [(1, 3, 3)] + [(3, 3, 3)] * (len(widths) - 1)
        first, pad = widths[0], (0, 2, 2)
        self.first = nn.Conv3d(1, first, (1, 5, 5), padding=pad)
        self.down = nn.ModuleList(
            ResidualLevel(widths[max(0, n - 1)], width, kernel)
            for n, (width, kernel) in enumerate(zip(widths, kernels, strict=True))
        )
        pairs = list(zip(widths[:-1], widths[1:], kernels[:-1], strict=True))[::-1]
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(deep, width, (1, 2, 2), (1, 2, 2), bias=False)
            for width, deep, _ in pairs
        )
        self.norm = nn.ModuleList(nn.BatchNorm3d(width) for width, _, _ in pairs)
        self.level = nn.ModuleList(ResidualLevel(width, width, k) for width, _, k in pairs)
        self.embed = nn.Conv3d(first, first, kernels[0], padding=(0, 1, 1))
        self.last = nn.Conv3d(first, outputs, (1, 5, 5), padding=pad)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 1, z, y, x)` -> probabilities; y and x multiples of 16."""
        x = functional.elu(self.first(x))
        skips = []
        for n, level in enumerate(self.down):
            x = level(functional.max_pool3d(x, (1, 2, 2)) if n else x)
            skips.append(x)
        for up, norm, level, skip in zip(
            self.up, self.norm, self.level, skips[-2::-1], strict=True
        ):
            x = level(functional.elu(norm(up(x) + skip)))
        return torch.sigmoid(self.last(functional.elu(self.embed(x))))


class DoubleConv(nn.Sequential):
    """Twice convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, middle: int, outputs: int, dimensions: int = 3) -> None:
        conv = nn.Conv3d if dimensions == 3 else nn.Conv2d
        norm = nn.BatchNorm3d if dimensions == 3 else nn.BatchNorm2d
        layers: list[nn.Module] = []
        for i, o in ((inputs, middle), (middle, outputs)):
            layers += [conv(i, o, 3, padding=1), norm(o), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet3D(nn.Module):
    """3D U-Net with concatenating skips."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            DoubleConv(*widths)
            for widths in ((1, 32, 64), (64, 64, 128), (128, 128, 256), (256, 256, 512))
        )
        self.up = nn.ModuleList(nn.ConvTranspose3d(n, n, 2, stride=2) for n in (512, 256, 128))
        self.join = nn.ModuleList(
            DoubleConv(deep + width, width, width)
            for deep, width in ((512, 256), (256, 128), (128, 64))
        )
        self.head = nn.Conv3d(64, outputs, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 1, z, y, x)`, sizes multiples of 8."""
        skips = []
        for n, level in enumerate(self.down):
            x = level(functional.max_pool3d(x, 2) if n else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.head(x)


class NCCNet(nn.Module):
    """2D U-Net with summing skips, one channel in and out."""

    def __init__(self, widths: Sequence[int] = (16, 32, 64, 128)) -> None:
        super().__init__()
        inputs = (1, *widths[:-1])
        self.down = nn.ModuleList(
            DoubleConv(i, o, o, 2) for i, o in zip(inputs, widths, strict=True)
        )
        pairs = list(itertools.pairwise(widths))[::-1]
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, width, 2, 2) for width, deep in pairs)
        self.join = nn.ModuleList(DoubleConv(width, width, width, 2) for width, _ in pairs)
        self.head = nn.Conv2d(widths[0], 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(n, 1, y, x)`, sizes multiples of 8."""
        skips = []
        for n, level in enumerate(self.down):
            x = level(functional.max_pool2d(x, 2) if n else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = join(up(x) + skip)
        return torch.tanh(self.head(x))


def prepare(net: nn.Module) -> nn.Module:
    """Weights that keep activations near 1, and batch norms that do something."""
    for part in net.modules():
        if isinstance(part, (nn.BatchNorm2d, nn.BatchNorm3d)):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.uniform_(part.bias, -0.3, 0.3)
            nn.init.uniform_(part.running_mean, -0.3, 0.3)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
        elif isinstance(part, (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
            nn.init.kaiming_normal_(part.weight)
    return net.eval()


def rsunet() -> nn.Module:
    """The table's first net."""
    return prepare(RSUNet())


def unet3d() -> nn.Module:
    """The table's second net."""
    return prepare(UNet3D())


def nccnet() -> nn.Module:
    """The matcher's net."""
    return prepare(NCCNet())


@dataclass(frozen=True, slots=True)
class Case:
    """A net, `module:function`, and its input in full and in short."""

    net: str
    shape: tuple[int, ...]
    small: tuple[int, ...]


_MINE, _ZOO = "benchmarks.inference.nets", "benchmarks.inference.zoo"
_CUBOID, _SMALL = (1, 1, 64, 96, 96), (1, 1, 32, 32, 32)
CASES = {
    "rsunet": Case(f"{_MINE}:rsunet", (1, 1, 20, 256, 256), (1, 1, 8, 128, 128)),
    "unet3d": Case(f"{_MINE}:unet3d", (1, 1, 64, 64, 64), _SMALL),
    "nccnet": Case(f"{_MINE}:nccnet", (1, 1, 1024, 1024), (1, 1, 256, 256)),
    "nnunet_plain": Case(f"{_ZOO}:nnunet_plain", _CUBOID, (1, 1, 32, 64, 64)),
    "nnunet_residual": Case(f"{_ZOO}:nnunet_residual", _CUBOID, (1, 1, 32, 64, 64)),
    "monai_basic_unet": Case(f"{_ZOO}:monai_basic_unet", _CUBOID, _SMALL),
    "monai_unet": Case(f"{_ZOO}:monai_unet", _CUBOID, _SMALL),
    "monai_dynunet": Case(f"{_ZOO}:monai_dynunet", _CUBOID, _SMALL),
    "monai_segresnet": Case(f"{_ZOO}:monai_segresnet", _CUBOID, _SMALL),
}
