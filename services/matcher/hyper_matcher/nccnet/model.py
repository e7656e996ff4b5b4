"""The net: a small U-Net on shrunken sections whose output starts as a band-pass filter.

A section is averaged over `factor` x `factor` pixels (matching looks for places to within several
pixels; finer detail does not survive from one section to the next) and, beside that, seen by a
convolution of stride `factor`, so that fine texture can still be used. What the U-Net adds is zero
at the start: training begins at a difference of Gaussians.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hyper_matcher.bandpass import gaussian_kernel


@dataclass(frozen=True, slots=True)
class NetConfig:
    """The net's shape.

    Args:
        widths: channels of each level, finest first.
        factor: the features are smaller than the section by this.
        sigma_low_px, sigma_high_px: of the difference of Gaussians, in section pixels; a sigma
            below half of `factor` is left to the averaging.
        gain: of the difference, in standard deviations of the section, in front of tanh.
    """

    widths: tuple[int, ...] = (16, 32, 48)
    factor: int = 4
    sigma_low_px: float = 2.0
    sigma_high_px: float = 16.0
    gain: float = 1.5

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths are positive numbers of channels, not {self.widths}")
        if not 1 <= self.factor <= 16:
            raise ValueError(f"factor is from 1 to 16, not {self.factor}")
        if not 0 <= self.sigma_low_px < self.sigma_high_px:
            raise ValueError("a band-pass needs sigma_low_px < sigma_high_px")

    @property
    def multiple(self) -> int:
        """Sections are padded to edges that this divides."""
        return int(self.factor * 2 ** (len(self.widths) - 1))

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**asdict(self), "widths": list(self.widths)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> NetConfig:
        """The way back."""
        return cls(**{**values, "widths": tuple(values["widths"])})


class Block(nn.Module):  # type: ignore[misc]  # torch has no types here
    """Two 3 x 3 convolutions, each with a LeakyReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.activation = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, Y, X) -> (N, outputs, Y, X)."""
        return self.activation(self.second(self.activation(self.first(x))))


class NCCNet(nn.Module):  # type: ignore[misc]  # torch has no types here
    """Grey values (N, 1, Y, X) -> features (N, 1, Y / factor, X / factor) in (-1, 1).

    Args:
        config: the net's shape.
        mean, spread: of the stack's grey values; part of the model, so that it takes raw sections.

    Y and X must be multiples of `config.multiple`.
    """

    def __init__(self, config: NetConfig, *, mean: float = 128.0, spread: float = 32.0) -> None:
        super().__init__()
        self.config = config
        widths = config.widths
        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("spread", torch.tensor(float(spread)))
        self.texture = nn.Conv2d(1, widths[0] - 1, config.factor, stride=config.factor)
        self.down = nn.ModuleList(
            Block(widths[max(level - 1, 0)], width) for level, width in enumerate(widths)
        )
        self.up = nn.ModuleList(
            Block(widths[level] + widths[level + 1], widths[level])
            for level in reversed(range(len(widths) - 1))
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for width in widths)
        for head in self.heads:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        narrow, wide = config.sigma_low_px / config.factor, config.sigma_high_px / config.factor
        self.register_buffer("narrow", _kernel(narrow) if narrow >= 0.5 else torch.ones(1))
        self.register_buffer("wide", _kernel(wide))

    def forward(self, section: Tensor) -> Tensor:
        """The finest level's features."""
        return self.levels(section)[0]

    def levels(self, section: Tensor, depth: int = 1) -> list[Tensor]:
        """Features of the finest `depth` levels, each half as large as the one before."""
        return [torch.tanh(found) for found in self.responses(section, depth)]

    def responses(self, section: Tensor, depth: int = 1) -> list[Tensor]:
        """What the levels' features are the tanh of; any size."""
        small, decoded = self._decode(section)
        band = self.config.gain * (_blur(small, self.narrow) - _blur(small, self.wide))
        found = []
        for level in range(min(depth, len(decoded))):
            if level:
                band = nn.functional.avg_pool2d(band, 2)
            found.append(band + self.heads[level](decoded[level]))
        return found

    def maps(self, section: Tensor) -> Tensor:
        """What the finest level's head sums up: (N, widths[0], Y / factor, X / factor)."""
        return self._decode(section)[1][0]

    def hypercolumns(self, section: Tensor) -> Tensor:
        """The maps of all levels, each grown to the finest: (N, sum(widths), Y / factor, ...)."""
        finest, *coarser = self._decode(section)[1]
        grown = [
            nn.functional.interpolate(
                each, size=finest.shape[2:], mode="bilinear", align_corners=False
            )
            for each in coarser
        ]
        return torch.cat([finest, *grown], 1)

    def _decode(self, section: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The shrunken section, and the decoder's output at each level, finest first."""
        x = (section - self.mean) / self.spread
        small = nn.functional.avg_pool2d(x, self.config.factor)
        x = torch.cat([small, self.texture(x)], 1)
        skips: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(nn.functional.avg_pool2d(x, 2) if level else x)
            skips.append(x)
        decoded = [skips.pop()]
        for block in self.up:
            grown = nn.functional.interpolate(decoded[0], scale_factor=2.0, mode="nearest")
            decoded.insert(0, block(torch.cat([skips.pop(), grown], 1)))
        return small, decoded

    def parameter_count(self) -> int:
        """Trained numbers."""
        return sum(parameter.numel() for parameter in self.parameters())


def _kernel(sigma: float) -> Tensor:
    return torch.from_numpy(gaussian_kernel(sigma)).float()


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """A separable filter; values outside the image are zero (the mean)."""
    radius = len(kernel) // 2
    if radius == 0:
        return x
    rows = nn.functional.conv2d(x, kernel.view(1, 1, -1, 1), padding=(radius, 0))
    return nn.functional.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, radius))
