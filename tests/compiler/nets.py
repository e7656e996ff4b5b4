"""Nets of the tests: small ONNX models made by hand, torch modules, and random graphs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from hyper_inference.compiler.frontend import reductions
from hyper_inference.compiler.frontend.builder import GraphBuilder, frozen, taps_of
from hyper_inference.compiler.ir import Activation, Affine, Conv, Graph


def onnx_model(
    nodes: Sequence[Any],
    weights: dict[str, np.ndarray],
    input_shape: Sequence[int | str],
    *,
    output: str = "y",
    opset: int = 17,
) -> bytes:
    """A model with input `x` and one output, as bytes."""
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(model.SerializeToString())


def gaussian(size: int, sigma: float) -> np.ndarray:
    """(size, size), sum 1."""
    x = np.arange(size) - size // 2
    line = np.exp(-0.5 * (x / sigma) ** 2)
    kernel = np.outer(line, line)
    return np.asarray((kernel / kernel.sum()).astype(np.float32))


def bandpass_model(size: int = 31, low: float = 1.5, high: float = 5.0) -> bytes:
    """Two Gaussians as full kernels, subtracted, over (1, 1, H, W)."""
    nodes = [
        helper.make_node("Conv", ["x", name], [f"{name}_out"], pads=[size // 2] * 4, name=name)
        for name in ("narrow", "wide")
    ]
    nodes.append(helper.make_node("Sub", ["narrow_out", "wide_out"], ["y"], name="difference"))
    weights = {
        "narrow": gaussian(size, low)[None, None],
        "wide": gaussian(size, high)[None, None],
    }
    return onnx_model(nodes, weights, [1, 1, "h", "w"])


def small_unet_model(seed: int = 0) -> bytes:
    """A 3D U-Net of two levels, by hand: (1, 1, z, y, x), sizes even."""
    random = np.random.default_rng(seed)

    def weight(*shape: int) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (random.standard_normal(shape) * scale).astype(np.float32)

    weights = {
        "w1": weight(6, 1, 3, 3, 3), "b1": weight(6), "w2": weight(8, 6, 3, 3, 3),
        "w3": weight(8, 6, 2, 2, 2), "w4": weight(5, 12, 1, 3, 3), "w5": weight(2, 5, 1, 1, 1),
    }  # fmt: skip
    weights["w3"] = np.ascontiguousarray(weights["w3"].reshape(8, 6, 2, 2, 2))
    node = helper.make_node
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["a"], pads=[1] * 6, name="down"),
        node("Relu", ["a"], ["a_act"], name="down_act"),
        node("MaxPool", ["a_act"], ["p"], kernel_shape=[2, 2, 2], strides=[2, 2, 2], name="pool"),
        node("Conv", ["p", "w2"], ["d"], pads=[1] * 6, name="deep"),
        node("Elu", ["d"], ["d_act"], name="deep_act"),
        node("ConvTranspose", ["d_act", "w3"], ["u"], strides=[2, 2, 2], name="up"),
        node("Concat", ["a_act", "u"], ["c"], axis=1, name="skip"),
        node("Conv", ["c", "w4"], ["e"], pads=[0, 1, 1, 0, 1, 1], name="join"),
        node("LeakyRelu", ["e"], ["e_act"], alpha=0.1, name="join_act"),
        node("Conv", ["e_act", "w5"], ["f"], name="head"),
        node("Sigmoid", ["f"], ["y"], name="probability"),
    ]
    return onnx_model(nodes, weights, [1, 1, "z", "y", "x"])


ACTIVATIONS = (
    Activation("relu"), Activation("leaky_relu", 0.1), Activation("elu", 1.0),
    Activation("elu", 0.7), Activation("sigmoid"), Activation("tanh"), Activation("silu"),
    Activation("gelu"), Activation("gelu_tanh"), Activation("erf"), Activation("hardswish"),
    Activation("clip", -0.5, 1.5), Activation("abs"), Activation("softplus"), Activation("mish"),
)  # fmt: skip


@st.composite
def graphs(draw: st.DrawFn, *, max_nodes: int = 6) -> Graph:
    """A random legal graph, small enough for the interpreter."""
    spatial = draw(st.sampled_from([2, 3]))
    sizes = [draw(st.integers(1, 4))] if spatial == 3 else []
    sizes += [draw(st.integers(2, 9)), draw(st.integers(2, 37))]
    builder = GraphBuilder([1, draw(st.integers(1, 4)), *sizes])
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = [builder.input]
    for index in range(draw(st.integers(1, max_nodes))):
        value = draw(st.sampled_from(values[-3:]))
        kind = draw(st.sampled_from(sorted(_MAKERS)))
        made = _MAKERS[kind](draw, builder, random, value, values, f"n{index}_{kind}")
        if made is not None:
            values.append(made)
    if len(values) == 1:
        values.append(builder.activation(builder.input, ACTIVATIONS[0], "only"))
    return builder.finish(values[-1])


def _conv(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str | None:
    shape = b.shape(value)
    groups = draw(st.sampled_from([1, shape[1]]))
    out = groups * draw(st.integers(1, 3)) if groups > 1 else draw(st.integers(1, 31))
    kernel = [draw(st.sampled_from([1, 2, 3, 5])) for _ in shape[2:]]
    pads = [(draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))) for k in kernel]
    stride = [draw(st.sampled_from([1, 1, 2, 3])) for _ in kernel]
    dilation = [draw(st.sampled_from([1, 1, 2])) for _ in kernel]
    if any(
        n + sum(p) < d * (k - 1) + 1
        for n, p, k, d in zip(shape[2:], pads, kernel, dilation, strict=True)
    ):
        return None
    weight = random.standard_normal((out, shape[1] // groups, *kernel))
    weight /= np.sqrt(weight[0].size)
    return b.conv(
        value, weight, random.standard_normal(out), name, stride=stride, dilation=dilation,
        pad_before=[p[0] for p in pads], pad_after=[p[1] for p in pads], groups=groups,
    )  # fmt: skip


def _conv_transpose(
    draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str
) -> str | None:
    shape = b.shape(value)
    kernel = [draw(st.sampled_from([1, 2, 2, 3])) for _ in shape[2:]]
    if np.prod(shape[2:]) * np.prod(kernel) > 4000:
        return None
    weight = random.standard_normal((shape[1], draw(st.integers(1, 17)), *kernel))
    return b.conv_transpose(value, weight / np.sqrt(shape[1]), None, name, stride=kernel)


def _conv_transpose_any(
    draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str
) -> str | None:
    shape = b.shape(value)
    groups = draw(st.sampled_from([1, shape[1]]))
    kernel = [draw(st.integers(1, 4)) for _ in shape[2:]]
    stride = [draw(st.integers(1, 3)) for _ in kernel]
    dilation = [draw(st.sampled_from([1, 1, 2])) for _ in kernel]
    padding = [draw(st.integers(0, k // 2)) for k in kernel]
    more = [draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True)]
    sizes = [
        (n - 1) * s - 2 * p + d * (k - 1) + m + 1
        for n, s, p, d, k, m in zip(shape[2:], stride, padding, dilation, kernel, more, strict=True)
    ]
    if min(sizes) < 1 or np.prod(sizes) > 4000:
        return None
    weight = random.standard_normal((shape[1], draw(st.integers(1, 5)), *kernel))
    weight /= np.sqrt(shape[1] // groups * np.prod(kernel))
    return b.conv_transpose(
        value, weight, random.standard_normal(weight.shape[1] * groups), name, stride=stride,
        padding=padding, output_padding=more, dilation=dilation, groups=groups,
    )  # fmt: skip


def _norm(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str | None:
    shape = b.shape(value)
    groups = draw(st.sampled_from([1, shape[1]]))
    if shape[1] // groups * np.prod(shape[2:]) < 4:
        return None  # the variance of next to nothing
    numbers = random.standard_normal((2, shape[1]))
    return b.norm(value, groups, numbers[0], numbers[1], 0.1, name)


def _axes(draw: Any, b: GraphBuilder) -> list[int]:
    return draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True))


def _mean(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    """Squeeze and excite, along any axes."""
    mean = reductions.reduce(b, value, _axes(draw, b), draw(st.sampled_from(["mean", "sum"])), name)
    return b.arithmetic("mul", value, mean, name)


def _normalize(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    shape = b.sizes(value)
    maps = [random.standard_normal(shape if draw(st.booleans()) else (1, 1, 1, 1)) for _ in "ab"]
    return reductions.normalize(b, value, _axes(draw, b), maps[0], maps[1], 0.1, name)


def _adaptive(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    kind = draw(st.sampled_from(["max", "average"]))
    sizes = [draw(st.integers(1, min(20, 2 * n))) for n in b.shape(value)[2:]]
    return reductions.adaptive_pool(b, value, kind, sizes, name)


def _spatial_concat(
    draw: Any, b: GraphBuilder, random: Any, value: str, values: list[str], name: str
) -> str:
    axis = draw(st.integers(4 - b.spatial, 3))
    fits = [
        other for other in values
        if all(n == axis or b.sizes(other)[n] == b.sizes(value)[n] for n in range(4))
    ]  # fmt: skip
    return reductions.concat(b, [value, draw(st.sampled_from(fits))], axis, name)


def _prelu(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    return b.prelu(value, random.standard_normal(b.shape(value)[1]), name)


def _softmax(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    axes = draw(st.sampled_from([[0], [0], _axes(draw, b)]))
    return reductions.softmax(b, value, axes, name, log=draw(st.booleans()))


def _global_max(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    kind = draw(st.sampled_from(["max", "min"]))
    most = reductions.reduce(b, value, _axes(draw, b), kind, f"{name}_max")
    return b.arithmetic("sub", value, most, name)


def _affine(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    channels = b.shape(value)[1]
    numbers = random.standard_normal((2, channels))
    return b.add(Affine(frozen(numbers[0]), frozen(numbers[1])), [value], name)


def _activation(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    return b.activation(value, draw(st.sampled_from(ACTIVATIONS)), name)


def _binary(
    draw: Any, b: GraphBuilder, random: Any, value: str, values: list[str], name: str
) -> str | None:
    shape = b.shape(value)
    fits = [
        other
        for other in values
        if b.shape(other)[2:] == shape[2:]
        and (b.shape(other)[1] == shape[1] or 1 in (b.shape(other)[1], shape[1]))
    ]
    kind = draw(st.sampled_from(["add", "add", "sub", "mul", "max", "min"]))
    return b.arithmetic(kind, value, draw(st.sampled_from(fits)), name)


def _concat(
    draw: Any, b: GraphBuilder, random: Any, value: str, values: list[str], name: str
) -> str:
    fits = [other for other in values if b.shape(other)[2:] == b.shape(value)[2:]]
    others = draw(st.lists(st.sampled_from(fits), min_size=1, max_size=2))
    return b.concat([value, *others], name)


def _pool(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str | None:
    shape = b.shape(value)
    kernel = [draw(st.integers(1, 3)) for _ in shape[2:]]
    pads = [draw(st.integers(0, k // 2)) for k in kernel]
    if any(n + 2 * p < k for n, p, k in zip(shape[2:], pads, kernel, strict=True)):
        return None
    return b.pool(
        value, draw(st.sampled_from(["max", "average"])), name, kernel=kernel,
        stride=[draw(st.integers(1, 3)) for _ in kernel], pad_before=pads, pad_after=pads,
        count_pad=draw(st.booleans()),
    )  # fmt: skip


def _resize(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    linear = draw(st.booleans())
    coordinates = draw(st.sampled_from(["half_pixel", "align_corners", "asymmetric"]))
    taps = [
        taps_of(n, draw(st.integers(1, min(40, 2 * n))), linear=linear, coordinates=coordinates)
        for n in b.shape(value)[2:]
    ]
    return b.resize(value, taps, linear, name)


def _pad(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    shape = b.shape(value)
    mode = draw(st.sampled_from(["constant", "reflect", "edge", "wrap"]))
    most = [min(3, n - 1) for n in shape[1:]]
    before = [0, *(draw(st.integers(0, m)) for m in most)]
    after = [0, *(draw(st.integers(0, m)) for m in most)]
    number = draw(st.sampled_from([0.0, 0.0, -1.5]))
    return b.pad(value, before, after, name, mode=mode, value=number)


def _slice(draw: Any, b: GraphBuilder, random: Any, value: str, _: Any, name: str) -> str:
    shape = b.shape(value)
    start = [0, *(draw(st.integers(0, n - 1)) for n in shape[1:])]
    stop = [1, *(draw(st.integers(a + 1, n)) for a, n in zip(start[1:], shape[1:], strict=True))]
    step = [1, *(draw(st.sampled_from([1, 1, 2])) for _ in shape[1:])]
    if draw(st.booleans()):  # channels only: written in place
        start[2:], stop[2:], step = [0] * len(shape[2:]), list(shape[2:]), [1] * len(shape)
    return b.slice(value, start, stop, step, name)


_MAKERS: dict[str, Any] = {
    "conv": _conv, "conv_transpose": _conv_transpose, "affine": _affine,
    "activation": _activation, "binary": _binary, "concat": _concat, "pool": _pool,
    "resize": _resize, "pad": _pad, "slice": _slice, "conv_transpose_any": _conv_transpose_any,
    "norm": _norm, "mean": _mean, "prelu": _prelu, "softmax": _softmax, "global_max": _global_max,
    "normalize": _normalize, "adaptive": _adaptive, "spatial_concat": _spatial_concat,
}  # fmt: skip


def conv_count(graph: Graph) -> int:
    """How many convolutions a graph has."""
    return sum(isinstance(node.op, Conv) for node in graph.nodes)
