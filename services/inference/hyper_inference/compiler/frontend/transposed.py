"""A transposed convolution as a convolution that makes all phases of its stride as channels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hyper_inference.compiler.ir import Floats
from hyper_inference.errors import InvalidModelError, ShapeError


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
