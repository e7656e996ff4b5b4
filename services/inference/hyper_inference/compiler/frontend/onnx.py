"""ONNX files -> graph. Nothing in a file is trusted: sizes, names and types are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from hyper_inference.compiler.frontend.builder import GraphBuilder, taps_of
from hyper_inference.compiler.frontend.onnx_constants import fold, read_tensor
from hyper_inference.compiler.ir import Activation, Graph, Taps
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp

MAX_NODES = 100_000
_DOMAINS = ("", "ai.onnx")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def parse(data: bytes) -> onnx.ModelProto:
    """The model in `data`.

    Raises:
        InvalidModelError: these bytes are no ONNX model.
    """
    try:
        model = onnx.ModelProto.FromString(data)
    except DecodeError as error:
        raise InvalidModelError(
            "the model file is not ONNX, or it is cut off; export it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise InvalidModelError("the model file holds no graph; export it again")
    return model


def input_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Declared shape of the input, -1 where any size goes."""
    return _dims(_tensor_input(model))


def output_shape(model: onnx.ModelProto) -> tuple[int, ...]:
    """Declared shape of the output, -1 where it depends on the input."""
    return _dims(model.graph.output[0])


def _dims(value: Any) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in dims)


def _tensor_input(model: onnx.ModelProto) -> Any:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise InvalidModelError(
            f"the model has {len(inputs)} inputs and {len(model.graph.output)} outputs; "
            "one of each is covered"
        )
    if inputs[0].type.tensor_type.elem_type not in _FLOATS:
        raise InvalidModelError(f"input {inputs[0].name[:80]!r} is not a tensor of floats")
    return inputs[0]


def from_onnx(model: onnx.ModelProto, shape: Sequence[int]) -> Graph:
    """The graph of `model` for an input of `shape`, `(n, c, y, x)` or `(n, c, z, y, x)`.

    Raises:
        InvalidModelError: the file is malformed.
        UnsupportedOp: an op or a use of it is not covered.
        ShapeError: the shape does not fit the model.
    """
    value = _tensor_input(model)
    declared = _dims(value)
    fits = len(declared) == len(shape) and all(
        want in (-1, have) for want, have in zip(declared[1:], shape[1:], strict=True)
    )
    if not fits:
        raise ShapeError(
            f"the model takes {declared} (-1: any), which an input of {tuple(shape)} does not fit"
        )
    if len(model.graph.node) > MAX_NODES:
        raise InvalidModelError(f"the model has more than {MAX_NODES} nodes")
    reader = _Reader(model, value.name, shape)
    for node in model.graph.node:
        reader.read(node)
    output = model.graph.output[0].name
    result = reader.values.get(output)
    if not isinstance(result, str):
        raise InvalidModelError(f"output {output[:80]!r} is not computed from the input")
    return reader.builder.finish(result)


class _Reader:
    """Values by ONNX name: a string is a value of the graph, an array is a constant."""

    def __init__(self, model: onnx.ModelProto, input_name: str, shape: Sequence[int]) -> None:
        self.builder = GraphBuilder([1, *shape[1:]], name="onnx")
        self.values: dict[str, Any] = {}
        if model.graph.sparse_initializer or model.functions:
            raise InvalidModelError("sparse weights and local functions are not covered")
        for tensor in model.graph.initializer:
            self.values[tensor.name] = read_tensor(tensor, f"weight {tensor.name[:80]!r}")
        self.values[input_name] = self.builder.input

    def read(self, node: Any) -> None:
        """Add one ONNX node."""
        where = node.name or (node.output[0] if node.output else node.op_type)
        if node.domain not in _DOMAINS:
            raise UnsupportedOp(f"{node.domain}.{node.op_type}", where)
        attributes = {item.name: _attribute(item, where) for item in node.attribute}
        inputs = [self._value(name, where) for name in node.input]
        if not node.output:
            raise InvalidModelError(f"node {where[:80]!r} has no output")
        result = self._constant(node.op_type, inputs, attributes)
        if result is None:
            handler = _HANDLERS.get(node.op_type)
            if handler is None:
                raise UnsupportedOp(node.op_type, where)
            try:
                result = handler(_Call(self.builder, node.op_type, where, inputs, attributes))
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise InvalidModelError(
                    f"node {where[:80]!r} ({node.op_type}) is malformed: {error}"
                ) from error
        self.values[node.output[0]] = result

    def _value(self, name: str, where: str) -> Any:
        if not name:
            return None
        if name not in self.values:
            raise InvalidModelError(f"node {where[:80]!r} reads {name[:80]!r}, which nothing makes")
        return self.values[name]

    def _constant(self, op: str, inputs: list[Any], attributes: dict[str, Any]) -> Any | None:
        if op == "Constant":
            found = [attributes[k] for k in attributes if k.startswith("value")]
            return np.asarray(found[0]) if found else None
        if op == "Shape" and isinstance(inputs[0], str):
            shape = np.asarray(self.builder.shape(inputs[0]), np.int64)
            return shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
        if not inputs or any(isinstance(value, str) for value in inputs):
            return None
        return fold(op, inputs, attributes)


def _attribute(item: Any, where: str) -> Any:
    if item.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
        raise UnsupportedOp("subgraph", where)
    if item.type == onnx.AttributeProto.TENSOR:
        return read_tensor(item.t, f"constant of node {where[:80]!r}")
    try:
        value = onnx.helper.get_attribute_value(item)
    except (ValueError, TypeError) as error:
        raise InvalidModelError(f"node {where[:80]!r}: attribute {item.name[:80]!r}") from error
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class _Call:
    """One node to translate."""

    def __init__(
        self, builder: GraphBuilder, op: str, where: str, inputs: list[Any], attributes: Any
    ) -> None:
        self.builder, self.op, self.where = builder, op, where
        self.inputs, self.attributes = inputs, attributes

    def tensor(self, index: int = 0) -> str:
        """Input `index`, which must be a value of the graph."""
        value = self.inputs[index]
        if not isinstance(value, str):
            raise UnsupportedOp(self.op, self.where, f"input {index} is a constant")
        return value

    def constant(self, index: int, default: Any = None) -> Any:
        """Input `index`, which must be known now."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if isinstance(value, str):
            raise UnsupportedOp(self.op, self.where, f"input {index} is not a constant")
        return default if value is None else value

    def get(self, name: str, default: Any) -> Any:
        """An attribute."""
        return self.attributes.get(name, default)

    def refuse(self, why: str) -> UnsupportedOp:
        """The error for a use that is not covered."""
        return UnsupportedOp(self.op, self.where, why)

    def pads(
        self, kernel: Sequence[int], stride: Any, dilation: Any
    ) -> tuple[list[int], list[int]]:
        """(before, after) along the spatial axes, from `pads` or `auto_pad`."""
        spatial = self.builder.spatial
        mode = self.get("auto_pad", "NOTSET")
        if mode == "VALID":
            return [0] * spatial, [0] * spatial
        if mode in ("SAME_UPPER", "SAME_LOWER"):
            before, after = [], []
            sizes = self.builder.shape(self.tensor())[2:]
            for n, k, s, d in zip(sizes, kernel, stride, dilation, strict=True):
                total = max(0, (-(-n // s) - 1) * s + d * (k - 1) + 1 - n)
                small, large = total // 2, total - total // 2
                before.append(small if mode == "SAME_UPPER" else large)
                after.append(large if mode == "SAME_UPPER" else small)
            return before, after
        pads = [int(n) for n in self.get("pads", [0] * (2 * spatial))]
        if len(pads) != 2 * spatial:
            raise self.refuse(f"pads {pads[:8]} in a {spatial}D net")
        return pads[:spatial], pads[spatial:]


def _conv(call: _Call) -> str:
    weight = call.constant(1)
    ones = [1] * call.builder.spatial
    stride, dilation = call.get("strides", ones), call.get("dilations", ones)
    before, after = call.pads(weight.shape[2:], stride, dilation)
    return call.builder.conv(
        call.tensor(), weight, call.constant(2), call.where,
        stride=stride, dilation=dilation, pad_before=before, pad_after=after,
        groups=call.get("group", 1),
    )  # fmt: skip


def _conv_transpose(call: _Call) -> str:
    plain = (
        call.get("group", 1) == 1
        and not any(call.get("pads", []))
        and not any(call.get("output_padding", []))
        and all(n == 1 for n in call.get("dilations", []))
        and call.get("auto_pad", "NOTSET") in ("NOTSET", "VALID")
        and "output_shape" not in call.attributes
    )
    if not plain:
        raise call.refuse("only without padding, dilation, groups and output_shape")
    stride = call.get("strides", [1] * call.builder.spatial)
    return call.builder.conv_transpose(
        call.tensor(), call.constant(1), call.constant(2), call.where, stride=stride
    )


def _batch_norm(call: _Call) -> str:
    if call.get("training_mode", 0):
        raise call.refuse("in training mode; export the net in eval mode")
    scale, bias, mean, variance = (call.constant(i) for i in range(1, 5))
    return call.builder.batch_norm(
        call.tensor(), scale, bias, mean, variance, call.get("epsilon", 1e-5), call.where
    )


def _activation(kind: Any, default_alpha: float = 0.0) -> Callable[[_Call], str]:
    def handler(call: _Call) -> str:
        activation = Activation(kind, float(call.get("alpha", default_alpha)))
        return call.builder.activation(call.tensor(), activation, call.where)

    return handler


def _arithmetic(kind: str) -> Callable[[_Call], str]:
    def handler(call: _Call) -> str:
        return call.builder.arithmetic(kind, call.inputs[0], call.inputs[1], call.where)

    return handler


def _concat(call: _Call) -> str:
    values = [call.tensor(index) for index in range(len(call.inputs))]
    rank = call.builder.spatial + 2
    if call.get("axis", 1) % rank != 1:
        raise call.refuse("along another axis than the channels")
    return call.builder.concat(values, call.where)


def _pool(kind: Any) -> Callable[[_Call], str]:
    def handler(call: _Call) -> str:
        ones = [1] * call.builder.spatial
        kernel, stride = call.attributes["kernel_shape"], call.get("strides", ones)
        if any(n != 1 for n in call.get("dilations", ones)):
            raise call.refuse("with dilation")
        before, after = call.pads(kernel, stride, ones)
        if call.get("ceil_mode", 0):
            sizes = call.builder.shape(call.tensor())[2:]
            for axis, (n, k, s) in enumerate(zip(sizes, kernel, stride, strict=True)):
                if (n + before[axis] + after[axis] - k) % s:
                    raise call.refuse("with ceil_mode on a size that its stride does not divide")
        return call.builder.pool(
            call.tensor(), kind, call.where, kernel=kernel, stride=stride,
            pad_before=before, pad_after=after,
            count_pad=bool(call.get("count_include_pad", 0)),
        )  # fmt: skip

    return handler


def _resize(call: _Call) -> str:
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


def _pad(call: _Call) -> str:
    pads = call.constant(1) if len(call.inputs) > 1 else call.attributes["pads"]
    value = call.constant(2, call.get("value", 0.0))
    rank = call.builder.spatial + 2
    axes = [int(axis) % rank for axis in np.ravel(call.constant(3, np.arange(rank)))]
    listed = [int(n) for n in np.ravel(pads)]
    before, after = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        before[axis], after[axis] = listed[index], listed[index + len(axes)]
    mode = call.get("mode", "constant")
    if mode not in ("constant", "reflect", "edge"):
        raise call.refuse(f"mode {mode!r}")
    number = float(np.ravel(value)[0])
    return call.builder.pad(call.tensor(), before, after, call.where, mode=mode, value=number)


def _slice(call: _Call) -> str:
    shape = call.builder.shape(call.tensor())
    if len(call.inputs) > 1:
        starts, ends = call.constant(1), call.constant(2)
        axes = call.constant(3, np.arange(len(starts)))
        steps = call.constant(4, np.ones(len(starts), np.int64))
    else:
        starts, ends = call.attributes["starts"], call.attributes["ends"]
        axes, steps = call.get("axes", list(range(len(starts)))), [1] * len(starts)
    start, stop, step = [0] * len(shape), list(shape), [1] * len(shape)
    for axis, a, b, s in zip(axes, starts, ends, steps, strict=True):
        if int(s) < 1:
            raise call.refuse("backwards")
        at = int(axis) % len(shape)
        start[at], stop[at], step[at] = slice(int(a), int(b), int(s)).indices(shape[at])
    return call.builder.slice(call.tensor(), start, stop, step, call.where)


def _same(call: _Call) -> str:
    return call.tensor()


_HANDLERS: dict[str, Callable[[_Call], str]] = {
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
