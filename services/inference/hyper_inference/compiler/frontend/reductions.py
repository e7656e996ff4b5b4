"""Means, maxima and sums along any axes, and what is made of them, from the ops of the graph.

Axes are those of a value: 0 to 3 for (c, z, y, x); a reduced axis stays, as one of 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from hyper_inference.compiler.frontend.builder import GraphBuilder, frozen
from hyper_inference.compiler.ir import (
    Activation,
    Binary,
    Pool,
    Resize,
    Slice,
    Softmax,
    Taps,
    Triple,
)
from hyper_inference.errors import InvalidModelError

Ints: TypeAlias = npt.NDArray[np.int64]
Kind: TypeAlias = Literal["mean", "max", "min", "sum"]
_WINDOW = 16
"""Longest window of one maximum; longer ones are taken in several."""


def reduce(b: GraphBuilder, x: str, axes: Iterable[int], kind: Kind, hint: str) -> str:
    """Along all of `axes`."""
    sizes = b.sizes(x)
    named = {axis for axis in axes if sizes[axis] > 1}
    match kind:
        case "min":
            low = reduce(b, b.arithmetic("mul", x, -1.0, hint), named, "max", hint)
            return b.arithmetic("mul", low, -1.0, hint)
        case "max":
            return _maximum(b, x, named, hint)
        case "sum":
            mean = reduce(b, x, named, "mean", hint)
            count = math.prod(sizes[axis] for axis in named)
            return b.arithmetic("mul", mean, float(count), hint) if count > 1 else mean
    inner = {axis for axis in named if axis > 0}
    if inner and inner == {axis for axis in (1, 2, 3) if sizes[axis] > 1}:
        x = b.means(x, sizes[0], hint)
    else:
        for axis in sorted(inner, reverse=True):
            x = _windows_mean(b, x, axis, np.array([0]), np.array([sizes[axis]]), hint)
    if 0 in named:
        x = b.conv(x, np.full((1, sizes[0], *[1] * b.spatial), 1 / sizes[0]), None, hint)
    return x


def _maximum(b: GraphBuilder, x: str, axes: set[int], hint: str) -> str:
    for axis in sorted(axes - {0}, reverse=True):
        size = b.sizes(x)[axis]
        x = _windows_max(b, x, axis, np.array([0]), np.array([size]), hint)
    while 0 in axes and b.sizes(x)[0] > 1:
        c, z, y, width = b.sizes(x)
        half = (c + 1) // 2
        low = b.add(Slice((0, 0, 0, 0), (half, z, y, width)), [x], hint)
        high = b.add(Slice((c - half, 0, 0, 0), (c, z, y, width)), [x], hint)
        x = b.add(Binary("max"), [low, high], hint)
    return x


def adaptive_pool(
    b: GraphBuilder,
    x: str,
    kind: Literal["max", "average"],
    sizes: Sequence[int | None],
    hint: str,
) -> str:
    """Pooling to any sizes, one for each of the net's axes, None: as it is.

    Window i of an axis begins at floor(i * n / out) and ends at ceil((i + 1) * n / out).
    """
    have = b.shape(x)[2:]
    listed = list(sizes) * b.spatial if len(sizes) == 1 else list(sizes)
    wanted = [n if want is None else int(want) for want, n in zip(listed, have, strict=True)]
    if min(wanted) < 1 or max(wanted) > 2**24:
        raise InvalidModelError(f"node {hint!r}: adaptive pooling to {tuple(wanted)}")
    if all(want == 1 for want in wanted):
        return reduce(b, x, (1, 2, 3), "max" if kind == "max" else "mean", hint)
    if all(n % want == 0 and n // want <= _WINDOW for n, want in zip(have, wanted, strict=True)):
        kernel = [n // want for n, want in zip(have, wanted, strict=True)]
        return b.pool(x, kind, hint, kernel=kernel, stride=kernel)
    for axis in (3, 2, 1)[: b.spatial]:
        n, out = b.sizes(x)[axis], wanted[axis - 4 + b.spatial]
        if n == out:
            continue
        index = np.arange(out, dtype=np.int64)
        start, stop = index * n // out, -(-(index + 1) * n // out)
        x = (_windows_max if kind == "max" else _windows_mean)(b, x, axis, start, stop, hint)
    return x


def dilated_max_pool(
    b: GraphBuilder,
    x: str,
    kernel: Triple,
    stride: Triple,
    pad: Triple,
    dilation: Triple,
    hint: str,
) -> str:
    """Windows with gaps, one axis at a time: what is outside never wins."""
    for axis in (3, 2, 1):
        n, k, s, p, d = b.sizes(x)[axis], *(v[axis - 1] for v in (kernel, stride, pad, dilation))
        count = (n + 2 * p - d * (k - 1) - 1) // s + 1
        if min(k, s, d) < 1 or p < 0 or 2 * p > d * (k - 1) + 1 or count < 1:
            raise InvalidModelError(f"node {hint!r}: a window of {k} by {d} in {n} voxels")
        if k == 1 and s == 1 and p == 0:
            continue
        at = np.arange(count)[:, None] * s - p + np.arange(k) * d
        inside = (at >= 0) & (at < n)
        some = np.where(inside.any(1), at[np.arange(count), inside.argmax(1)], 0)
        x = _gather_max(b, x, axis, np.where(inside, at, some[:, None]), hint)
    return x


def _windows_max(b: GraphBuilder, x: str, axis: int, start: Ints, stop: Ints, hint: str) -> str:
    longest = int((stop - start).max())
    at = np.minimum(start[:, None] + np.arange(longest), stop[:, None] - 1)
    return _gather_max(b, x, axis, at, hint)


def _gather_max(b: GraphBuilder, x: str, axis: int, at: Ints, hint: str) -> str:
    """The maximum over each row of `at`, indices along an axis."""
    steps, rest = [], at.shape[1]
    while rest > _WINDOW:
        steps.append(_WINDOW)
        rest = -(-rest // _WINDOW)
    steps.append(rest)
    more = math.prod(steps) - at.shape[1]
    at = np.concatenate([at, np.repeat(at[:, -1:], more, axis=1)], axis=1)
    x = _resize_axis(b, x, axis, at.ravel(), at.ravel(), np.zeros(at.size), hint)
    for step in steps:
        if step > 1:
            window = [1, 1, 1]
            window[axis - 1] = step
            z, y, width = window
            x = b.add(Pool("max", (z, y, width), (z, y, width)), [x], hint)
    return x


def _windows_mean(b: GraphBuilder, x: str, axis: int, start: Ints, stop: Ints, hint: str) -> str:
    """Means of windows of any lengths: pairs, then pairs of pairs, each weighted by its length."""
    count = len(start)
    longest = int((stop - start).max())
    width = 1 << max(0, longest - 1).bit_length()
    at = start[:, None] + np.arange(width)
    weight = (at < stop[:, None]).astype(np.int64)
    at = np.minimum(at, stop[:, None] - 1)
    while width > 1:
        low, high = at[:, 0::2], at[:, 1::2]
        first, second = weight[:, 0::2], weight[:, 1::2]
        total = first + second
        share = second / np.maximum(total, 1)
        high = np.where(second > 0, high, low)  # what has no weight is not read: 0 * inf is not 0
        x = _resize_axis(b, x, axis, low.ravel(), high.ravel(), share.ravel(), hint)
        width //= 2
        at, weight = np.arange(count * width).reshape(count, width), total
    if longest == 1:
        x = _resize_axis(b, x, axis, at.ravel(), at.ravel(), np.zeros(at.size), hint)
    return x


def _resize_axis(
    b: GraphBuilder, x: str, axis: int, low: Any, high: Any, share: Any, hint: str
) -> str:
    taps = []
    for place, size in enumerate(b.sizes(x)[1:], start=1):
        index = np.arange(size, dtype=np.int32)
        same = Taps(index, index.copy(), frozen(np.zeros(size)))
        blend = Taps(low.astype(np.int32), high.astype(np.int32), frozen(share))
        taps.append(blend if place == axis else same)
    for one in taps:
        one.low.setflags(write=False)
        one.high.setflags(write=False)
    return b.add(Resize((taps[0], taps[1], taps[2]), bool(np.any(share != 0))), [x], hint)


def reindex(b: GraphBuilder, x: str, axis: int, index: Sequence[int], hint: str) -> str:
    """`x[..., index, ...]` along z, y or x: flips, rolls, repeats."""
    at = np.asarray(index)
    return _resize_axis(b, x, axis, at, at, np.zeros(at.size), hint)


def softmax(b: GraphBuilder, x: str, axes: Sequence[int], hint: str, *, log: bool = False) -> str:
    """Over the named axes together; `log`: its logarithm."""
    named = [axis for axis in axes if b.sizes(x)[axis] > 1]
    if named == [0] and not log:
        return b.add(Softmax(), [x], hint)
    less = b.arithmetic("sub", x, reduce(b, x, named, "max", hint), hint)
    powers = b.activation(less, Activation("exp"), hint)
    total = reduce(b, powers, named, "sum", hint)
    if log:
        return b.arithmetic("sub", less, b.activation(total, Activation("log"), hint), hint)
    return b.arithmetic("div", powers, total, hint)


def normalize(
    b: GraphBuilder, x: str, axes: Sequence[int], weight: Any, bias: Any, epsilon: float, hint: str
) -> str:  # fmt: skip
    """To a mean of 0 and a variance of 1 along the named axes; then weight and bias.

    Args:
        weight, bias: broadcast to (c, z, y, x), or None.
    """
    sizes = b.sizes(x)
    scale = np.ones((1, 1, 1, 1)) if weight is None else np.asarray(weight)
    shift = np.zeros((1, 1, 1, 1)) if bias is None else np.asarray(bias)
    whole = {axis for axis, n in enumerate(sizes) if n > 1} <= set(axes)
    plain = scale.shape[1:] == shift.shape[1:] == (1, 1, 1)
    if whole and plain:
        weights, biases = (np.broadcast_to(v.ravel(), (sizes[0],)) for v in (scale, shift))
        return b.norm(x, 1, weights, biases, epsilon, hint)
    centred = b.arithmetic("sub", x, reduce(b, x, axes, "mean", hint), hint)
    square = b.arithmetic("mul", centred, centred, hint)
    variance = reduce(b, square, axes, "mean", hint)
    moved = b.arithmetic("add", variance, float(epsilon), hint)
    deviation = b.activation(moved, Activation("sqrt"), hint)
    result = b.arithmetic("div", centred, deviation, hint)
    if weight is None and bias is None:
        return result
    size: tuple[int, ...] = (sizes[0],) if plain else sizes
    scale, shift = (np.broadcast_to(v.ravel() if plain else v, size) for v in (scale, shift))
    return b.affine(result, scale, shift, hint)


def variance(b: GraphBuilder, x: str, axes: Sequence[int], correction: float, hint: str) -> str:
    """Sum of squares of what is left of the mean, by the count less `correction`."""
    count = math.prod(b.sizes(x)[axis] for axis in axes)
    if count <= correction:
        raise InvalidModelError(f"node {hint!r}: the variance of {count} numbers")
    centred = b.arithmetic("sub", x, reduce(b, x, axes, "mean", hint), hint)
    mean = reduce(b, b.arithmetic("mul", centred, centred, hint), axes, "mean", hint)
    return b.arithmetic("mul", mean, count / (count - correction), hint) if correction else mean


def concat(b: GraphBuilder, values: Sequence[str], axis: int, hint: str) -> str:
    """Along any axis: channels in one buffer, others by padding with zeros and adding."""
    if axis == 0 or len(values) == 1:
        return b.concat(values, hint)
    total = sum(b.sizes(value)[axis] for value in values)
    place = axis + b.spatial - 2  # of (n, c, [z,] y, x)
    result, at = "", 0
    for value in values:
        size = b.sizes(value)[axis]
        before, after = [0] * (b.spatial + 2), [0] * (b.spatial + 2)
        before[place], after[place] = at, total - at - size
        wide = b.pad(value, before, after, hint)
        result = wide if not result else b.arithmetic("add", result, wide, hint)
        at += size
    return result
