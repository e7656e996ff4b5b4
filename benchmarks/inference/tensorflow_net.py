"""A net of this project's graph, run by TensorFlow: it reads neither ONNX nor torch modules.

Channels last, as its CPU kernels want. Batch norms come folded into scale and shift.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hyper_inference.compiler.ir import (
    Activate,
    Activation,
    Affine,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    Graph,
    Means,
    Node,
    NormScales,
    Pad,
    PartialSums,
    Pool,
    Prelu,
    Resize,
    ScaleShift,
    Slice,
    Softmax,
    Triple,
)


class NotInTensorFlowError(Exception):
    """Names what has no counterpart."""


def make(graph: Graph) -> Callable[[Any], Any]:
    """A traced function on (n, [z,] y, x, c)."""
    import tensorflow as tf

    flat = graph.spatial == 2
    translator = _Translator(tf, flat)

    def run(x: Any) -> Any:
        values = {graph.input: x}
        for node in graph.nodes:
            values[node.name] = translator.node(node, [values[name] for name in node.inputs])
        return values[graph.output]

    return tf.function(run)  # type: ignore[no-any-return]


class _Translator:
    def __init__(self, tf: Any, flat: bool) -> None:
        self.tf, self.flat = tf, flat

    def node(self, node: Node, inputs: list[Any]) -> Any:
        """One value."""
        tf, op, x = self.tf, node.op, inputs[0]
        match op:
            case Conv():
                y = self.conv(op, x)
                if op.residual_scale is not None:
                    y = y + inputs[1] * op.residual_scale
                return self.activate(y, op.activation)
            case ConvTranspose():
                return self.activate(self.conv_transpose(op, x), op.activation)
            case Affine():
                return self.activate(x * op.scale + op.shift, op.activation)
            case Activate():
                return self.activate(x, op.activation)
            case Binary():
                kinds = {"add": tf.add, "sub": tf.subtract, "mul": tf.multiply, "div": tf.divide}
                return self.activate(kinds[op.kind](x, inputs[1]), op.activation)
            case Prelu():
                return tf.where(x < 0, x * op.slope, x)
            case Softmax():
                return tf.nn.softmax(x)
            case Concat():
                return tf.concat(inputs, -1)
            case Pool():
                return self.pool(op, x)
            case PartialSums():  # summed where the means are taken
                return x if len(inputs) == 1 else tf.math.squared_difference(x, inputs[1])
            case Means():
                return self.means(x, op.groups)
            case NormScales():
                scale = tf.math.rsqrt(self.means(x, op.groups) + op.epsilon) * op.weight
                return tf.concat([scale, op.bias - inputs[1] * scale], -1)
            case ScaleShift():
                scale, shift = tf.split(inputs[1], 2, -1)
                return self.activate(x * scale + shift, op.activation)
            case Resize():
                return self.resize(op, x)
            case Pad():
                return self.padded(x, op.before[1:], op.after[1:], op.mode, op.value)
            case Slice():
                c, *zyx = (slice(*span) for span in zip(op.start, op.stop, op.step, strict=True))
                return x[(slice(None), *zyx[self.flat :], c)]
            case DepthToSpace():
                return self.blocks(op, x, node)
            case _:
                raise NotInTensorFlowError(f"{type(op).__name__} of node {node.name}")

    def axes(self, values: Triple) -> list[int]:
        """Of z, y, x, those that the net has."""
        return list(values[self.flat :])

    def padded(
        self, x: Any, before: Any, after: Any, mode: str = "constant", value: float = 0.0
    ) -> Any:
        """More voxels along z, y, x."""
        pairs = list(zip(self.axes(before), self.axes(after), strict=True))
        if not any(a or b for a, b in pairs):
            return x
        if mode not in ("constant", "reflect"):
            raise NotInTensorFlowError(f"{mode} padding")
        pairs = [(0, 0), *pairs, (0, 0)]
        return self.tf.pad(x, pairs, mode.upper(), constant_values=value)

    def conv(self, op: Conv, x: Any) -> Any:
        """A convolution; SAME where that means the same, else padding of its own."""
        if op.groups != 1 and not self.flat:
            raise NotInTensorFlowError("grouped 3D convolutions on CPUs")
        same = op.stride == (1, 1, 1) and all(
            a == b and 2 * a == d * (k - 1)
            for a, b, d, k in zip(op.pad_before, op.pad_after, op.dilation, op.kernel, strict=True)
        )
        if not same:
            x = self.padded(x, op.pad_before, op.pad_after)
        weight = np.ascontiguousarray(np.moveaxis(op.weight, (0, 1), (-1, -2)))
        weight = weight[0] if self.flat else weight
        call = self.tf.nn.conv2d if self.flat else self.tf.nn.conv3d
        strides, gaps = ([1, *self.axes(n), 1] for n in (op.stride, op.dilation))
        y = call(x, weight, strides, "SAME" if same else "VALID", dilations=gaps)
        return self.tf.nn.bias_add(y, op.bias)

    def conv_transpose(self, op: ConvTranspose, x: Any) -> Any:
        """Stride equal to the kernel."""
        weight = np.ascontiguousarray(np.moveaxis(op.weight, (0, 1), (-1, -2)))
        weight = weight[0] if self.flat else weight
        call = self.tf.nn.conv2d_transpose if self.flat else self.tf.nn.conv3d_transpose
        steps = self.axes(op.kernel)
        sizes = [n * k for n, k in zip(x.shape[1:-1], steps, strict=True)]
        shape = [x.shape[0], *sizes, op.weight.shape[1]]
        y = call(x, weight, shape, [1, *steps, 1], "VALID")
        return self.tf.nn.bias_add(y, op.bias)

    def pool(self, op: Pool, x: Any) -> Any:
        """Windows."""
        pads = any(op.pad_before) or any(op.pad_after)
        if op.kind == "average" and pads and not op.count_pad:
            raise NotInTensorFlowError("means that leave padding out")
        fill = -np.inf if op.kind == "max" else 0.0
        x = self.padded(x, op.pad_before, op.pad_after, value=fill)
        return self.tf.nn.pool(
            x, self.axes(op.kernel), "MAX" if op.kind == "max" else "AVG",
            self.axes(op.stride), "VALID",
        )  # fmt: skip

    def means(self, x: Any, groups: int) -> Any:
        """Of each group of channels, given to all of its channels."""
        tf, channels = self.tf, x.shape[-1]
        mean = tf.reduce_mean(x, list(range(1, len(x.shape) - 1)), keepdims=True)
        if groups == channels:
            return mean
        parts = tf.reshape(mean, [x.shape[0], groups, channels // groups])
        each = tf.repeat(tf.reduce_mean(parts, -1), channels // groups, axis=-1)
        return tf.reshape(each, mean.shape)

    def resize(self, op: Resize, x: Any) -> Any:
        """One axis at a time."""
        tf = self.tf
        for axis, taps in enumerate(op.taps[self.flat :], start=1):
            if np.array_equal(taps.low, np.arange(x.shape[axis])) and not taps.blends:
                continue
            low = tf.gather(x, taps.low, axis=axis)
            if taps.blends:
                shape = [-1 if n == axis else 1 for n in range(len(x.shape))]
                low += (tf.gather(x, taps.high, axis=axis) - low) * taps.weight.reshape(shape)
            x = low
        return x

    def blocks(self, op: DepthToSpace, x: Any, node: Node) -> Any:
        """Channels (o, z, y, x of a block), or (z, y, x of a block, o), to voxels."""
        tf, factors = self.tf, self.axes(op.factor)
        sizes, outs = list(x.shape[1:-1]), node.type.shape[0]
        count = len(factors)
        parts = [*factors, outs] if op.block_first else [outs, *factors]
        y = tf.reshape(x, [x.shape[0], *sizes, *parts])
        first = 1 + count + (not op.block_first)
        order = [0]
        for axis in range(count):
            order += [1 + axis, first + axis]
        y = tf.transpose(y, [*order, 1 + 2 * count if op.block_first else 1 + count])
        y = tf.reshape(y, [x.shape[0], *[n * f for n, f in zip(sizes, factors, strict=True)], outs])
        cut = [slice(0, n) for n in self.axes(op.size)]
        return y[(slice(None), *cut, slice(None))]

    def activate(self, x: Any, activation: Activation | None) -> Any:
        """A function of one number."""
        tf = self.tf
        if activation is None:
            return x
        alpha, beta = activation.alpha, activation.beta
        functions: dict[str, Callable[[Any], Any]] = {
            "relu": tf.nn.relu, "sigmoid": tf.sigmoid, "tanh": tf.tanh, "silu": tf.nn.silu,
            "erf": tf.math.erf, "abs": tf.abs,
            "leaky_relu": lambda v: tf.nn.leaky_relu(v, alpha),
            "elu": lambda v: tf.where(v > 0, v, alpha * tf.math.expm1(tf.minimum(v, 0.0)))
            if alpha != 1 else tf.nn.elu(v),
            "gelu": lambda v: tf.nn.gelu(v), "gelu_tanh": lambda v: tf.nn.gelu(v, True),
            "clip": lambda v: tf.clip_by_value(v, alpha, beta),
        }  # fmt: skip
        if activation.kind not in functions:
            raise NotInTensorFlowError(activation.kind)
        return functions[activation.kind](x)
