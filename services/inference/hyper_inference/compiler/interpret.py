"""The slow meaning of every op, in numpy: the oracle of all tests.

Computes in float64 by default, so that it is the reference for the kernels' rounding too.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias, assert_never

import numpy as np
import numpy.typing as npt

from hyper_inference.compiler.ir import (
    SUM_LANES,
    SUM_ROWS,
    Activate,
    Activation,
    Affine,
    AffineMap,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    Graph,
    Means,
    NormScales,
    Op,
    Pad,
    PartialSums,
    Pool,
    Prelu,
    Resize,
    ScaleShift,
    Slice,
    Softmax,
)

Array: TypeAlias = npt.NDArray[Any]


def interpret(graph: Graph, sample: Array, *, dtype: type = np.float64) -> Array:
    """The net's first output `(c, z, y, x)` for one sample `(c, z, y, x)` of its one input."""
    return interpret_all(graph, [sample], dtype=dtype)[0]


def interpret_all(graph: Graph, samples: list[Array], *, dtype: type = np.float64) -> list[Array]:
    """All outputs for a sample of each input, `(c, z, y, x)`."""
    values: dict[str, Array] = {}
    for (name, wanted), sample in zip(graph.inputs, samples, strict=True):
        if sample.shape != wanted.shape:
            raise ValueError(f"%{name} takes {wanted.shape}, not {sample.shape}")
        values[name] = sample.astype(dtype)
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            inputs = [values[name] for name in node.inputs]
            values[node.name] = evaluate(node.op, inputs).astype(dtype)
    return [values[name] for name in graph.outputs]


def evaluate(op: Op, inputs: list[Array]) -> Array:
    """`op(inputs)`; arrays are (c, z, y, x)."""
    first = inputs[0]
    match op:
        case Conv() | ConvTranspose():
            value = conv(op, first) if isinstance(op, Conv) else conv_transpose(op, first)
            if op.residual_scale is not None:
                value = value + inputs[1] * _channels(op.residual_scale)
            return activate(op.activation, value)
        case Affine():
            value = first * _channels(op.scale) + _channels(op.shift)
            return activate(op.activation, value)
        case AffineMap():
            return first * op.scale + op.shift
        case Activate():
            return activate(op.activation, first)
        case Binary():
            functions = {
                "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide,
                "max": np.maximum, "min": np.minimum,
            }  # fmt: skip
            return activate(op.activation, functions[op.kind](first, inputs[1]))
        case Prelu():
            return np.where(first > 0, first, first * _channels(op.slope))
        case Softmax():
            powers = np.exp(first - first.max(axis=0))
            return np.asarray(powers / powers.sum(axis=0))
        case PartialSums():
            return partial_sums(first if len(inputs) == 1 else (first - inputs[1]) ** 2)
        case Means():
            return _means(first, op.groups, op.count)
        case NormScales():
            variance = _means(first, op.groups, op.count)
            scale = _channels(op.weight) / np.sqrt(variance + op.epsilon)
            return np.concatenate([scale, _channels(op.bias) - inputs[1] * scale])
        case ScaleShift():
            scale, shift = np.split(inputs[1], 2)
            return activate(op.activation, first * scale + shift)
        case DepthToSpace():
            return depth_to_space(op, first)
        case Concat():
            return np.concatenate(inputs)
        case Pool():
            return pool(op, first)
        case Resize():
            return resize(op, first)
        case Pad():
            width = list(zip(op.before, op.after, strict=True))
            if op.mode == "constant":
                return np.pad(first, width, constant_values=op.value)
            return np.pad(first, width, mode=op.mode)
        case Slice():
            return first[
                tuple(slice(*ends) for ends in zip(op.start, op.stop, op.step, strict=True))
            ]
        case _:
            assert_never(op)


def activate(activation: Activation | None, x: Array) -> Array:
    """Apply an activation, if any."""
    if activation is None:
        return x
    match activation.kind:
        case "relu":
            return np.where(x > 0, x, np.where(np.isnan(x), x, 0))
        case "leaky_relu":
            return np.where(x > 0, x, x * activation.alpha)
        case "elu":
            return np.where(x > 0, x, activation.alpha * np.expm1(np.minimum(x, 0)))
        case "sigmoid":
            return np.asarray(1 / (1 + np.exp(-x)))
        case "tanh":
            return np.asarray(np.tanh(x))
        case "silu":
            return np.asarray(x / (1 + np.exp(-x)))
        case "erf":
            return _erf(x)
        case "gelu":
            return np.asarray(x * 0.5 * (1 + _erf(x * math.sqrt(0.5))))
        case "gelu_tanh":
            inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
            return np.asarray(x * 0.5 * (1 + np.tanh(inner)))
        case "hardswish":
            return np.asarray(x * np.clip(x / 6 + 0.5, 0, 1))
        case "clip":
            return np.asarray(np.clip(x, activation.alpha, activation.beta))
        case "abs":
            return np.asarray(np.abs(x))
        case "exp":
            return np.asarray(np.exp(x))
        case "log":
            return np.asarray(np.log(x))
        case "sqrt":
            return np.asarray(np.sqrt(x))
        case "reciprocal":
            return np.asarray(1 / x)
        case "softplus":
            return np.asarray(np.logaddexp(x, 0))
        case "mish":
            return np.asarray(x * np.tanh(np.logaddexp(x, 0)))
        case _:
            assert_never(activation.kind)


def conv(op: Conv, x: Array) -> Array:
    """Convolution and bias, tap by tap."""
    out_channels, per_group = op.weight.shape[:2]
    padded = np.pad(x, [(0, 0), *zip(op.pad_before, op.pad_after, strict=True)])
    windows = _windows(padded, op.kernel, op.stride, op.dilation)
    groups = []
    step = out_channels // op.groups
    for group in range(op.groups):
        weight = op.weight[group * step : (group + 1) * step].astype(x.dtype)
        part = windows[group * per_group : (group + 1) * per_group]
        groups.append(np.einsum("ocijk,czyxijk->ozyx", weight, part, optimize=True))
    return np.concatenate(groups) + _channels(op.bias)


def conv_transpose(op: ConvTranspose, x: Array) -> Array:
    """Every input voxel paints one block of the kernel's size."""
    blocks = np.einsum("coijk,czyx->oziyjxk", op.weight.astype(x.dtype), x, optimize=True)
    o, z, i, y, j, width, k = blocks.shape
    return np.asarray(blocks.reshape(o, z * i, y * j, width * k) + _channels(op.bias))


def pool(op: Pool, x: Array) -> Array:
    """Maximum or mean of windows."""
    pads = [(0, 0), *zip(op.pad_before, op.pad_after, strict=True)]
    one = (1, 1, 1)
    if op.kind == "max":
        padded = np.pad(x, pads, constant_values=-np.inf)
        return np.asarray(_windows(padded, op.kernel, op.stride, one).max(axis=(4, 5, 6)))
    total = _windows(np.pad(x, pads), op.kernel, op.stride, one).sum(axis=(4, 5, 6))
    if op.count_pad:
        return np.asarray(total / np.prod(op.kernel))
    inside = np.pad(np.ones_like(x[:1]), pads)
    return np.asarray(total / _windows(inside, op.kernel, op.stride, one).sum(axis=(4, 5, 6)))


def resize(op: Resize, x: Array) -> Array:
    """Blend two inputs along z, then y, then x."""
    for axis, taps in enumerate(op.taps, start=1):
        weight = taps.weight.astype(x.dtype).reshape([-1] + [1] * (3 - axis))
        low, high = np.take(x, taps.low, axis), np.take(x, taps.high, axis)
        x = low * (1 - weight) + high * weight if taps.blends else low
    return x


_erf_of = np.vectorize(math.erf, otypes=[float])


def _erf(x: Array) -> Array:
    return np.asarray(_erf_of(x))


def partial_sums(x: Array) -> Array:
    """Sums over groups of rows and every x modulo `SUM_LANES`."""
    c, z, y, width = x.shape
    padded = np.pad(x, [(0, 0), (0, 0), (0, -y % SUM_ROWS), (0, -width % SUM_LANES)])
    parts = padded.reshape(c, z, -1, SUM_ROWS, padded.shape[3] // SUM_LANES, SUM_LANES)
    return np.asarray(parts.sum(axis=(3, 4)))


def _means(sums: Array, groups: int, count: int) -> Array:
    totals = sums.reshape(groups, -1).sum(axis=1) / count
    return _channels(np.repeat(totals, len(sums) // groups))


def depth_to_space(op: DepthToSpace, x: Array) -> Array:
    """Blocks of channels become blocks of voxels."""
    c, z, y, width = x.shape
    i, j, k = op.factor
    channels = c // (i * j * k)
    if op.block_first:
        blocks = np.moveaxis(x.reshape(i, j, k, channels, z, y, width), 3, 0)
    else:
        blocks = x.reshape(channels, i, j, k, z, y, width)
    whole = blocks.transpose(0, 4, 1, 5, 2, 6, 3).reshape(channels, z * i, y * j, width * k)
    return whole[:, : op.size[0], : op.size[1], : op.size[2]]


def _channels(values: Array) -> Array:
    return values[:, None, None, None]


def _windows(x: Array, kernel: Any, stride: Any, dilation: Any) -> Array:
    """(c, z, y, x, kz, ky, kx): the voxels that each output sees."""
    reach = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True))
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=(1, 2, 3))
    s, d = stride, dilation
    return view[:, :: s[0], :: s[1], :: s[2], :: d[0], :: d[1], :: d[2]]
