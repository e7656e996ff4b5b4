"""torch modules -> graph, through `torch.export`. The only module that imports torch."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hyper_inference.compiler.frontend.builder import GraphBuilder, taps_of
from hyper_inference.compiler.ir import Activation, Graph
from hyper_inference.errors import InvalidModelError, UnsupportedOp


def is_torch_model(model: Any) -> bool:
    """Whether `model` is a torch module or exported program, without importing torch."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
    return bool(names & {"torch.Module", "torch.ExportedProgram"})


def from_torch(model: Any, shape: Sequence[int]) -> Graph:
    """The graph of a module in eval mode, or of an exported program, for an input of `shape`.

    Raises:
        UnsupportedOp: an op or a use of it is not covered.
        InvalidModelError: the module cannot be exported.
    """
    import torch

    program = model
    if isinstance(model, torch.nn.Module):
        training = {name for name, part in model.named_modules() if part.training}
        model.eval()
        try:
            with torch.no_grad():
                program = torch.export.export(model, (torch.zeros(1, *shape[1:]),))
        except Exception as error:  # torch raises of many kinds, all about the module
            raise InvalidModelError(f"torch.export cannot read this module: {error}") from error
        finally:
            for name, part in model.named_modules():
                part.training = name in training
    return _Reader(program, shape).graph()


class _Reader:
    """Values by fx name: a string is a value of the graph; arrays and numbers are constants."""

    def __init__(self, program: Any, shape: Sequence[int]) -> None:
        self.builder = GraphBuilder([1, *shape[1:]], name="torch")
        self.program = program
        self.values: dict[str, Any] = {}

    def graph(self) -> Graph:
        """Translate every node."""
        signature = self.program.graph_signature
        stored = {**self.program.state_dict, **self.program.constants}
        named = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        users = list(signature.user_inputs)
        if len(users) != 1 or len(signature.user_outputs) != 1:
            raise InvalidModelError(
                f"the module has {len(users)} inputs and {len(signature.user_outputs)} outputs; "
                "one of each is covered"
            )
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name == users[0]:
                    self.values[node.name] = self.builder.input
                else:
                    tensor = stored[named[node.name]]
                    self.values[node.name] = tensor.detach().cpu().numpy()
            elif node.op == "call_function":
                self.values[node.name] = self._call(node)
        result = self.values.get(signature.user_outputs[0])
        if not isinstance(result, str):
            raise InvalidModelError("the module's output is not computed from its input")
        return self.builder.finish(result)

    def _call(self, node: Any) -> Any:
        arguments = [self._argument(value) for value in node.args]
        keywords = {key: self._argument(value) for key, value in node.kwargs.items()}
        if node.target is operator.getitem:
            return arguments[0][arguments[1]] if isinstance(arguments[0], tuple) else arguments[0]
        name = str(node.target)  # "aten.conv2d.default"
        base = ".".join(name.split(".")[:2])
        handler = _HANDLERS.get(base)
        if handler is None:
            raise UnsupportedOp(name, node.name)
        return handler(_Call(self.builder, name, node, arguments, keywords))

    def _argument(self, value: Any) -> Any:
        if type(value).__name__ == "Node":
            return self.values.get(value.name)
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        return value


class _Call:
    """One fx node to translate; arguments by position or by the schema's name."""

    def __init__(
        self, builder: GraphBuilder, op: str, node: Any, arguments: list[Any], keywords: Any
    ) -> None:
        self.builder, self.op, self.where = builder, op, node.name
        self.values: dict[str, Any] = dict(keywords)
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            self.values |= {a.name: v for a, v in zip(schema.arguments, arguments, strict=False)}
        self.inputs = arguments

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by name."""
        value = self.values.get(name)
        return default if value is None else value

    def tensor(self, name: str = "input") -> str:
        """An argument that must be a value of the graph."""
        value = self.values.get(name, self.inputs[0] if name == "input" else None)
        if not isinstance(value, str):
            raise self.refuse(f"{name} is not computed from the net's input")
        return value

    def constant(self, name: str) -> Any:
        """An argument that must be stored with the module (or None)."""
        value = self.values.get(name)
        if isinstance(value, str):
            raise self.refuse(f"{name} is computed from the net's input")
        return value

    def refuse(self, why: str) -> UnsupportedOp:
        """The error for a use that is not covered."""
        return UnsupportedOp(self.op, self.where, why)


def _conv(call: _Call) -> str:
    weight, bias = call.constant("weight"), call.constant("bias")
    spatial = call.builder.spatial
    stride, dilation = call.get("stride", 1), call.get("dilation", 1)
    if call.get("transposed", False) or "transpose" in call.op:
        output_padding = call.builder.lift(call.get("output_padding", 0), 0)
        padding = call.builder.lift(call.get("padding", 0), 0)
        groups = call.get("groups", 1)
        if any(output_padding) or any(padding) or groups != 1:
            raise call.refuse("transposed with padding or groups")
        if call.builder.lift(dilation, 1) != (1, 1, 1):
            raise call.refuse("transposed with dilation")
        return call.builder.conv_transpose(call.tensor(), weight, bias, call.where, stride=stride)
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


def _batch_norm(call: _Call) -> Any:
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


def _activation(kind: Any, alpha_name: str = "", default: float = 0.0) -> Callable[[_Call], str]:
    def handler(call: _Call) -> str:
        name = "input" if "input" in call.values else "self"
        if float(call.get("scale", 1)) != 1 or float(call.get("input_scale", 1)) != 1:
            raise call.refuse("with a scale")
        alpha = float(call.get(alpha_name, default)) if alpha_name else 0.0
        return call.builder.activation(call.tensor(name), Activation(kind, alpha), call.where)

    return handler


def _arithmetic(kind: str) -> Callable[[_Call], str]:
    def handler(call: _Call) -> str:
        if call.get("alpha", 1) != 1 or call.get("rounding_mode") is not None:
            raise call.refuse("with alpha or rounding")
        return call.builder.arithmetic(kind, call.inputs[0], call.inputs[1], call.where)

    return handler


def _reversed_sub(call: _Call) -> str:
    if call.get("alpha", 1) != 1:
        raise call.refuse("with alpha")
    return call.builder.arithmetic("sub", call.inputs[1], call.inputs[0], call.where)


def _concat(call: _Call) -> str:
    rank = call.builder.spatial + 2
    values = call.inputs[0]
    if call.get("dim", 0) % rank != 1 or not all(isinstance(v, str) for v in values):
        raise call.refuse("of constants, or along another axis than the channels")
    return call.builder.concat(values, call.where)


def _pool(kind: Any) -> Callable[[_Call], Any]:
    def handler(call: _Call) -> Any:
        builder = call.builder
        kernel = call.get("kernel_size")
        stride = call.get("stride") or kernel
        padding = call.get("padding", 0)
        if builder.lift(call.get("dilation", 1), 1) != (1, 1, 1):
            raise call.refuse("with dilation")
        if call.get("divisor_override") is not None:
            raise call.refuse("with divisor_override")
        if call.get("ceil_mode", False):
            sizes = builder.lift(builder.shape(call.tensor("self"))[2:], 1)
            lifted = zip(
                sizes, builder.lift(kernel, 1), builder.lift(stride, 1),
                builder.lift(padding, 0), strict=True,
            )  # fmt: skip
            if any((n + 2 * p - k) % s for n, k, s, p in lifted):
                raise call.refuse("with ceil_mode on a size that its stride does not divide")
        result = builder.pool(
            call.tensor("self"), kind, call.where, kernel=kernel, stride=stride,
            pad_before=padding, pad_after=padding,
            count_pad=bool(call.get("count_include_pad", True)),
        )  # fmt: skip
        return (result, None) if "with_indices" in call.op else result

    return handler


def _upsample(linear: bool) -> Callable[[_Call], str]:
    def handler(call: _Call) -> str:
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
        taps = [
            taps_of(n, int(out), linear=linear, coordinates=coordinates,
                    step=None if scales is None else 1 / float(scales[axis]))
            for axis, (n, out) in enumerate(zip(sizes, output, strict=True))
        ]  # fmt: skip
        return call.builder.resize(value, taps, linear, call.where)

    return handler


def _pad(call: _Call) -> str:
    value = call.tensor("self")
    listed = [int(n) for n in call.get("pad")]
    rank = call.builder.spatial + 2
    before, after = [0] * rank, [0] * rank
    for index in range(len(listed) // 2):
        before[rank - 1 - index], after[rank - 1 - index] = listed[2 * index : 2 * index + 2]
    mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}.get(
        call.get("mode", "constant")
    )
    if mode is None:
        raise call.refuse(f"mode {call.get('mode')!r}")
    number = float(call.get("value", 0.0))
    checked: Any = mode
    return call.builder.pad(value, before, after, call.where, mode=checked, value=number)


def _slice(call: _Call) -> str:
    value = call.tensor("self")
    shape = call.builder.shape(value)
    axis = int(call.get("dim", 0)) % len(shape)
    start, stop, step = [0] * len(shape), list(shape), [1] * len(shape)
    chosen = slice(call.get("start"), call.get("end"), int(call.get("step", 1)))
    start[axis], stop[axis], step[axis] = chosen.indices(shape[axis])
    if (start[axis], stop[axis], step[axis]) == (0, shape[axis], 1):
        return value
    return call.builder.slice(value, start, stop, step, call.where)


def _same(call: _Call) -> Any:
    if call.get("train", False) is True and "dropout" in call.op:
        raise call.refuse("in training mode; call eval() before exporting")
    return call.inputs[0]


_HANDLERS: dict[str, Callable[[_Call], Any]] = {
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
    "aten.cat": _concat,
    "aten.max_pool2d": _pool("max"),
    "aten.max_pool3d": _pool("max"),
    "aten.max_pool2d_with_indices": _pool("max"),
    "aten.max_pool3d_with_indices": _pool("max"),
    "aten.avg_pool2d": _pool("average"),
    "aten.avg_pool3d": _pool("average"),
    "aten.upsample_nearest2d": _upsample(linear=False),
    "aten.upsample_nearest3d": _upsample(linear=False),
    "aten.upsample_bilinear2d": _upsample(linear=True),
    "aten.upsample_trilinear3d": _upsample(linear=True),
    "aten.pad": _pad,
    "aten.constant_pad_nd": _pad,
    "aten.slice": _slice,
    "aten.clone": _same,
    "aten.contiguous": _same,
    "aten.detach": _same,
    "aten.dropout": _same,
    "aten.dropout_": _same,
    "aten.feature_dropout": _same,
    "aten.alias": _same,
}
