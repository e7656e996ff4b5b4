"""Makes a legal graph node by node; what all frontends share.

Frontends see tensors with a batch axis, `(n, c, y, x)` or `(n, c, z, y, x)`; the builder drops the
batch, gives 2D nets a z of 1, and infers every type.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from hyper_inference.compiler.ir import (
    Activate,
    Activation,
    Affine,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    Floats,
    Graph,
    Node,
    Op,
    Pad,
    Pool,
    Resize,
    Slice,
    Taps,
    TensorType,
    Triple,
)
from hyper_inference.compiler.shapes import check_size, infer_type
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp


def frozen(values: Any) -> Floats:
    """A read-only float32 copy."""
    array = np.array(values, dtype=np.float32, order="C", copy=True)
    array.setflags(write=False)
    return array


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
        self._nodes: list[Node] = []

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

    def finish(self, output: str) -> Graph:
        """The graph whose result is `output`."""
        return Graph(
            self.input,
            self._types[self.input],
            tuple(self._nodes),
            output,
            self.spatial,
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
        self, x: str, weight: Any, bias: Any | None, hint: str, *, stride: Sequence[int] | int
    ) -> str:
        """A transposed convolution whose stride is its kernel."""
        lifted = self._lift_weight(weight)
        op = ConvTranspose(lifted, frozen(np.zeros(lifted.shape[1]) if bias is None else bias))
        if self.lift(stride, 1) != op.kernel:
            raise UnsupportedOp("ConvTranspose", hint, "its stride must equal its kernel")
        return self.add(op, [x], hint)

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
            if kind not in ("add", "sub", "mul"):
                raise UnsupportedOp(kind, hint, "of two tensors")
            op: Literal["add", "sub", "mul"] = kind  # type: ignore[assignment]  # checked above
            return self.add(Binary(op), [left, right], hint)
        value, constant = (left, right) if isinstance(left, str) else (right, left)
        numbers = self._per_channel(constant, value, kind, hint)
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
                raise UnsupportedOp(kind, hint, "a constant divided by a tensor")
        return self.add(Affine(frozen(scale), frozen(shift)), [value], hint)

    def _per_channel(self, constant: Any, value: str, kind: str, hint: str) -> Any:
        """A constant as (c,) float64."""
        array = np.asarray(constant, np.float64)
        shape = self.shape(value)
        padded = (1,) * (len(shape) - array.ndim) + array.shape
        if padded not in ((1,) * len(shape), (1, shape[1]) + (1,) * self.spatial):
            raise UnsupportedOp(
                kind, hint, f"a constant of shape {array.shape}; one number or one a channel"
            )
        return np.broadcast_to(array.reshape(-1), (shape[1],)).copy()

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
    ) -> str:
        """Pooling; padding must be smaller than the kernel."""
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
        mode: Literal["constant", "reflect", "edge"] = "constant",
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
