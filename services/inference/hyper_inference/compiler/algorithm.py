"""Which algorithm computes a convolution: a function of its shape and the mode, of nothing else.

The memory plan asks too, since tiles read a little further than the convolution they compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from hyper.errors import InvalidArgumentError
from hyper_inference.compiler.ir import Conv, Shape

Mode: TypeAlias = Literal["exact", "fast", "faster", "bf16"]
MODES: tuple[Mode, ...] = ("exact", "fast", "faster", "bf16")
"""exact: direct convolutions, largest relative error about 1e-5; fast: Winograd, below 1e-4;
faster: larger tiles along z wherever they save multiplications, whatever memory their weights
take; bf16: small tiles along z, multiplied in bfloat16 and summed in float32, error about 1e-2."""

FEWEST_CHANNELS = 6
"""With fewer, transforming costs more than the multiplications that it saves."""
FEWEST_CHANNELS_DEEP = 32
"""With fewer, tiles of four along z cost error and save no time."""
READ_COST = 20
"""Multiplications that take as long as reading a weight from far away: where few voxels share the
weights, a smaller tile, which has fewer, is faster and takes less memory."""
LEAST_GAIN = 1.3
"""Multiplications of the direct convolution to those of Winograd's tiles, padding counted."""


def parse_mode(name: str) -> Mode:
    """The mode of that name.

    Raises:
        InvalidArgumentError: there is none.
    """
    for mode in MODES:
        if mode == name:
            return mode
    raise InvalidArgumentError(f"mode {name!r} is not one of {', '.join(MODES)}", field="mode")


def summed_products(mode: Mode) -> int:
    """How many products a direct convolution sums in a row; 0: all, which is faster by a tenth."""
    return 48 if mode == "exact" else 0


@dataclass(frozen=True, slots=True)
class Winograd:
    """Tiles of `z` x `y` outputs; x stays direct. z = 1: no transform along z."""

    z: int
    y: int

    def tiles(self, depth: int, height: int) -> tuple[int, int]:
        """How many tiles cover an output, along z and y."""
        return -(-depth // self.z), -(-height // self.y)


def choose_winograd(op: Conv, result: Shape, mode: Mode) -> Winograd | None:
    """The tile for a convolution with an output of `result`, or None: direct."""
    if mode == "exact" or op.groups != 1 or op.stride != (1, 1, 1) or op.dilation != (1, 1, 1):
        return None
    kz, ky, kx = op.kernel
    if kz not in (1, 3) or ky != 3 or kx > 7 or min(op.weight.shape[:2]) < FEWEST_CHANNELS:
        return None
    _, depth, height, width = result
    outputs, inputs = op.weight.shape[:2]

    def deep_pays() -> bool:
        """Whether tiles of four along z do: where their weights are few beside the voxels."""
        if mode != "fast":
            return mode == "faster"
        weights = 6 * 6 * kx * inputs * outputs
        voxels = (inputs + outputs) * depth * height * width
        few = 2 * weights <= voxels
        return bool(few and min(inputs, outputs) >= FEWEST_CHANNELS_DEEP)

    depths = (1,) if kz == 1 else (2, 4) if deep_pays() else (2,)

    def products(tile: Winograd) -> int:
        """For each pair of channels, tap along x, and column."""
        tiles_z, tiles_y = tile.tiles(depth, height)
        return tiles_z * tiles_y * (tile.z + kz - 1) * (tile.y + ky - 1)

    def cost(tile: Winograd) -> int:
        stored = (tile.z + kz - 1) * (tile.y + ky - 1)
        return stored * READ_COST + products(tile) * width

    tiles = [Winograd(z, y) for y in (4, 2) for z in depths]
    gain = [t for t in tiles if kz * ky * depth * height >= LEAST_GAIN * products(t)]
    return min(gain, key=cost, default=None)
