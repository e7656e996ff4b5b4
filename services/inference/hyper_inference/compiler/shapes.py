"""What type each op gives, from the types of its inputs; the only place that knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from hyper_inference.compiler.ir import (
    SUM_LANES,
    SUM_ROWS,
    Activate,
    Affine,
    AffineMap,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    Means,
    NormScales,
    Op,
    Pad,
    PartialSums,
    Pool,
    Prelu,
    Resize,
    ScaleShift,
    Shape,
    Slice,
    Softmax,
    Statistics,
    TensorType,
)
from hyper_inference.errors import ShapeError

MAX_ELEMENTS = 2**33
"""Of one value; 32 GiB of float32."""


def infer_type(op: Op, inputs: Sequence[TensorType]) -> TensorType:
    """Type of `op(inputs)`.

    Raises:
        ShapeError: the inputs do not fit, or the result is empty or too large.
    """
    two = isinstance(op, (Binary, NormScales, ScaleShift))
    expected = 2 if two or getattr(op, "residual_scale", None) is not None else 1
    fits = len(inputs) == expected or (isinstance(op, PartialSums) and len(inputs) == 2)
    if not fits and not (isinstance(op, Concat) and inputs):
        raise ShapeError(f"{type(op).__name__} takes {expected} inputs, not {len(inputs)}")
    shape = _shape(op, [value.shape for value in inputs])
    result = TensorType(shape)
    if min(shape) < 1:
        raise ShapeError(
            f"{type(op).__name__} on {inputs[0]} gives an empty value {result}: the input is too "
            "small for this net"
        )
    check_size(result)
    if getattr(op, "residual_scale", None) is not None and inputs[1].shape != shape:
        raise ShapeError(f"a residual of {inputs[1]} does not fit a result of {result}")
    return result


def check_size(value: TensorType) -> None:
    """Refuse what no machine holds.

    Raises:
        ShapeError: too many elements.
    """
    if value.elements > MAX_ELEMENTS:
        raise ShapeError(
            f"a value of {value} has more than {MAX_ELEMENTS} elements; use smaller patches"
        )


def _shape(op: Op, inputs: list[Shape]) -> Shape:
    first = inputs[0]
    match op:
        case Conv():
            return _conv(op, first)
        case ConvTranspose():
            if op.weight.shape[0] != first[0]:
                raise ShapeError(
                    f"a transposed convolution of {op.weight.shape[0]} channels got {first[0]}"
                )
            z, y, x = (n * k for n, k in zip(first[1:], op.kernel, strict=True))
            return op.weight.shape[1], z, y, x
        case Affine():
            if op.scale.shape != (first[0],) or op.shift.shape != (first[0],):
                raise ShapeError(f"scale of {op.scale.shape} for {first[0]} channels")
            return first
        case AffineMap():
            if op.scale.shape != first or op.shift.shape != first:
                raise ShapeError(f"a map of {op.scale.shape} for {TensorType(first)}")
            return first
        case Activate() | Softmax():
            return first
        case Prelu():
            if op.slope.shape != (first[0],):
                raise ShapeError(f"slopes of {op.slope.shape} for {first[0]} channels")
            return first
        case PartialSums() | Means() | NormScales() | ScaleShift():
            return _statistics(op, inputs)
        case DepthToSpace():
            return _depth_to_space(op, first)
        case Binary():
            return _binary(op, first, inputs[1])
        case Concat():
            if any(shape[1:] != first[1:] for shape in inputs):
                sizes = ", ".join("x".join(str(n) for n in shape) for shape in inputs)
                raise ShapeError(
                    f"concat of different sizes ({sizes}); choose an input size that the net's "
                    "strides divide"
                )
            return sum(shape[0] for shape in inputs), *first[1:]
        case Pool():
            return first[0], *windows(op, first)
        case Resize():
            _check_taps(op, first)
            z, y, x = (len(taps.low) for taps in op.taps)
            return first[0], z, y, x
        case Pad():
            return _pad(op, first)
        case Slice():
            return _slice(op, first)
        case _:
            assert_never(op)


def windows(op: Conv | Pool, shape: Shape) -> tuple[int, int, int]:
    """How many windows fit along z, y and x."""
    dilation = op.dilation if isinstance(op, Conv) else (1, 1, 1)
    sizes = []
    for axis in range(3):
        reach = dilation[axis] * (op.kernel[axis] - 1) + 1
        room = shape[axis + 1] + op.pad_before[axis] + op.pad_after[axis] - reach
        if op.stride[axis] < 1 or dilation[axis] < 1 or op.kernel[axis] < 1:
            raise ShapeError("kernel, stride and dilation must be at least 1")
        if min(op.pad_before[axis], op.pad_after[axis]) < 0:
            raise ShapeError("negative padding is not a convolution's; slice its input")
        sizes.append(room // op.stride[axis] + 1 if room >= 0 else 0)
    return sizes[0], sizes[1], sizes[2]


def _conv(op: Conv, shape: Shape) -> Shape:
    out, per_group = op.weight.shape[:2]
    if op.groups < 1 or shape[0] != per_group * op.groups or out % op.groups:
        raise ShapeError(
            f"a convolution of {per_group} channels in {op.groups} groups got {shape[0]} channels"
        )
    if op.bias.shape != (out,):
        raise ShapeError(f"a bias of {op.bias.shape} for {out} channels")
    return out, *windows(op, shape)


def _binary(op: Binary, left: Shape, right: Shape) -> Shape:
    if any(a != b and 1 not in (a, b) for a, b in zip(left, right, strict=True)):
        raise ShapeError(f"{op.kind} of {TensorType(left)} and {TensorType(right)}")
    c, z, y, x = (max(a, b) for a, b in zip(left, right, strict=True))
    return c, z, y, x


def _statistics(op: Statistics | ScaleShift, inputs: list[Shape]) -> Shape:
    channels = inputs[0][0]
    per_channel = inputs[1] if len(inputs) > 1 else (channels, 1, 1, 1)
    wanted = 2 * channels if isinstance(op, ScaleShift) else channels
    if per_channel != (wanted, 1, 1, 1):
        raise ShapeError(
            f"{type(op).__name__} of {TensorType(per_channel)} for {channels} channels"
        )
    match op:
        case ScaleShift():
            return inputs[0]
        case PartialSums():
            return channels, inputs[0][1], -(-inputs[0][2] // SUM_ROWS), SUM_LANES
    if op.groups < 1 or channels % op.groups or op.count < 1 or inputs[0][3] != SUM_LANES:
        raise ShapeError(f"{op.groups} groups of {channels} channels")
    if isinstance(op, Means):
        return channels, 1, 1, 1
    if op.weight.shape != (channels,) or op.bias.shape != (channels,):
        raise ShapeError(f"a norm's weight of {op.weight.shape} for {channels} channels")
    return 2 * channels, 1, 1, 1


def _depth_to_space(op: DepthToSpace, shape: Shape) -> Shape:
    block = op.factor[0] * op.factor[1] * op.factor[2]
    if min(op.factor) < 1 or shape[0] % block:
        raise ShapeError(f"{shape[0]} channels in blocks of {op.factor}")
    whole = [n * f for n, f in zip(shape[1:], op.factor, strict=True)]
    if any(not n - f < size <= n for n, f, size in zip(whole, op.factor, op.size, strict=True)):
        raise ShapeError(f"blocks of {op.factor} of {TensorType(shape)} cut to {op.size}")
    return shape[0] // block, *op.size


def _check_taps(op: Resize, shape: Shape) -> None:
    for taps, size in zip(op.taps, shape[1:], strict=True):
        if not len(taps.low) == len(taps.high) == len(taps.weight):
            raise ShapeError("taps of different lengths")
        if len(taps.low) and (
            min(taps.low.min(), taps.high.min()) < 0 or max(taps.low.max(), taps.high.max()) >= size
        ):
            raise ShapeError(f"taps outside of an axis of {size}")


def _pad(op: Pad, shape: Shape) -> Shape:
    if min(*op.before, *op.after) < 0:
        raise ShapeError("negative padding; use a slice")
    if op.mode == "reflect" and any(
        max(before, after) >= size
        for before, after, size in zip(op.before, op.after, shape, strict=True)
    ):
        raise ShapeError(f"reflecting more than {TensorType(shape)} holds")
    if op.mode == "wrap" and any(
        max(before, after) > size
        for before, after, size in zip(op.before, op.after, shape, strict=True)
    ):
        raise ShapeError(f"wrapping more than {TensorType(shape)} holds")
    c, z, y, x = (n + a + b for n, a, b in zip(shape, op.before, op.after, strict=True))
    return c, z, y, x


def _slice(op: Slice, shape: Shape) -> Shape:
    for start, stop, step, size in zip(op.start, op.stop, op.step, shape, strict=True):
        if not (0 <= start <= stop <= size and step >= 1):
            raise ShapeError(f"slice {op.start}:{op.stop}:{op.step} of {TensorType(shape)}")
    c, z, y, x = (
        -(-(stop - start) // step)
        for start, stop, step in zip(op.start, op.stop, op.step, strict=True)
    )
    return c, z, y, x
