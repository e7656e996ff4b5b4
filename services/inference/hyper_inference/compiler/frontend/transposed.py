"""A transposed convolution as convolutions that make the phases of its stride as channels.

A phase is what lies at the same place between two input voxels. One convolution can make all; its
kernel has a tap for each input that any of them sees, and zeros where a phase does not. With a
kernel of 3 and a stride of 2 in three dimensions that is 64 taps for 27 that count. Where that is
a waste, each phase is a convolution of its own, with its taps alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hyper_inference.compiler.ir import Floats
from hyper_inference.errors import InvalidModelError, ShapeError

MAX_SPLIT = 16
"""Phases that become convolutions of their own."""
_WINOGRAD_Y, _WINOGRAD_ZY = 1.5, 3.0
"""How much faster a convolution with three taps along y, or z and y, is than its taps say."""


@dataclass(frozen=True, slots=True)
class TransposedAxis:
    """One axis of it.

    Args:
        taps: (tap, phase, k): 1 where the convolution's tap is the kernel's k.
        before, after: padding.
        count: input positions that give output.
        size: of the output.
    """

    taps: Floats
    before: int
    after: int
    count: int
    size: int

    def phases(self) -> list[TransposedAxis]:
        """Each phase alone, with the taps that it needs."""
        return [self._phase(number) for number in range(self.taps.shape[1])]

    def _phase(self, number: int) -> TransposedAxis:
        taps = self.taps[:, number : number + 1]
        used = [*np.flatnonzero(taps.any(axis=(1, 2))), self.before]
        low, high = int(min(used)), int(max(used))
        after = max(0, self.after - (len(taps) - 1 - high))
        return TransposedAxis(taps[low : high + 1], self.before - low, after, self.count, self.size)


def transposed_axis(
    n: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int
) -> TransposedAxis:
    """Output `o = stride * j + phase` sums input `i` where `o + padding = stride * i + k`.

    Raises:
        InvalidModelError: numbers out of range.
        ShapeError: nothing is left of the output.
    """
    if min(stride, kernel, dilation) < 1 or not 0 <= padding < 2**20 or output_padding < 0:
        raise InvalidModelError("a transposed convolution with impossible padding or stride")
    if output_padding >= max(stride, dilation) or max(stride, kernel * dilation) > 2**12:
        raise InvalidModelError("a transposed convolution with too large output padding or stride")
    size = (n - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    if size < 1:
        raise ShapeError("a transposed convolution gives an empty value: the input is too small")
    found = [
        ((phase + padding - dilation * k) // stride, phase, k)
        for phase in range(stride)
        for k in range(kernel)
        if (phase + padding - dilation * k) % stride == 0
    ]
    low = min([0, *(tap for tap, _, _ in found)])
    high = max([0, *(tap for tap, _, _ in found)])
    taps = np.zeros((high - low + 1, stride, kernel), np.float32)
    for tap, phase, k in found:
        taps[tap - low, phase, k] = 1
    count = -(-size // stride)
    return TransposedAxis(taps, -low, max(0, count - 1 + high - (n - 1)), count, size)


def phases_in(axes: Sequence[TransposedAxis]) -> int:
    """How many phases these axes have together."""
    return math.prod(axis.taps.shape[1] for axis in axes)


def weights_a_pair(axes: Sequence[TransposedAxis]) -> int:
    """Weights of the one convolution for each pair of channels, zeros too."""
    return phases_in(axes) * math.prod(len(axis.taps) for axis in axes)


def convolutions(axes: Sequence[TransposedAxis]) -> list[Sequence[TransposedAxis]]:
    """What makes all phases of z, y, x fastest: one convolution, or one for each phase in turn."""
    if 1 < phases_in(axes) <= MAX_SPLIT:
        alone = list(itertools.product(*(axis.phases() for axis in axes)))
        if 4 * sum(map(_cost, alone)) <= 3 * _cost(axes):
            return [*alone]
    return [axes]


def _cost(axes: Sequence[TransposedAxis]) -> float:
    """Of one convolution, in products for a pair of channels."""
    z, y, _ = (len(axis.taps) for axis in axes)
    gain = 1.0 if y != 3 else _WINOGRAD_ZY if z == 3 else _WINOGRAD_Y
    return weights_a_pair(axes) / gain


def spread_weights(weight: Floats, axes: Sequence[TransposedAxis], groups: int) -> Floats:
    """The kernel of the convolution that makes all phases of `axes`.

    Args:
        weight: (channels in, channels out of a group, z, y, x) of the transposed one.

    Returns:
        (channels out and phases, channels in of a group, z, y, x).
    """
    parts = weight.reshape(groups, -1, *weight.shape[1:])
    spread: Floats = np.einsum(
        "gcoijk,zpi,yqj,xrk->gopqrczyx", parts, *(axis.taps for axis in axes), optimize=True
    )
    taps = [len(axis.taps) for axis in axes]
    return spread.reshape(weight.shape[1] * groups * phases_in(axes), -1, *taps)
