"""ONNX files -> graph. Nothing in a file is trusted: sizes, names and types are checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.onnx_call import Call, Grouped
from hyper_inference.compiler.frontend.onnx_constants import fold, read_tensor
from hyper_inference.compiler.frontend.onnx_file import OnnxModel
from hyper_inference.compiler.frontend.onnx_ops import ELEMENTWISE, HANDLERS
from hyper_inference.compiler.frontend.view_ops import elementwise
from hyper_inference.compiler.frontend.views import View, shape_of, view_of
from hyper_inference.compiler.ir import Graph
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp

MAX_NODES = 100_000
_DOMAINS = ("", "ai.onnx")
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


def input_shape(model: OnnxModel) -> tuple[int, ...]:
    """Declared shape of the one input, -1 where any size goes.

    Raises:
        InvalidModelError: there are several inputs or outputs.
    """
    inputs = _tensor_inputs(model.proto)
    if len(inputs) != 1 or len(model.proto.graph.output) != 1:
        raise InvalidModelError(
            f"the model has {len(inputs)} inputs and {len(model.proto.graph.output)} outputs; the "
            "service takes models with one of each"
        )
    return _dims(inputs[0])


def output_shape(model: OnnxModel) -> tuple[int, ...]:
    """Declared shape of the output, -1 where it depends on the input."""
    return _dims(model.proto.graph.output[0])


def _dims(value: Any) -> tuple[int, ...]:
    dims = value.type.tensor_type.shape.dim
    return tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else -1 for d in dims)


def _tensor_inputs(model: onnx.ModelProto) -> list[Any]:
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    for value in inputs:
        if value.type.tensor_type.elem_type not in _FLOATS:
            raise InvalidModelError(f"input {value.name[:80]!r} is not a tensor of floats")
    return inputs


def from_onnx(parsed: OnnxModel, shapes: Sequence[Sequence[int]]) -> Graph:
    """The graph of a model for inputs of `shapes`, `(n, c, y, x)` or `(n, c, z, y, x)` each.

    Raises:
        InvalidModelError: the file is malformed.
        UnsupportedOp: an op or a use of it is not covered.
        ShapeError: the shape does not fit the model.
    """
    model = parsed.proto
    inputs = _tensor_inputs(model)
    if len(inputs) != len(shapes):
        raise InvalidModelError(
            f"the model has {len(inputs)} inputs, but {len(shapes)} shapes were given"
        )
    for value, shape in zip(inputs, shapes, strict=True):
        declared = _dims(value)
        fits = len(declared) == len(shape) and all(
            want in (-1, have) for want, have in zip(declared[1:], shape[1:], strict=True)
        )
        if not fits:
            raise ShapeError(
                f"the model takes {declared} (-1: any), which an input of {tuple(shape)} does not "
                "fit"
            )
    if len(model.graph.node) > MAX_NODES:
        raise InvalidModelError(f"the model has more than {MAX_NODES} nodes")
    reader = _Reader(parsed, [value.name for value in inputs], shapes)
    for node in model.graph.node:
        reader.read(node)
    views = []
    for output in model.graph.output:
        result = reader.values.get(output.name)
        if not isinstance(result, (str, View)):
            raise InvalidModelError(f"output {output.name[:80]!r} is not computed from an input")
        views.append(view_of(reader.builder, result))
    return reader.builder.finish(*(v.value for v in views), axes=[v.axes for v in views])


class _Reader:
    """Values by ONNX name: strings and views are computed, arrays are constants."""

    def __init__(
        self, parsed: OnnxModel, inputs: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> None:
        model = parsed.proto
        self.builder = GraphBuilder([1, *shapes[0][1:]], name="onnx")
        self.values: dict[str, Any] = {}
        if model.graph.sparse_initializer or model.functions:
            raise InvalidModelError("sparse weights and local functions are not covered")
        for tensor, raw in zip(model.graph.initializer, parsed.raw, strict=True):
            self.values[tensor.name] = read_tensor(tensor, f"weight {tensor.name[:80]!r}", raw)
        self.values[inputs[0]] = self.builder.input
        for name, shape in zip(inputs[1:], shapes[1:], strict=True):
            self.values[name] = self.builder.add_input([1, *shape[1:]])

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
            handler = HANDLERS.get(node.op_type)
            if handler is None:
                raise UnsupportedOp(node.op_type, where)
            call = Call(self.builder, node.op_type, where, inputs, attributes, len(node.output))
            try:
                if node.op_type in ELEMENTWISE and any(isinstance(v, View) for v in inputs):
                    result = self._elementwise(call, handler)
                else:
                    result = handler(call)
            except (IndexError, KeyError, TypeError, ValueError) as error:
                raise InvalidModelError(
                    f"node {where[:80]!r} ({node.op_type}) is malformed: {error}"
                ) from error
        results = result if isinstance(result, tuple) else (result,)
        for name, value in zip(node.output, results, strict=False):
            self.values[name] = value

    def _elementwise(self, call: Call, handler: Callable[[Call], Any]) -> Any:
        return elementwise(call, call.inputs, lambda given: handler(call.with_inputs(given)))

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
        if op == "Shape" and isinstance(inputs[0], (str, View)):
            shape = np.asarray(shape_of(self.builder, inputs[0]), np.int64)
            return shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
        if not inputs or any(isinstance(value, (str, Grouped, View)) for value in inputs):
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
