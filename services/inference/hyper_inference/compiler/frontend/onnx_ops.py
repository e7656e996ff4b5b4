"""How each ONNX op becomes nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hyper_inference.compiler.frontend import reductions, view_ops
from hyper_inference.compiler.frontend.builder import power, space_to_depth, taps_of
from hyper_inference.compiler.frontend.linear import linear
from hyper_inference.compiler.frontend.onnx_call import Call, Grouped
from hyper_inference.compiler.frontend.reductions import dilated_max_pool
from hyper_inference.compiler.frontend.views import Seen, permuted, reshaped, shape_of
from hyper_inference.compiler.ir import Activation, Taps


def _conv(call: Call) -> str:
    weight = call.constant(1)
    ones = [1] * call.builder.spatial
    stride, dilation = call.get("strides", ones), call.get("dilations", ones)
    before, after = call.pads(weight.shape[2:], stride, dilation)
    return call.builder.conv(
        call.tensor(), weight, call.constant(2), call.where,
        stride=stride, dilation=dilation, pad_before=before, pad_after=after,
        groups=call.get("group", 1),
    )  # fmt: skip


def _conv_transpose(call: Call) -> str:
    if call.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise call.refuse("with auto_pad")
    if "output_shape" in call.attributes:
        raise call.refuse("with output_shape")
    spatial = call.builder.spatial
    ones, zeros = [1] * spatial, [0] * spatial
    pads = list(call.get("pads", [0] * (2 * spatial)))
    before, after = pads[:spatial], pads[spatial:]
    # Padding after that is smaller than before is output padding.
    more = [
        b - a + n for b, a, n in zip(before, after, call.get("output_padding", zeros), strict=True)
    ]
    if min(more) < 0:
        raise call.refuse("with more padding after than before")
    return call.builder.conv_transpose(
        call.tensor(), call.constant(1), call.constant(2), call.where,
        stride=call.get("strides", ones), padding=before, output_padding=more,
        dilation=call.get("dilations", ones), groups=call.get("group", 1),
    )  # fmt: skip


def _batch_norm(call: Call) -> str:
    if call.get("training_mode", 0):
        raise call.refuse("in training mode; export the net in eval mode")
    scale, bias, mean, variance = (call.constant(i) for i in range(1, 5))
    return call.builder.batch_norm(
        call.tensor(), scale, bias, mean, variance, call.get("epsilon", 1e-5), call.where
    )


def _activation(kind: Any, default_alpha: float = 0.0) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        activation = Activation(kind, float(call.get("alpha", default_alpha)))
        return call.builder.activation(call.tensor(), activation, call.where)

    return handler


def _arithmetic(kind: str) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        return call.builder.arithmetic(kind, call.inputs[0], call.inputs[1], call.where)

    return handler


def _concat(call: Call) -> Seen:
    values = [call.seen(index) for index in range(len(call.inputs))]
    return view_ops.concat(call, values, int(call.get("axis", 1)))


def _pool(kind: Any) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        ones = [1] * call.builder.spatial
        kernel, stride = call.attributes["kernel_shape"], call.get("strides", ones)
        gaps = call.get("dilations", ones)
        before, after = call.pads(kernel, stride, gaps)
        if any(n != 1 for n in gaps):
            if kind != "max" or before != after or call.get("ceil_mode", 0):
                raise call.refuse("of means, or with other padding after than before")
            lift = call.builder.lift
            return dilated_max_pool(
                call.builder, call.tensor(), lift(kernel, 1), lift(stride, 1), lift(before, 0),
                lift(gaps, 1), call.where,
            )  # fmt: skip
        return call.builder.pool(
            call.tensor(), kind, call.where, kernel=kernel, stride=stride,
            pad_before=before, pad_after=after,
            count_pad=bool(call.get("count_include_pad", 0)),
            ceil=bool(call.get("ceil_mode", 0)),
        )  # fmt: skip

    return handler


def _resize(call: Call) -> str:
    old = call.op == "Upsample"
    scales = call.constant(1 if old else 2)
    sizes = None if old else call.constant(3)
    if old and scales is None:
        scales = np.asarray(call.attributes["scales"])
    mode = call.get("mode", "nearest")
    if mode not in ("nearest", "linear"):
        raise call.refuse(f"mode {mode!r}")
    default = "asymmetric" if old else "half_pixel"
    coordinates = call.get("coordinate_transformation_mode", default)
    if coordinates not in ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"):
        raise call.refuse(f"coordinates {coordinates!r}")
    rounding = "floor" if old else call.get("nearest_mode", "round_prefer_floor")
    shape = call.builder.shape(call.tensor())
    by_size = sizes is not None and np.size(sizes)
    given = np.ravel(np.asarray(sizes if by_size else scales))
    if len(given) == len(shape) - 2 and "axes" in call.attributes:
        given = np.concatenate([shape[:2] if by_size else [1, 1], given])
    if len(given) != len(shape) or call.get("antialias", 0):
        raise call.refuse("sizes of other axes, or with antialias")
    if not np.all(np.isfinite(given)) or np.any(given <= 0):
        raise call.refuse("sizes that are not positive")
    taps: list[Taps] = []
    for axis, size in enumerate(shape):
        scale = given[axis] / size if by_size else float(given[axis])
        out = int(given[axis]) if by_size else int(np.floor(size * scale))
        if axis < 2:
            if out != size:
                raise call.refuse("of the batch or channel axis")
            continue
        taps.append(
            taps_of(size, out, linear=mode == "linear", coordinates=coordinates,
                    step=1 / scale, rounding=rounding)
        )  # fmt: skip
    return call.builder.resize(call.tensor(), taps, mode == "linear", call.where)


def _pad(call: Call) -> str:
    pads = call.constant(1) if len(call.inputs) > 1 else call.attributes["pads"]
    value = call.constant(2, call.get("value", 0.0))
    rank = call.builder.spatial + 2
    axes = [int(axis) % rank for axis in np.ravel(call.constant(3, np.arange(rank)))]
    listed = [int(n) for n in np.ravel(pads)]
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = listed[index], listed[index + len(axes)]
    mode = call.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge", "wrap"):
        raise call.refuse(f"mode {mode!r}")
    number = float(np.ravel(value)[0])
    return call.builder.pad(call.tensor(), before, after, call.where, mode=mode, value=number)


def _slice(call: Call) -> Seen:
    seen = call.seen()
    shape = shape_of(call.builder, seen)
    if len(call.inputs) > 1:
        starts, ends = call.constant(1), call.constant(2)
        axes = call.constant(3, np.arange(len(starts)))
        steps = call.constant(4, np.ones(len(starts), np.int64))
    else:
        starts, ends = call.attributes["starts"], call.attributes["ends"]
        axes, steps = call.get("axes", list(range(len(starts)))), [1] * len(starts)
    for axis, a, b, s in zip(axes, starts, ends, steps, strict=True):
        if int(s) < 1:
            raise call.refuse("backwards")
        place = int(axis) % len(shape)
        span = slice(*slice(int(a), int(b), int(s)).indices(shape[place]))
        if span != slice(0, shape[place], 1):
            seen = view_ops.cut(call, seen, place, span)
    return seen


def _gather(call: Call) -> Seen:
    """One index along an axis."""
    index, seen = call.constant(1), call.seen()
    shape = shape_of(call.builder, seen)
    place = int(call.get("axis", 0)) % len(shape)
    if np.size(index) != 1:
        raise call.refuse("of several indices")
    at = int(np.ravel(index)[0]) % shape[place]
    return view_ops.cut(call, seen, place, slice(at, at + 1, 1), drop=np.ndim(index) == 0)


def _same(call: Call) -> str:
    return call.tensor()


def _instance_norm(call: Call) -> Any:
    value = call.inputs[0]
    weight, bias = np.ravel(call.constant(1)), np.ravel(call.constant(2))
    epsilon = call.get("epsilon", 1e-5)
    if not isinstance(value, Grouped):
        channels = call.builder.shape(call.tensor())[1]
        return call.builder.norm(call.tensor(), channels, weight, bias, epsilon, call.where)
    if np.any(weight != weight[0]) or np.any(bias != bias[0]):
        raise call.refuse("of groups with weights of their own")
    channels = call.builder.shape(value.value)[1]
    scales, shifts = np.full(channels, weight[0]), np.full(channels, bias[0])
    result = call.builder.norm(value.value, value.groups, scales, shifts, epsilon, call.where)
    return Grouped(result, value.groups)


def _reshape(call: Call) -> Any:
    """Channels in groups, and back: how exporters write group norm; nothing else."""
    value, shape = call.inputs[0], [int(n) for n in np.ravel(call.constant(1))]
    grouped = isinstance(value, Grouped)
    have = call.builder.shape(value.value) if grouped else shape_of(call.builder, call.seen())
    if not call.get("allowzero", 0):
        shape = [have[at] if n == 0 and at < len(have) else n for at, n in enumerate(shape)]
    known = int(np.prod([n for n in shape if n > 0]))
    total = int(np.prod(have))
    if shape.count(-1) == 1 and known and total % known == 0:
        shape = [total // known if n == -1 else n for n in shape]
    if tuple(shape) == have and grouped:
        return value.value
    three = len(shape) == 3 and not grouped and shape[0] == 1 and shape[1] > 0
    if not grouped:
        moved = reshaped(call.builder, value, shape)
        if moved is not None:
            return moved
    if three and have[1] % shape[1] == 0 and shape[1] * shape[2] == total:
        return Grouped(call.tensor(), shape[1])
    raise call.refuse(f"{have} to {tuple(shape)[:8]}")


def _group_norm(call: Call) -> str:
    value, groups = call.tensor(), int(call.attributes["num_groups"])
    channels = call.builder.shape(value)[1]
    weight, bias = np.ravel(call.constant(1)), np.ravel(call.constant(2))
    if len(weight) == groups != channels:  # opset 18: one a group
        weight, bias = np.repeat(weight, channels // groups), np.repeat(bias, channels // groups)
    return call.builder.norm(value, groups, weight, bias, call.get("epsilon", 1e-5), call.where)


def _layer_norm(call: Call) -> Seen:
    seen = call.seen()
    rank = len(shape_of(call.builder, seen))
    count = rank - int(call.get("axis", -1)) % rank
    return view_ops.layer_norm(
        call, seen, count, call.constant(1), call.constant(2), call.get("epsilon", 1e-5)
    )


def _prelu(call: Call) -> str:
    slope = call.constant(1)
    channels = call.builder.shape(call.tensor())[1]
    if np.size(slope) not in (1, channels) or (np.ndim(slope) and np.shape(slope)[-1] not in (
        1, np.size(slope)
    )):  # fmt: skip
        raise call.refuse("with a slope for every voxel")
    return call.builder.prelu(call.tensor(), slope, call.where)


def _gelu(call: Call) -> str:
    kind: Any = "gelu_tanh" if call.get("approximate", "none") == "tanh" else "gelu"
    return call.builder.activation(call.tensor(), Activation(kind), call.where)


def _clip(call: Call) -> str:
    low, high = (
        call.get(name, default) if call.constant(index) is None else call.constant(index)
        for index, name, default in ((1, "min", -np.inf), (2, "max", np.inf))
    )
    clip = Activation("clip", float(np.ravel(low)[0]), float(np.ravel(high)[0]))
    return call.builder.activation(call.tensor(), clip, call.where)


def _hard_sigmoid(call: Call) -> str:
    scaled = call.builder.arithmetic("mul", call.tensor(), call.get("alpha", 0.2), call.where)
    moved = call.builder.arithmetic("add", scaled, call.get("beta", 0.5), call.where)
    return call.builder.activation(moved, Activation("clip", 0.0, 1.0), call.where)


def _softmax(call: Call) -> Seen:
    return view_ops.softmax(
        call, call.seen(), int(call.get("axis", -1)), log=call.op == "LogSoftmax"
    )


def _global_pool(call: Call) -> str:
    kind: Any = "max" if call.op == "GlobalMaxPool" else "mean"
    return reductions.reduce(call.builder, call.tensor(), (1, 2, 3), kind, call.where)


def _reduction(kind: Any) -> Callable[[Call], Seen]:
    def handler(call: Call) -> Seen:
        axes = call.constant(1, call.get("axes", None))
        if axes is None or np.size(axes) == 0:
            raise call.refuse("over everything, the batch axis too")
        listed = [int(n) for n in np.ravel(axes)]
        return view_ops.reduce(call, call.seen(), kind, listed, keep=bool(call.get("keepdims", 1)))

    return handler


def _transpose(call: Call) -> Seen:
    seen = call.seen()
    rank = len(shape_of(call.builder, seen))
    order = [int(n) for n in call.get("perm", list(range(rank))[::-1])]
    return _moved(call, permuted(call.builder, seen, order), f"to the order {order}")


def _squeeze(call: Call) -> Seen:
    seen = call.seen()
    have = shape_of(call.builder, seen)
    axes = call.constant(1, call.get("axes", None))
    if call.op == "Unsqueeze":
        rank = len(have) + np.size(axes)
        wanted = [int(n) + rank * (n < 0) for n in np.ravel(axes)]
        if not all(0 < n < rank for n in wanted):
            raise call.refuse(f"at axes {wanted[:8]} of {rank}")
        shape = list(have)
        for at in sorted(wanted):
            shape.insert(at, 1)
    else:
        gone = [at for at, n in enumerate(have) if n == 1 and at]
        if axes is not None:
            gone = [int(n) % len(have) for n in np.ravel(axes)]
            if any(have[at] != 1 for at in gone):
                raise call.refuse(f"axes {gone[:8]} of {have}")
        shape = [n for at, n in enumerate(have) if at not in gone]
    return _moved(call, reshaped(call.builder, seen, shape), f"{have} to {tuple(shape)}")


def _flatten(call: Call) -> Seen:
    seen = call.seen()
    have = shape_of(call.builder, seen)
    at = int(call.get("axis", 1))
    at = at + len(have) if at < 0 else at
    if not 0 < at <= len(have):
        raise call.refuse(f"at axis {at}: the batch stays")
    shape = [int(np.prod(have[:at])), int(np.prod(have[at:]))]
    return _moved(call, reshaped(call.builder, seen, shape), f"{have} to {tuple(shape)}")


def _moved(call: Call, result: Seen | None, what: str) -> Seen:
    if result is None:
        raise call.refuse(what)
    return result


def _gemm(call: Call) -> Seen:
    weight = np.asarray(call.constant(1), np.float64)
    if call.get("transA", 0) or weight.ndim != 2:
        raise call.refuse("of a transposed input")
    weight = (weight if call.get("transB", 0) else weight.T) * call.get("alpha", 1.0)
    bias = call.constant(2)
    bias = None if bias is None else np.asarray(bias, np.float64) * call.get("beta", 1.0)
    return linear(call.builder, call.seen(), weight, bias, call.op, call.where)


def _matmul(call: Call) -> Seen:
    weight = np.asarray(call.constant(1))
    if weight.ndim != 2:
        raise call.refuse("but by a stored matrix from the right")
    return linear(call.builder, call.seen(), weight.T, None, call.op, call.where)


def _expand(call: Call) -> str:
    shape = [int(n) for n in np.ravel(call.constant(1))]
    have = call.builder.shape(call.tensor())
    wanted = [1] * (len(have) - len(shape)) + shape
    if len(shape) > len(have) or wanted[0] != 1 or min(wanted) < 1:
        raise call.refuse(f"{have} to {tuple(shape)}")
    c, *zyx = (max(a, b) for a, b in zip(have[1:], wanted[1:], strict=True))
    z, y, x = [1] * (3 - len(zyx)) + zyx
    return call.builder.expand(call.tensor(), (c, z, y, x), call.where)


def _space_to_depth(call: Call) -> str:
    builder, factor = call.builder, int(call.attributes["blocksize"])
    shape = builder.shape(call.tensor())
    blocks = space_to_depth(builder, call.tensor(), factor, call.where)
    # Here channels are (block, c), not (c, block).
    count = factor**builder.spatial
    parts = [
        builder.slice(blocks, [0, n, *[0] * builder.spatial], list(builder.shape(blocks)),
                      [1, count, *[1] * builder.spatial], call.where)
        for n in range(count)
    ]  # fmt: skip
    return builder.concat(parts, call.where) if shape[1] > 1 else blocks


def _extreme(kind: str) -> Callable[[Call], Any]:
    def handler(call: Call) -> Any:
        result = call.inputs[0]
        for other in call.inputs[1:]:
            result = call.builder.arithmetic(kind, result, other, call.where)
        return result

    return handler


def _softplus(call: Call) -> str:
    return call.builder.activation(call.tensor(), Activation("softplus"), call.where)


def _selu(call: Call) -> str:
    elu = Activation("elu", float(call.get("alpha", 1.67326319217681884765625)))
    value = call.builder.activation(call.tensor(), elu, call.where)
    gamma = float(call.get("gamma", 1.05070102214813232421875))
    return call.builder.arithmetic("mul", value, gamma, call.where)


def _celu(call: Call) -> str:
    alpha, builder, where = float(call.get("alpha", 1.0)), call.builder, call.where
    value = builder.arithmetic("div", call.tensor(), alpha, where)
    value = builder.activation(value, Activation("elu", 1.0), where)
    return builder.arithmetic("mul", value, alpha, where)


def _softsign(call: Call) -> str:
    size = call.builder.activation(call.tensor(), Activation("abs"), call.where)
    size = call.builder.arithmetic("add", size, 1.0, call.where)
    return call.builder.arithmetic("div", call.tensor(), size, call.where)


def _cast(call: Call) -> str:
    if call.attributes["to"] not in (1, 10, 11, 16):
        raise call.refuse("to no float")
    return call.tensor()


def _depth_to_space(call: Call) -> str:
    mode = call.get("mode", "DCR")
    if mode not in ("DCR", "CRD"):
        raise call.refuse(f"in mode {mode}")
    return call.builder.depth_to_space(
        call.tensor(), call.attributes["blocksize"], call.where, block_first=mode == "DCR"
    )


def _negative(call: Call) -> str:
    return call.builder.arithmetic("mul", call.tensor(), -1.0, call.where)


def _power(call: Call) -> str:
    exponent = np.ravel(call.constant(1))
    if len(exponent) != 1:
        raise call.refuse("to several powers")
    return power(call.builder, call.tensor(), float(exponent[0]), call.op, call.where)


def _sum(call: Call) -> str:
    total = call.tensor()
    for index in range(1, len(call.inputs)):
        total = call.builder.arithmetic("add", total, call.inputs[index], call.where)
    return total


def _split(call: Call) -> tuple[str, ...]:
    value = call.tensor()
    shape = call.builder.shape(value)
    axis = int(call.get("axis", 0)) % len(shape)
    sizes = call.constant(1, call.get("split", None))
    if sizes is None:
        count = int(call.get("num_outputs", call.outputs))
        each = -(-shape[axis] // max(1, count))
        sizes = [min(each, shape[axis] - at) for at in range(0, shape[axis], each)]
    parts, at = [], 0
    for length in np.ravel(sizes):
        start, stop = [0] * len(shape), list(shape)
        start[axis], stop[axis] = at, at + int(length)
        if length < 1 or stop[axis] > shape[axis]:
            raise call.refuse("into parts that do not fit")
        parts.append(call.builder.slice(value, start, stop, [1] * len(shape), call.where))
        at += int(length)
    return tuple(parts)


HANDLERS: dict[str, Callable[[Call], Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "BatchNormalization": _batch_norm,
    "Relu": _activation("relu"),
    "LeakyRelu": _activation("leaky_relu", 0.01),
    "Elu": _activation("elu", 1.0),
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Add": _arithmetic("add"),
    "Sub": _arithmetic("sub"),
    "Mul": _arithmetic("mul"),
    "Div": _arithmetic("div"),
    "Sum": _sum,
    "Neg": _negative,
    "Pow": _power,
    "Abs": _activation("abs"),
    "Erf": _activation("erf"),
    "HardSwish": _activation("hardswish"),
    "HardSigmoid": _hard_sigmoid,
    "Gelu": _gelu,
    "Clip": _clip,
    "PRelu": _prelu,
    "Softmax": _softmax,
    "LogSoftmax": _softmax,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "LayerNormalization": _layer_norm,
    "Reshape": _reshape,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "ReduceMean": _reduction("mean"),
    "ReduceSum": _reduction("sum"),
    "ReduceMax": _reduction("max"),
    "ReduceMin": _reduction("min"),
    "Transpose": _transpose,
    "Squeeze": _squeeze,
    "Unsqueeze": _squeeze,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "Expand": _expand,
    "SpaceToDepth": _space_to_depth,
    "Max": _extreme("max"),
    "Min": _extreme("min"),
    "Exp": _activation("exp"),
    "Log": _activation("log"),
    "Sqrt": _activation("sqrt"),
    "Reciprocal": _activation("reciprocal"),
    "Mish": _activation("mish"),
    "Softplus": _softplus,
    "Softsign": _softsign,
    "Selu": _selu,
    "Celu": _celu,
    "Cast": _cast,
    "DepthToSpace": _depth_to_space,
    "Split": _split,
    "Concat": _concat,
    "MaxPool": _pool("max"),
    "AveragePool": _pool("average"),
    "Resize": _resize,
    "Upsample": _resize,
    "Pad": _pad,
    "Slice": _slice,
    "Identity": _same,
    "Dropout": _same,
}


ELEMENTWISE = frozenset((
    "Relu", "LeakyRelu", "Elu", "Sigmoid", "Tanh", "Add", "Sub", "Mul", "Div", "Sum", "Neg", "Pow",
    "Abs", "Erf", "HardSwish", "HardSigmoid", "Gelu", "Clip", "Max", "Min", "Exp", "Log", "Sqrt",
    "Reciprocal", "Mish", "Softplus", "Softsign", "Selu", "Celu", "Cast", "Identity", "Dropout",
))  # fmt: skip
"""Ops of one voxel each: they do not mind how values are seen."""
