"""The graph: frozen nodes in topological order, every shape and dtype known.

A value is one sample, `(c, z, y, x)` float32; a 2D net has z = 1, and batches are a loop around
the net. An op is a frozen value that holds its weights; what it means is `interpret.py`'s to say,
what shape it gives is `shapes.py`'s.

    %conv1: 28x20x256x256 = conv 28x1x1x5x5 pad 0,2,2 elu (%x)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Shape: TypeAlias = tuple[int, int, int, int]
Triple: TypeAlias = tuple[int, int, int]
Floats: TypeAlias = npt.NDArray[np.float32]
Ints: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape `(c, z, y, x)` and dtype of a value."""

    shape: Shape
    dtype: str = "float32"

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        c, z, y, x = self.shape
        return c * z * y * x

    def __str__(self) -> str:
        return "x".join(str(n) for n in self.shape)


@dataclass(frozen=True, slots=True)
class Activation:
    """A function of one number.

    Args:
        kind: `gelu` by erf, `gelu_tanh` its approximation by tanh, `clip` to alpha..beta,
            `softplus` log(1 + e^x), `mish` x tanh(softplus(x)).
        alpha: slope of leaky_relu, limit of elu, least of clip.
        beta: largest of clip.
    """

    kind: Literal[
        "relu", "leaky_relu", "elu", "sigmoid", "tanh", "silu", "gelu", "gelu_tanh", "erf",
        "hardswish", "clip", "abs", "exp", "log", "sqrt", "reciprocal", "softplus", "mish",
    ]  # fmt: skip
    alpha: float = 0.0
    beta: float = 0.0

    def __str__(self) -> str:
        if self.kind == "clip":
            return f"clip({self.alpha:g}, {self.beta:g})"
        return f"{self.kind}({self.alpha:g})" if self.kind in ("leaky_relu", "elu") else self.kind


@dataclass(frozen=True, slots=True, eq=False)
class Conv:
    """Cross-correlation with zero padding: `act(weight * x + bias + residual * residual_scale)`.

    Args:
        weight: (o, c / groups, kz, ky, kx).
        bias: (o,).
        residual_scale: (o,), or None: there is no second input.
    """

    weight: Floats
    bias: Floats
    stride: Triple = (1, 1, 1)
    dilation: Triple = (1, 1, 1)
    pad_before: Triple = (0, 0, 0)
    pad_after: Triple = (0, 0, 0)
    groups: int = 1
    residual_scale: Floats | None = None
    activation: Activation | None = None

    @property
    def kernel(self) -> Triple:
        """(kz, ky, kx)."""
        _, _, z, y, x = self.weight.shape
        return z, y, x


@dataclass(frozen=True, slots=True, eq=False)
class ConvTranspose:
    """Transposed convolution whose stride is its kernel: every input voxel paints one block.

    Args:
        weight: (c, o, kz, ky, kx).
        bias: (o,).
        residual_scale: as in `Conv`.
    """

    weight: Floats
    bias: Floats
    residual_scale: Floats | None = None
    activation: Activation | None = None

    @property
    def kernel(self) -> Triple:
        """(kz, ky, kx), the stride too."""
        _, _, z, y, x = self.weight.shape
        return z, y, x


@dataclass(frozen=True, slots=True, eq=False)
class Affine:
    """`act(x * scale + shift)`, (c,) each: batch norm, and arithmetic with constants."""

    scale: Floats
    shift: Floats
    activation: Activation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class AffineMap:
    """`x * scale + shift` with constants that differ between voxels.

    Args:
        scale, shift: (c, z, y, x) each, as the value.
    """

    scale: Floats
    shift: Floats


@dataclass(frozen=True, slots=True)
class Activate:
    """An activation on its own."""

    activation: Activation


@dataclass(frozen=True, slots=True)
class Binary:
    """`act(a op b)`; an operand of size 1 along an axis is used all along that axis."""

    kind: Literal["add", "sub", "mul", "div", "max", "min"]
    activation: Activation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prelu:
    """`x`, or where negative `x * slope`, (c,)."""

    slope: Floats


@dataclass(frozen=True, slots=True)
class Softmax:
    """Over the channels."""


@dataclass(frozen=True, slots=True)
class PartialSums:
    """Sums of x, or of (x - mean)^2 where a second input of (c, 1, 1, 1) gives the means.

    The result is (c, z, y / `SUM_ROWS`, `SUM_LANES`): one sum for every group of rows and every x
    modulo `SUM_LANES`, so that the order of additions is the same for any vector width.
    """


SUM_ROWS = 8
SUM_LANES = 16


@dataclass(frozen=True, slots=True)
class Means:
    """Partial sums -> (c, 1, 1, 1): the mean of each of `groups` of channels, `count` numbers."""

    groups: int
    count: int


@dataclass(frozen=True, slots=True, eq=False)
class NormScales:
    """Partial sums of squares, and means -> scales then shifts, (2c, 1, 1, 1).

    They turn x into `(x - mean) / sqrt(variance + epsilon) * weight + bias`.
    """

    weight: Floats
    bias: Floats
    epsilon: float
    groups: int
    count: int


@dataclass(frozen=True, slots=True)
class ScaleShift:
    """`act(x * scale + shift)`; the second input holds scales then shifts, (2c, 1, 1, 1)."""

    activation: Activation | None = None


@dataclass(frozen=True, slots=True)
class DepthToSpace:
    """Channels (o, factor z, y, x) become blocks of voxels; cut to `size` (z, y, x).

    `block_first`: the channels are (factor z, y, x, o), as in ONNX's mode DCR.
    """

    factor: Triple
    size: Triple
    block_first: bool = False


@dataclass(frozen=True, slots=True)
class Concat:
    """Inputs one after another along the channels."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Maximum or mean over windows; outside is -inf, or zeros that count only if asked."""

    kind: Literal["max", "average"]
    kernel: Triple
    stride: Triple
    pad_before: Triple = (0, 0, 0)
    pad_after: Triple = (0, 0, 0)
    count_pad: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Taps:
    """One axis of a resampling: `out[i]` blends `in[low[i]]` and `in[high[i]]` by `weight[i]`."""

    low: Ints
    high: Ints
    weight: Floats

    @property
    def blends(self) -> bool:
        """Whether two inputs are ever mixed."""
        return bool(np.any(self.weight != 0))


@dataclass(frozen=True, slots=True, eq=False)
class Resize:
    """Separable resampling, nearest or linear, as taps of z, y and x."""

    taps: tuple[Taps, Taps, Taps]
    linear: bool


@dataclass(frozen=True, slots=True)
class Pad:
    """More voxels around (c, z, y, x)."""

    before: Shape
    after: Shape
    mode: Literal["constant", "reflect", "edge", "wrap"] = "constant"
    value: float = 0.0


@dataclass(frozen=True, slots=True)
class Slice:
    """`x[start:stop:step]` along (c, z, y, x), steps positive."""

    start: Shape
    stop: Shape
    step: Shape = (1, 1, 1, 1)


Statistics: TypeAlias = PartialSums | Means | NormScales
"""What norms and means over whole values are made of."""
Op: TypeAlias = (
    Conv | ConvTranspose | Affine | AffineMap | Activate | Binary | Prelu | Softmax | Statistics
    | ScaleShift | DepthToSpace | Concat | Pool | Resize | Pad | Slice
)  # fmt: skip
Fusable: TypeAlias = Conv | ConvTranspose | Affine | Binary | ScaleShift


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One value and how it is made: `name = op(inputs)`."""

    name: str
    op: Op
    inputs: tuple[str, ...]
    type: TensorType

    def __str__(self) -> str:
        inputs = ", ".join(f"%{name}" for name in self.inputs)
        return f"%{self.name}: {self.type} = {describe(self.op)} ({inputs})"


Axes: TypeAlias = tuple[tuple[int, ...], ...]
"""How a value is seen: for each axis behind the batch, which of (c, z, y, x) it runs through, the
first slowest; () is an axis of 1. Axes of the value that are not named are 1."""


def plain_axes(spatial: int) -> Axes:
    """(c, y, x) or (c, z, y, x)."""
    return ((0,), *((axis,) for axis in range(4 - spatial, 4)))


def seen_shape(shape: Shape, axes: Axes) -> tuple[int, ...]:
    """Of a value, without the batch."""
    return tuple(math.prod(shape[axis] for axis in group) for group in axes)


@dataclass(frozen=True, slots=True, eq=False)
class Graph:
    """A net for one shape of its inputs.

    Args:
        inputs: names and types.
        outputs: names; a value may be given twice.
        spatial: 2 or 3: how many of z, y, x its users see.
        axes: how users see each output.
    """

    inputs: tuple[tuple[str, TensorType], ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    spatial: int
    axes: tuple[Axes, ...]
    name: str = field(default="net")

    @property
    def input(self) -> str:
        """The first input."""
        return self.inputs[0][0]

    @property
    def input_type(self) -> TensorType:
        """Type of the first input."""
        return self.inputs[0][1]

    @property
    def output(self) -> str:
        """The first output."""
        return self.outputs[0]

    def types(self) -> dict[str, TensorType]:
        """Type of every value."""
        return {**dict(self.inputs), **{node.name: node.type for node in self.nodes}}

    def producers(self) -> dict[str, Node]:
        """The node that makes each value but the input."""
        return {node.name: node for node in self.nodes}

    def uses(self) -> dict[str, int]:
        """How often each value is read; a graph's output counts as one reader more."""
        count = dict.fromkeys(self.types(), 0)
        for node in self.nodes:
            for name in node.inputs:
                count[name] += 1
        for name in self.outputs:
            count[name] += 1
        return count

    def walk(self) -> Iterator[tuple[Node, list[TensorType]]]:
        """Nodes in order, with the types of their inputs."""
        types = self.types()
        for node in self.nodes:
            yield node, [types[name] for name in node.inputs]

    def __str__(self) -> str:
        inputs = ", ".join(f"%{name}: {kind}" for name, kind in self.inputs)
        outputs = ", ".join(f"%{name}" for name in self.outputs)
        lines = [f"{self.name} ({inputs}) -> {outputs}"]
        return "\n".join([*lines, *(f"  {node}" for node in self.nodes)])


def _triple(value: Triple) -> str:
    return ",".join(str(n) for n in value)


_NAMES: dict[type, str] = {
    Prelu: "prelu", Softmax: "softmax", PartialSums: "partial_sums", ScaleShift: "scale_shift",
}  # fmt: skip


def describe(op: Op) -> str:
    """One op for people: its name and what is not the default."""
    words: list[Any]
    match op:
        case Conv():
            words = ["conv", "x".join(str(n) for n in op.weight.shape)]
            words += [f"stride {_triple(op.stride)}"] * (op.stride != (1, 1, 1))
            words += [f"dilation {_triple(op.dilation)}"] * (op.dilation != (1, 1, 1))
            if op.pad_before == op.pad_after:
                words += [f"pad {_triple(op.pad_before)}"] * any(op.pad_before)
            else:
                words.append(f"pad {_triple(op.pad_before)}:{_triple(op.pad_after)}")
            words += [f"groups {op.groups}"] * (op.groups > 1)
            words += ["+residual"] * (op.residual_scale is not None)
        case ConvTranspose():
            words = ["conv_transpose", "x".join(str(n) for n in op.weight.shape)]
            words += ["+residual"] * (op.residual_scale is not None)
        case Affine():
            words = ["affine"]
        case AffineMap():
            words = ["affine_map"]
        case Activate():
            words = ["activate"]
        case Binary():
            words = [op.kind]
        case Prelu() | Softmax() | PartialSums() | ScaleShift():
            words = [_NAMES[type(op)]]
        case Means():
            words = ["means", f"groups {op.groups}"]
        case NormScales():
            words = ["norm_scales", f"groups {op.groups}", f"epsilon {op.epsilon:g}"]
        case DepthToSpace():
            words = ["depth_to_space", _triple(op.factor)] + ["block first"] * op.block_first
        case Concat():
            words = ["concat"]
        case Pool():
            words = [f"{op.kind}_pool", _triple(op.kernel), f"stride {_triple(op.stride)}"]
            words += [f"pad {_triple(op.pad_before)}"] * any(op.pad_before)
        case Resize():
            words = ["resize", "linear" if op.linear else "nearest"]
        case Pad():
            words = ["pad", op.mode, f"{op.before}:{op.after}"]
        case Slice():
            words = ["slice", f"{op.start}:{op.stop}:{op.step}"]
    activation = getattr(op, "activation", None)
    if activation is not None:
        words.append(activation)
    return " ".join(str(word) for word in words)
