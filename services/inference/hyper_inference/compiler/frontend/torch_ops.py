"""How each aten op becomes nodes of the graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from hyper_inference.compiler.frontend import torch_views
from hyper_inference.compiler.frontend.builder import power, space_to_depth, taps_of
from hyper_inference.compiler.frontend.reductions import adaptive_pool, dilated_max_pool
from hyper_inference.compiler.frontend.torch_call import Call
from hyper_inference.compiler.ir import Activation


def _conv(call: Call) -> str:
    weight, bias = call.constant("weight"), call.constant("bias")
    spatial = call.builder.spatial
    stride, dilation = call.get("stride", 1), call.get("dilation", 1)
    if call.get("transposed", False) or "transpose" in call.op:
        return call.builder.conv_transpose(
            call.tensor(), weight, bias, call.where, stride=stride, dilation=dilation,
            padding=call.get("padding", 0), output_padding=call.get("output_padding", 0),
            groups=call.get("groups", 1),
        )  # fmt: skip
    padding = call.get("padding", 0)
    if isinstance(padding, str):
        each = call.builder.lift(dilation, 1)[3 - spatial :]
        total = [
            d * (k - 1) * (padding == "same") for d, k in zip(each, weight.shape[2:], strict=True)
        ]
        before = [n // 2 for n in total]
        after = [n - b for n, b in zip(total, before, strict=True)]
    else:
        before = after = padding
    return call.builder.conv(
        call.tensor(), weight, bias, call.where, stride=stride, dilation=dilation,
        pad_before=before, pad_after=after, groups=call.get("groups", 1),
    )  # fmt: skip


def _batch_norm(call: Call) -> Any:
    if call.get("training", False):
        raise call.refuse("in training mode; call eval() before exporting")
    mean, variance = call.constant("running_mean"), call.constant("running_var")
    if mean is None or variance is None:
        raise call.refuse("without running statistics")
    epsilon = float(call.get("eps", 1e-5))
    weight, bias = call.constant("weight"), call.constant("bias")
    result = call.builder.batch_norm(
        call.tensor(), weight, bias, mean, variance, epsilon, call.where
    )
    return (result, None, None) if "native" in call.op else result


def _activation(kind: Any, alpha_name: str = "", default: float = 0.0) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        name = "input" if "input" in call.values else "self"
        if float(call.get("scale", 1)) != 1 or float(call.get("input_scale", 1)) != 1:
            raise call.refuse("with a scale")
        alpha = float(call.get(alpha_name, default)) if alpha_name else 0.0
        return call.builder.activation(call.tensor(name), Activation(kind, alpha), call.where)

    return handler


def _arithmetic(kind: str) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        if call.get("rounding_mode") is not None:
            raise call.refuse("with rounding")
        left, right = call.inputs[0], call.inputs[1]
        alpha = float(call.get("alpha", 1))
        if alpha != 1:
            scaled = isinstance(right, str)
            right = call.builder.arithmetic("mul", right, alpha, call.where) if scaled else (
                np.asarray(right, np.float64) * alpha
            )  # fmt: skip
        return call.builder.arithmetic(kind, left, right, call.where)

    return handler


def _reversed_sub(call: Call) -> str:
    if call.get("alpha", 1) != 1:
        raise call.refuse("with alpha")
    return call.builder.arithmetic("sub", call.inputs[1], call.inputs[0], call.where)


def _pool(kind: Any) -> Callable[[Call], Any]:
    def handler(call: Call) -> Any:
        builder = call.builder
        kernel = call.get("kernel_size")
        stride = call.get("stride") or kernel
        padding = call.get("padding", 0)
        gaps = builder.lift(call.get("dilation", 1), 1)
        if gaps != (1, 1, 1) and kind == "max" and not call.get("ceil_mode", False):
            result = dilated_max_pool(
                builder, call.tensor("self"), builder.lift(kernel, 1), builder.lift(stride, 1),
                builder.lift(padding, 0), gaps, call.where,
            )  # fmt: skip
            return (result, None) if "with_indices" in call.op else result
        if gaps != (1, 1, 1):
            raise call.refuse("with dilation and ceil_mode")
        if call.get("divisor_override") is not None:
            raise call.refuse("with divisor_override")
        result = builder.pool(
            call.tensor("self"), kind, call.where, kernel=kernel, stride=stride,
            pad_before=padding, pad_after=padding,
            count_pad=bool(call.get("count_include_pad", True)),
            ceil=bool(call.get("ceil_mode", False)),
        )  # fmt: skip
        return (result, None) if "with_indices" in call.op else result

    return handler


def _upsample(linear: bool) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        name = "input" if "input" in call.values else "self"
        value = call.tensor(name)
        sizes = call.builder.shape(value)[2:]
        output = call.get("output_size")
        scales = call.get("scale_factors")
        if scales is None:
            per_axis = [call.values.get(f"scales_{axis}") for axis in "dhw"]
            known = [scale for scale in [*per_axis, call.values.get("scales")] if scale is not None]
            scales = known if len(known) == len(sizes) else None
        if output is None:
            output = [int(np.floor(n * s)) for n, s in zip(sizes, scales, strict=True)]
        align = bool(call.get("align_corners", False))
        coordinates = "asymmetric" if not linear else "align_corners" if align else "half_pixel"
        rounding = "floor"
        if "exact" in call.op:
            coordinates, rounding = "half_pixel", "round_prefer_ceil"
        taps = [
            taps_of(n, int(out), linear=linear, coordinates=coordinates, rounding=rounding,
                    step=None if scales is None else 1 / float(scales[axis]))
            for axis, (n, out) in enumerate(zip(sizes, output, strict=True))
        ]  # fmt: skip
        return call.builder.resize(value, taps, linear, call.where)

    return handler


def _pad(call: Call) -> str:
    value = call.tensor("self")
    listed = [int(n) for n in call.get("pad")]
    rank = call.builder.spatial + 2
    before, after = [0] * rank, [0] * rank
    for index in range(len(listed) // 2):
        before[rank - 1 - index], after[rank - 1 - index] = listed[2 * index : 2 * index + 2]
    mode = {
        "constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap",
    }.get(call.get("mode", "constant"))  # fmt: skip
    if mode is None:
        raise call.refuse(f"mode {call.get('mode')!r}")
    number = float(call.get("value", 0.0))
    checked: Any = mode
    return call.builder.pad(value, before, after, call.where, mode=checked, value=number)


def _instance_norm(call: Call) -> str:
    value = call.tensor()
    weight, bias = call.constant("weight"), call.constant("bias")
    epsilon = float(call.get("eps", 1e-5))
    if not call.get("use_input_stats", True):
        mean, variance = call.constant("running_mean"), call.constant("running_var")
        return call.builder.batch_norm(value, weight, bias, mean, variance, epsilon, call.where)
    channels = call.builder.shape(value)[1]
    return call.builder.norm(value, channels, weight, bias, epsilon, call.where)


def _group_norm(call: Call) -> Any:
    native = "native" in call.op
    groups = int(call.get("group" if native else "num_groups"))
    result = call.builder.norm(
        call.tensor(), groups, call.constant("weight"), call.constant("bias"),
        float(call.get("eps", 1e-5)), call.where,
    )  # fmt: skip
    return (result, None, None) if native else result


def _prelu(call: Call) -> str:
    return call.builder.prelu(call.tensor("self"), call.constant("weight"), call.where)


def _gelu(call: Call) -> str:
    kind: Any = "gelu_tanh" if call.get("approximate", "none") == "tanh" else "gelu"
    return call.builder.activation(call.tensor("self"), Activation(kind), call.where)


def _clip(low: float | None, high: float | None) -> Callable[[Call], str]:
    def handler(call: Call) -> str:
        least = call.get("min_val", call.get("min", -np.inf if low is None else low))
        most = call.get("max_val", call.get("max", np.inf if high is None else high))
        clip = Activation("clip", float(least), float(most))
        return call.builder.activation(call.tensor("self"), clip, call.where)

    return handler


def _hardsigmoid(call: Call) -> str:
    scaled = call.builder.arithmetic("mul", call.tensor("self"), 1 / 6, call.where)
    moved = call.builder.arithmetic("add", scaled, 0.5, call.where)
    return call.builder.activation(moved, Activation("clip", 0.0, 1.0), call.where)


def _adaptive_pool(kind: Any) -> Callable[[Call], Any]:
    def handler(call: Call) -> Any:
        value = call.tensor("self")
        sizes = call.get("output_size")
        sizes = [sizes] if isinstance(sizes, int) else sizes
        result = adaptive_pool(call.builder, value, kind, sizes, call.where)
        return (result, None) if "max" in call.op else result

    return handler


def _pixel_shuffle(call: Call) -> str:
    return call.builder.depth_to_space(
        call.tensor("self"), int(call.get("upscale_factor")), call.where
    )


def _negative(call: Call) -> str:
    return call.builder.arithmetic("mul", call.tensor("self"), -1.0, call.where)


def _power(call: Call) -> str:
    builder, value, where = call.builder, call.tensor("self"), call.where
    exponent = call.get("exponent", 2 if "square" in call.op else None)
    if not isinstance(exponent, (int, float)):
        raise call.refuse("to a power that is computed")
    return power(builder, value, float(exponent), call.op, where)


def _rsqrt(call: Call) -> str:
    root = call.builder.activation(call.tensor("self"), Activation("sqrt"), call.where)
    return call.builder.activation(root, Activation("reciprocal"), call.where)


def _softplus(call: Call) -> str:
    beta, builder, where = float(call.get("beta", 1)), call.builder, call.where
    value = builder.arithmetic("mul", call.tensor("self"), beta, where)
    soft = builder.activation(value, Activation("softplus"), where)
    return builder.arithmetic("div", soft, beta, where)


def _log_sigmoid(call: Call) -> str:
    less = call.builder.arithmetic("mul", call.tensor("self"), -1.0, call.where)
    soft = call.builder.activation(less, Activation("softplus"), call.where)
    return call.builder.arithmetic("mul", soft, -1.0, call.where)


def _selu(call: Call) -> str:
    elu = Activation("elu", 1.6732632423543772)
    value = call.builder.activation(call.tensor("self"), elu, call.where)
    return call.builder.arithmetic("mul", value, 1.0507009873554805, call.where)


def _celu(call: Call) -> str:
    alpha, builder, where = float(call.get("alpha", 1.0)), call.builder, call.where
    value = builder.arithmetic("div", call.tensor("self"), alpha, where)
    value = builder.activation(value, Activation("elu", 1.0), where)
    return builder.arithmetic("mul", value, alpha, where)


def _glu(call: Call) -> str:
    builder, value = call.builder, call.tensor("self")
    shape = builder.shape(value)
    axis = int(call.get("dim", -1)) % len(shape)
    if axis == 0 or shape[axis] % 2:
        raise call.refuse("along the batch axis, or of an odd size")
    halves = []
    for start in (0, shape[axis] // 2):
        first, last = [0] * len(shape), list(shape)
        first[axis], last[axis] = start, start + shape[axis] // 2
        halves.append(builder.slice(value, first, last, [1] * len(shape), call.where))
    gate = builder.activation(halves[1], Activation("sigmoid"), call.where)
    return builder.arithmetic("mul", halves[0], gate, call.where)


def _channel_shuffle(call: Call) -> str:
    builder, value = call.builder, call.tensor("self")
    shape, groups = builder.shape(value), int(call.get("groups"))
    if groups < 1 or shape[1] % groups:
        raise call.refuse(f"{shape[1]} channels in {groups} groups")
    each = shape[1] // groups
    parts = [
        builder.slice(value, [0, n, *[0] * builder.spatial], list(shape),
                      [1, each, *[1] * builder.spatial], call.where)
        for n in range(each)
    ]  # fmt: skip
    return builder.concat(parts, call.where)


def _pixel_unshuffle(call: Call) -> str:
    return space_to_depth(
        call.builder, call.tensor("self"), int(call.get("downscale_factor")), call.where
    )


def _minimum(kind: str) -> Callable[[Call], Any]:
    def handler(call: Call) -> Any:
        return call.builder.arithmetic(kind, call.inputs[0], call.inputs[1], call.where)

    return handler


def _extreme(kind: str) -> Callable[[Call], Any]:
    """`torch.max` and `min`: of two tensors, or along an axis."""

    def handler(call: Call) -> Any:
        two = len(call.inputs) > 1 and (
            call.is_value(call.inputs[1]) or isinstance(call.inputs[1], np.ndarray)
        )
        return (_minimum(kind) if two else torch_views.HANDLERS[f"aten.{kind}"])(call)

    return handler


def _split(call: Call) -> tuple[str, ...]:
    value = call.tensor("self")
    shape = call.builder.shape(value)
    axis = int(call.get("dim", 0)) % len(shape)
    size = shape[axis]
    if "chunk" in call.op:
        each: Any = -(-size // int(call.get("chunks")))
    else:
        each = call.get("split_sizes", call.get("split_size"))
    if isinstance(each, int):
        if each < 1:
            raise call.refuse("into parts of nothing")
        each = [min(each, size - at) for at in range(0, size, each)]
    parts, at = [], 0
    for length in each:
        start, stop = [0] * len(shape), list(shape)
        start[axis], stop[axis] = at, at + int(length)
        parts.append(call.builder.slice(value, start, stop, [1] * len(shape), call.where))
        at += int(length)
    return tuple(parts)


def _size(call: Call) -> int:
    return call.builder.shape(call.tensor("self"))[int(call.get("dim"))]


def _same(call: Call) -> Any:
    if call.get("train", False) is True and "dropout" in call.op:
        raise call.refuse("in training mode; call eval() before exporting")
    return call.inputs[0]


HANDLERS: dict[str, Callable[[Call], Any]] = {
    **torch_views.HANDLERS,
    "aten.max": _extreme("max"),
    "aten.min": _extreme("min"),
    "aten.maximum": _minimum("max"),
    "aten.minimum": _minimum("min"),
    "aten.exp": _activation("exp"),
    "aten.log": _activation("log"),
    "aten.sqrt": _activation("sqrt"),
    "aten.rsqrt": _rsqrt,
    "aten.reciprocal": _activation("reciprocal"),
    "aten.softplus": _softplus,
    "aten.mish": _activation("mish"),
    "aten.mish_": _activation("mish"),
    "aten.log_sigmoid": _log_sigmoid,
    "aten.selu": _selu,
    "aten.selu_": _selu,
    "aten.celu": _celu,
    "aten.celu_": _celu,
    "aten.square": _power,
    "aten.glu": _glu,
    "aten.channel_shuffle": _channel_shuffle,
    "aten.native_channel_shuffle": _channel_shuffle,
    "aten.pixel_unshuffle": _pixel_unshuffle,
    "aten.exp_": _activation("exp"),
    "aten.conv2d": _conv,
    "aten.conv3d": _conv,
    "aten.convolution": _conv,
    "aten.conv_transpose2d": _conv,
    "aten.conv_transpose3d": _conv,
    "aten.batch_norm": _batch_norm,
    "aten._native_batch_norm_legit_no_training": _batch_norm,
    "aten.relu": _activation("relu"),
    "aten.relu_": _activation("relu"),
    "aten.leaky_relu": _activation("leaky_relu", "negative_slope", 0.01),
    "aten.leaky_relu_": _activation("leaky_relu", "negative_slope", 0.01),
    "aten.elu": _activation("elu", "alpha", 1.0),
    "aten.elu_": _activation("elu", "alpha", 1.0),
    "aten.silu": _activation("silu"),
    "aten.silu_": _activation("silu"),
    "aten.hardswish": _activation("hardswish"),
    "aten.hardswish_": _activation("hardswish"),
    "aten.abs": _activation("abs"),
    "aten.erf": _activation("erf"),
    "aten.gelu": _gelu,
    "aten.prelu": _prelu,
    "aten._prelu_kernel": _prelu,
    "aten.relu6": _clip(0.0, 6.0),
    "aten.relu6_": _clip(0.0, 6.0),
    "aten.hardtanh": _clip(-1.0, 1.0),
    "aten.hardtanh_": _clip(-1.0, 1.0),
    "aten.clamp": _clip(None, None),
    "aten.clamp_": _clip(None, None),
    "aten.clamp_min": _clip(None, None),
    "aten.clamp_max": _clip(None, None),
    "aten.hardsigmoid": _hardsigmoid,
    "aten.hardsigmoid_": _hardsigmoid,
    "aten.instance_norm": _instance_norm,
    "aten.group_norm": _group_norm,
    "aten.native_group_norm": _group_norm,
    "aten.adaptive_avg_pool2d": _adaptive_pool("average"),
    "aten.adaptive_avg_pool3d": _adaptive_pool("average"),
    "aten.adaptive_max_pool2d": _adaptive_pool("max"),
    "aten.adaptive_max_pool3d": _adaptive_pool("max"),
    "aten.pixel_shuffle": _pixel_shuffle,
    "aten.neg": _negative,
    "aten.pow": _power,
    "aten.split": _split,
    "aten.split_with_sizes": _split,
    "aten.chunk": _split,
    "aten.sym_size": _size,
    "aten.sigmoid": _activation("sigmoid"),
    "aten.sigmoid_": _activation("sigmoid"),
    "aten.tanh": _activation("tanh"),
    "aten.tanh_": _activation("tanh"),
    "aten.add": _arithmetic("add"),
    "aten.add_": _arithmetic("add"),
    "aten.sub": _arithmetic("sub"),
    "aten.sub_": _arithmetic("sub"),
    "aten.rsub": _reversed_sub,
    "aten.mul": _arithmetic("mul"),
    "aten.mul_": _arithmetic("mul"),
    "aten.div": _arithmetic("div"),
    "aten.div_": _arithmetic("div"),
    "aten.max_pool2d": _pool("max"),
    "aten.max_pool3d": _pool("max"),
    "aten.max_pool2d_with_indices": _pool("max"),
    "aten.max_pool3d_with_indices": _pool("max"),
    "aten.avg_pool2d": _pool("average"),
    "aten.avg_pool3d": _pool("average"),
    "aten.upsample_nearest2d": _upsample(linear=False),
    "aten.upsample_nearest3d": _upsample(linear=False),
    "aten._upsample_nearest_exact2d": _upsample(linear=False),
    "aten._upsample_nearest_exact3d": _upsample(linear=False),
    "aten.upsample_bilinear2d": _upsample(linear=True),
    "aten.upsample_trilinear3d": _upsample(linear=True),
    "aten.pad": _pad,
    "aten.constant_pad_nd": _pad,
    "aten.clone": _same,
    "aten.contiguous": _same,
    "aten.detach": _same,
    "aten.dropout": _same,
    "aten.dropout_": _same,
    "aten.feature_dropout": _same,
    "aten.alias": _same,
    "aten.to": _same,
    "aten.alpha_dropout": _same,
    "aten.feature_alpha_dropout": _same,
    "aten.lift_fresh_copy": _same,
}


ELEMENTWISE = frozenset(
    name for name, handler in HANDLERS.items()
    if handler in (_same, _negative, _power, _rsqrt, _softplus, _log_sigmoid, _selu, _celu, _gelu,
                   _hardsigmoid, _reversed_sub)
    or getattr(handler, "__qualname__", "").split(".")[0] in (
        "_activation", "_arithmetic", "_clip", "_minimum"
    )
)  # fmt: skip
"""Ops of one voxel each: they do not mind how values are seen."""
