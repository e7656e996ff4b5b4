"""Makes a legal graph node by node; what all frontends share.

Frontends see tensors with a batch axis, `(n, c, y, x)` or `(n, c, z, y, x)`; the builder drops the
batch, gives 2D nets a z of 1, and infers every type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from hyper_inference.compiler.frontend.transposed import (
    TransposedAxis,
    convolutions,
    phases_in,
    spread_weights,
    transposed_axis,
    weights_a_pair,
)
from hyper_inference.compiler.ir import (
    Activate,
    Activation,
    Affine,
    AffineMap,
    Axes,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    Floats,
    Graph,
    Means,
    Node,
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
    Taps,
    TensorType,
    Triple,
    plain_axes,
)
from hyper_inference.compiler.shapes import check_size, infer_type
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp


def frozen(values: Any) -> Floats:
    """A read-only float32 copy; not of what is so already, as weights that a file's reader made."""
    if not _is_frozen(values) or values.dtype != np.float32 or not values.flags.c_contiguous:
        values = np.array(values, dtype=np.float32, order="C", copy=True)
        values.setflags(write=False)
    array: Floats = values
    return array


def _is_frozen(values: Any) -> bool:
    """Whether neither this array nor one that it is a part of can be written."""
    while isinstance(values, np.ndarray) and not values.flags.writeable:
        if values.flags.owndata:
            return True
        values = values.base
    return False


def _three(values: Iterable[int]) -> Triple:
    z, y, x = (int(n) for n in values)
    return z, y, x


class GraphBuilder:
    """Collects nodes; values are named by strings."""

    def __init__(self, input_shape: Sequence[int], name: str = "net") -> None:
        self.spatial = len(input_shape) - 2
        if self.spatial not in (2, 3):
            raise ShapeError(
                f"an input of shape {tuple(input_shape)} is not (n, c, y, x) or (n, c, z, y, x)"
            )
        if min(input_shape) < 1:
            raise ShapeError(f"an input of shape {tuple(input_shape)} is empty")
        c, *zyx = (int(n) for n in input_shape[1:])
        z, y, x = [1] * (3 - self.spatial) + zyx
        self.name = name
        self.input = "input"
        self._types = {self.input: TensorType((c, z, y, x))}
        check_size(self._types[self.input])
        self._inputs = [self.input]
        self._nodes: list[Node] = []

    def add_input(self, shape: Sequence[int]) -> str:
        """One more input, (n, c, ...) with as many axes as the first."""
        if len(shape) != self.spatial + 2 or min(shape) < 1:
            raise ShapeError(
                f"an input of shape {tuple(shape)} beside one of {self.spatial + 2} axes"
            )
        z, y, x = self.lift(shape[2:], 1)
        name = f"{self.input}_{len(self._inputs) + 1}"
        self._types[name] = TensorType((int(shape[1]), z, y, x))
        check_size(self._types[name])
        self._inputs.append(name)
        return name

    def has(self, value: str) -> bool:
        """Whether this is the name of a value."""
        return value in self._types

    def sizes(self, value: str) -> Shape:
        """(c, z, y, x)."""
        return self._types[value].shape

    def add(self, op: Op, inputs: Sequence[str], hint: str) -> str:
        """Append a node; returns its value's name, made from `hint`."""
        name = base = re.sub(r"\W+", "_", hint).strip("_")[:40] or type(op).__name__.lower()
        number = 1
        while name in self._types:
            number += 1
            name = f"{base}_{number}"
        self._types[name] = infer_type(op, [self._types[value] for value in inputs])
        self._nodes.append(Node(name, op, tuple(inputs), self._types[name]))
        return name

    def finish(self, *outputs: str, axes: Sequence[Axes] | None = None) -> Graph:
        """The graph that gives `outputs`, seen by these axes (default: as usual)."""
        return Graph(
            tuple((name, self._types[name]) for name in self._inputs),
            tuple(self._nodes),
            outputs,
            self.spatial,
            tuple(axes) if axes is not None else (plain_axes(self.spatial),) * len(outputs),
            self.name,
        )

    def shape(self, value: str) -> tuple[int, ...]:
        """Shape as the frontend sees it, with a batch of 1."""
        shape = self._types[value].shape
        return 1, shape[0], *shape[4 - self.spatial :]

    def lift(self, values: Sequence[int] | int, fill: int) -> Triple:
        """One number for z, y and x each, from as many as the net has axes."""
        listed = [values] * self.spatial if isinstance(values, int) else [int(v) for v in values]
        if len(listed) == 1:
            listed *= self.spatial
        if len(listed) != self.spatial:
            raise InvalidModelError(f"{listed} does not name {self.spatial} axes")
        z, y, x = [fill] * (3 - self.spatial) + listed
        return z, y, x

    def _lift_weight(self, weight: Any) -> Floats:
        array = np.asarray(weight)
        if array.ndim != self.spatial + 2:
            raise InvalidModelError(f"a weight of shape {array.shape} in a {self.spatial}D net")
        shape = (*array.shape[:2], *([1] * (3 - self.spatial)), *array.shape[2:])
        return frozen(array.reshape(shape))

    def conv(
        self,
        x: str,
        weight: Any,
        bias: Any | None,
        hint: str,
        *,
        stride: Sequence[int] | int = 1,
        pad_before: Sequence[int] | int = 0,
        pad_after: Sequence[int] | int = 0,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
    ) -> str:
        """A convolution with zero padding."""
        lifted = self._lift_weight(weight)
        op = Conv(
            lifted,
            frozen(np.zeros(lifted.shape[0]) if bias is None else bias),
            self.lift(stride, 1),
            self.lift(dilation, 1),
            self.lift(pad_before, 0),
            self.lift(pad_after, 0),
            int(groups),
        )
        return self.add(op, [x], hint)

    def conv_transpose(
        self,
        x: str,
        weight: Any,
        bias: Any | None,
        hint: str,
        *,
        stride: Sequence[int] | int,
        padding: Sequence[int] | int = 0,
        output_padding: Sequence[int] | int = 0,
        dilation: Sequence[int] | int = 1,
        groups: int = 1,
    ) -> str:
        """A transposed convolution.

        Where the stride is the kernel, one op. Else convolutions that make all voxels between two
        input voxels as channels, and these put in their places (`transposed.py`).
        """
        lifted = self._lift_weight(weight)
        if groups < 1 or lifted.shape[0] != self._types[x].shape[0] or lifted.shape[0] % groups:
            raise InvalidModelError(
                f"node {hint!r}: a weight of {lifted.shape} in {groups} groups for "
                f"{self._types[x].shape[0]} channels"
            )
        channels = lifted.shape[1] * groups
        biases = frozen(np.zeros(channels) if bias is None else bias)
        steps, gaps = self.lift(stride, 1), self.lift(dilation, 1)
        pads, more = self.lift(padding, 0), self.lift(output_padding, 0)
        kernel = _three(lifted.shape[2:])
        if steps == kernel and groups == 1 and not any(pads + more) and gaps == (1, 1, 1):
            return self.add(ConvTranspose(lifted, biases), [x], hint)
        facts = list(zip(self._types[x].shape[1:], kernel, steps, pads, more, gaps, strict=True))
        axes = [transposed_axis(*each) for each in facts]
        if lifted.shape[0] * lifted.shape[1] * weights_a_pair(axes) > 2**28:
            raise UnsupportedOp("conv_transpose", hint, "a stride that makes too many weights")
        made = [self._phases(x, lifted, biases, groups, part, hint) for part in convolutions(axes)]
        wide = self.concat(made, f"{hint}_phases")
        size = _three(axis.size for axis in axes)
        return self.add(DepthToSpace(steps, size, block_first=len(made) > 1), [wide], hint)

    def _phases(
        self,
        x: str,
        weight: Floats,
        biases: Floats,
        groups: int,
        axes: Sequence[TransposedAxis],
        hint: str,
    ) -> str:
        """A convolution whose channels are the phases (o, dz, dy, dx) of a transposed one."""
        conv = Conv(
            frozen(spread_weights(weight, axes, groups)),
            frozen(np.repeat(biases, phases_in(axes))),
            pad_before=_three(axis.before for axis in axes),
            pad_after=_three(axis.after for axis in axes),
            groups=groups,
        )
        wide = self.add(conv, [x], f"{hint}_phases")
        shape, counts = self._types[wide].shape, _three(axis.count for axis in axes)
        if shape[1:] != counts:
            wide = self.add(Slice((0, 0, 0, 0), (shape[0], *counts)), [wide], f"{hint}_cut")
        return wide

    def norm(self, x: str, groups: int, weight: Any, bias: Any, epsilon: float, hint: str) -> str:
        """Instance (as many groups as channels), group, or layer norm (one group)."""
        c, z, y, width = self._types[x].shape
        if groups < 1 or c % groups:
            raise InvalidModelError(f"node {hint!r}: {c} channels in {groups} groups")
        mean = self.means(x, groups, hint)
        squares = self.add(PartialSums(), [x, mean], f"{hint}_squares")
        scales = NormScales(
            frozen(np.ones(c) if weight is None else np.ravel(weight)),
            frozen(np.zeros(c) if bias is None else np.ravel(bias)),
            float(epsilon),
            groups,
            c // groups * z * y * width,
        )
        both = self.add(scales, [squares, mean], f"{hint}_scales")
        return self.add(ScaleShift(), [x, both], hint)

    def means(self, x: str, groups: int, hint: str) -> str:
        """The mean of each of `groups` of channels over all their voxels, (c, 1, 1, 1)."""
        c, z, y, width = self._types[x].shape
        sums = self.add(PartialSums(), [x], f"{hint}_sums")
        return self.add(Means(groups, c // groups * z * y * width), [sums], f"{hint}_mean")

    def prelu(self, x: str, slope: Any, hint: str) -> str:
        """One slope, or one a channel."""
        slopes = np.ravel(np.asarray(slope, np.float64))
        if len(slopes) and np.all(slopes == slopes[0]):
            return self.activation(x, Activation("leaky_relu", float(slopes[0])), hint)
        return self.add(Prelu(frozen(slopes)), [x], hint)

    def depth_to_space(self, x: str, factor: int, hint: str, *, block_first: bool = False) -> str:
        """Channels (o, dz, dy, dx), or (dz, dy, dx, o), become blocks of voxels."""
        steps = self.lift(factor, 1)
        size = _three(n * s for n, s in zip(self._types[x].shape[1:], steps, strict=True))
        return self.add(DepthToSpace(steps, size, block_first), [x], hint)

    def batch_norm(
        self, x: str, weight: Any, bias: Any, mean: Any, variance: Any, epsilon: float, hint: str
    ) -> str:
        """Batch norm with stored statistics, as scale and shift."""
        scale = 1 / np.sqrt(np.asarray(variance, np.float64) + epsilon)
        if weight is not None:
            scale = scale * np.asarray(weight, np.float64)
        shift = -np.asarray(mean, np.float64) * scale
        if bias is not None:
            shift = shift + np.asarray(bias, np.float64)
        return self.add(Affine(frozen(scale), frozen(shift)), [x], hint)

    def activation(self, x: str, activation: Activation, hint: str) -> str:
        """An activation."""
        return self.add(Activate(activation), [x], hint)

    def arithmetic(self, kind: str, left: str | Any, right: str | Any, hint: str) -> str:
        """add, sub, mul or div of values and constants, at least one of them a value."""
        if isinstance(left, str) and isinstance(right, str):
            if kind not in ("add", "sub", "mul", "div", "max", "min"):
                raise UnsupportedOp(kind, hint, "of two tensors")
            op: Any = kind
            return self.add(Binary(op), [left, right], hint)
        value, constant = (left, right) if isinstance(left, str) else (right, left)
        numbers = self._per_channel(constant, value, kind, hint)
        if kind in ("max", "min") and np.all(numbers.ravel() == numbers.flat[0]):
            bounds = (-np.inf, np.inf)
            bounds = (numbers.flat[0], np.inf) if kind == "max" else (-np.inf, numbers.flat[0])
            return self.activation(value, Activation("clip", *map(float, bounds)), hint)
        if kind == "div" and value is right:
            value, kind, left = self.activation(value, Activation("reciprocal"), hint), "mul", value
        one, zero = np.ones_like(numbers), np.zeros_like(numbers)
        match kind:
            case "add":
                scale, shift = one, numbers
            case "sub":
                scale, shift = (one, -numbers) if value is left else (-one, numbers)
            case "mul":
                scale, shift = numbers, zero
            case "div" if value is left:
                scale, shift = 1 / numbers, zero
            case _:
                raise UnsupportedOp(kind, hint, "of a tensor and a constant that varies")
        return self.affine(value, scale, shift, hint)

    def affine(self, x: str, scale: Any, shift: Any, hint: str) -> str:
        """`x * scale + shift`; the constants are (c,), or broadcast to (c, z, y, x).

        Where they have more voxels along an axis than x, x is used all along it.
        """
        if np.ndim(scale) == 1:
            return self.add(Affine(frozen(scale), frozen(shift)), [x], hint)
        shape = np.broadcast_shapes(np.shape(scale), np.shape(shift), self.sizes(x))
        if shape != self.sizes(x):
            x = self.expand(x, (shape[0], shape[1], shape[2], shape[3]), hint)
        maps = (frozen(np.broadcast_to(numbers, shape)) for numbers in (scale, shift))
        return self.add(AffineMap(*maps), [x], hint)

    def expand(self, x: str, shape: Shape, hint: str) -> str:
        """Axes of 1 repeated to (c, z, y, x)."""
        have = self.sizes(x)
        if any(a not in (1, b) for a, b in zip(have, shape, strict=True)):
            raise ShapeError(f"node {hint!r}: {have} cannot be expanded to {shape}")
        check_size(TensorType(shape))
        if have[1:] != shape[1:]:
            taps = []
            for n, out in zip(have[1:], shape[1:], strict=True):
                index = np.zeros(out, np.int32) if n == 1 else np.arange(n, dtype=np.int32)
                taps.append(Taps(index, index.copy(), frozen(np.zeros(out))))
            x = self.resize(x, taps[3 - self.spatial :], False, hint)
        if have[0] == shape[0]:
            return x
        ones = np.ones((shape[0], 1, *[1] * self.spatial))
        return self.conv(x, ones, None, hint)

    def _per_channel(self, constant: Any, value: str, kind: str, hint: str) -> Any:
        """A constant as (c,) float64, or as (c, z, y, x) where it differs between voxels."""
        array = np.asarray(constant, np.float64)
        shape = self.shape(value)
        if array.ndim > len(shape) or (array.ndim == len(shape) and array.shape[0] != 1):
            raise UnsupportedOp(kind, hint, f"a constant of shape {array.shape}")
        padded = (1,) * (len(shape) - array.ndim) + array.shape
        if any(n not in (1, have) and have != 1 for n, have in zip(padded, shape, strict=True)):
            raise UnsupportedOp(kind, hint, f"a constant of shape {array.shape} for {shape}")
        if padded in ((1,) * len(shape), (1, shape[1]) + (1,) * self.spatial):
            return np.broadcast_to(array.reshape(-1), (shape[1],)).copy()
        return array.reshape(padded[1], *[1] * (3 - self.spatial), *padded[2:])

    def concat(self, values: Sequence[str], hint: str) -> str:
        """Concatenation along the channels."""
        return values[0] if len(values) == 1 else self.add(Concat(), values, hint)

    def pool(
        self,
        x: str,
        kind: Literal["max", "average"],
        hint: str,
        *,
        kernel: Sequence[int] | int,
        stride: Sequence[int] | int,
        pad_before: Sequence[int] | int = 0,
        pad_after: Sequence[int] | int = 0,
        count_pad: bool = False,
        ceil: bool = False,
    ) -> str:
        """Pooling; padding must be smaller than the kernel. `ceil`: a last window may hang over."""
        if ceil:
            more = self._overhang(x, kernel, stride, pad_before, pad_after)
            if any(more) and kind == "average" and count_pad:
                raise UnsupportedOp("pool", hint, "a mean with ceil_mode that counts padding")
            listed = self.lift(pad_after, 0)[3 - self.spatial :]
            pad_after = [n + m for n, m in zip(listed, more, strict=True)]
        op = Pool(
            kind,
            self.lift(kernel, 1),
            self.lift(stride, 1),
            self.lift(pad_before, 0),
            self.lift(pad_after, 0),
            count_pad,
        )
        if any(
            max(a, b) >= k for a, b, k in zip(op.pad_before, op.pad_after, op.kernel, strict=True)
        ):
            raise InvalidModelError(f"node {hint!r}: pooling pads by more than its kernel")
        return self.add(op, [x], hint)

    def _overhang(
        self, x: str, kernel: Any, stride: Any, pad_before: Any, pad_after: Any
    ) -> list[int]:
        """Padding that a last window needs which begins inside, but does not fit."""
        more = []
        lifted = [self.lift(kernel, 1), self.lift(stride, 1)]
        lifted += [self.lift(pad_before, 0), self.lift(pad_after, 0)]
        for n, k, s, low, high in zip(self._types[x].shape[1:], *lifted, strict=True):
            if s < 1:
                raise InvalidModelError("a stride must be at least 1")
            count = -(-(n + low + high - k) // s) + 1
            if (count - 1) * s >= n + low:
                count -= 1
            more.append(max(0, (count - 1) * s + k - n - low - high))
        return more[3 - self.spatial :]

    def resize(self, x: str, taps: Sequence[Taps], linear: bool, hint: str) -> str:
        """Resampling by one `Taps` an axis of the net."""
        zero = np.zeros(1, np.int32)
        identity = Taps(zero, zero, frozen([0.0]))
        z, y, x_ = [identity] * (3 - self.spatial) + list(taps)
        for axis in (z, y, x_):
            axis.low.setflags(write=False)
            axis.high.setflags(write=False)
        return self.add(Resize((z, y, x_), linear), [x], hint)

    def pad(
        self,
        x: str,
        before: Sequence[int],
        after: Sequence[int],
        hint: str,
        *,
        mode: Literal["constant", "reflect", "edge", "wrap"] = "constant",
        value: float = 0.0,
    ) -> str:
        """Padding (negative: cropping) of (n, c, ...), as numpy's."""
        if before[0] or after[0]:
            raise UnsupportedOp("Pad", hint, "of the batch axis")
        size = self.shape(x)
        start = [max(0, -n) for n in before]
        stop = [n - max(0, -m) for n, m in zip(size, after, strict=True)]
        if any(start) or stop != list(size):
            x = self.slice(x, start, stop, [1] * len(size), hint)
        lows, highs = ([0] + [max(0, n) for n in side[1:]] for side in (before, after))
        if not any(lows) and not any(highs):
            return x
        op = Pad(self._lift_all(lows, 0), self._lift_all(highs, 0), mode, value)
        return self.add(op, [x], hint)

    def slice(
        self, x: str, start: Sequence[int], stop: Sequence[int], step: Sequence[int], hint: str
    ) -> str:
        """`x[start:stop:step]` of (n, c, ...), all in range."""
        if start[0] or stop[0] < 1:
            raise UnsupportedOp("Slice", hint, "of the batch axis")
        if min(step) < 1:
            raise UnsupportedOp("Slice", hint, "backwards")
        stop = [max(a, b) for a, b in zip(start, stop, strict=True)]
        return self.add(
            Slice(self._lift_all(start, 0), self._lift_all(stop, 1), self._lift_all(step, 1)),
            [x],
            hint,
        )

    def _lift_all(self, values: Sequence[int], fill: int) -> tuple[int, int, int, int]:
        z, y, x = self.lift(values[2:], fill)
        return int(values[1]), z, y, x


def taps_of(
    size: int,
    out: int,
    *,
    linear: bool,
    coordinates: str,
    step: float | None = None,
    rounding: str = "floor",
) -> Taps:
    """Taps of one axis.

    Args:
        size: of the input.
        out: of the output.
        linear: blend two neighbours, or take the nearest.
        coordinates: half_pixel, align_corners or asymmetric.
        step: input voxels an output voxel; by default size / out.
        rounding: of "nearest": floor, ceil, round_prefer_floor or round_prefer_ceil.
    """
    if out < 1 or out > 2**24:
        raise ShapeError(f"an axis cannot be resized to {out}")
    index = np.arange(out, dtype=np.float64)
    step = size / out if step is None else step
    match coordinates:
        case "half_pixel" | "pytorch_half_pixel":
            at = (index + 0.5) * step - 0.5
            if coordinates == "pytorch_half_pixel" and out == 1:
                at = np.zeros(1)
        case "align_corners":
            at = index * ((size - 1) / (out - 1) if out > 1 else 0.0)
        case "asymmetric":
            at = index * step
        case _:
            raise InvalidModelError(f"unknown coordinates {coordinates[:40]!r}")
    if linear:
        at = np.clip(at, 0, size - 1)
        low = np.floor(at)
        return Taps(
            low.astype(np.int32),
            np.minimum(low + 1, size - 1).astype(np.int32),
            frozen(at - low),
        )
    rounds: dict[str, Callable[[Any], Any]] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda a: np.ceil(a - 0.5),
        "round_prefer_ceil": lambda a: np.floor(a + 0.5),
    }
    if rounding not in rounds:
        raise InvalidModelError(f"unknown rounding {rounding[:40]!r}")
    near = np.clip(rounds[rounding](at), 0, size - 1).astype(np.int32)
    return Taps(near, near.copy(), frozen(np.zeros(out)))


def power(b: GraphBuilder, x: str, exponent: float, op: str, hint: str) -> str:
    """Whole powers up to 4, roots, and their reciprocals."""
    size = abs(exponent)
    if exponent == 0 or size not in (0.5, 1, 2, 3, 4):
        raise UnsupportedOp(op, hint, f"to the power {exponent:g}; 0.5, 1, 2, 3, 4 are")
    value = b.activation(x, Activation("sqrt"), hint) if size == 0.5 else x
    if size >= 2:
        value = b.arithmetic("mul", x, x, hint)
    if size == 3:
        value = b.arithmetic("mul", value, x, hint)
    if size == 4:
        value = b.arithmetic("mul", value, value, hint)
    return value if exponent > 0 else b.activation(value, Activation("reciprocal"), hint)


def space_to_depth(b: GraphBuilder, x: str, factor: int, hint: str) -> str:
    """Blocks of voxels become channels (c, dz, dy, dx): a convolution that picks them."""
    shape = b.shape(x)
    if factor < 1 or any(n % factor for n in shape[2:]):
        raise InvalidModelError(f"node {hint!r}: blocks of {factor} in {shape}")
    count = factor**b.spatial
    weight = np.zeros((shape[1], count, count), np.float32)
    weight[:, np.arange(count), np.arange(count)] = 1
    kernel = weight.reshape(shape[1] * count, 1, *[factor] * b.spatial)
    return b.conv(x, kernel, None, hint, stride=factor, groups=shape[1])
