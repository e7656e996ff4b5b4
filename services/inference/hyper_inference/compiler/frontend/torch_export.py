"""torch modules -> graph, through `torch.export`. The only module that imports torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.torch_call import Call
from hyper_inference.compiler.frontend.torch_ops import ELEMENTWISE, HANDLERS
from hyper_inference.compiler.frontend.view_ops import elementwise
from hyper_inference.compiler.frontend.views import View, settle, view_of
from hyper_inference.compiler.ir import Graph
from hyper_inference.errors import InvalidModelError, ShapeError, UnsupportedOp

MAX_FOLDED_ELEMENTS = 2**26
"""Of one value that depends on no input."""
FACTORIES = frozenset(
    f"aten.{name}"
    for name in (
        "arange", "empty_like", "eye", "full", "full_like", "linspace", "ones", "ones_like",
        "scalar_tensor", "zeros", "zeros_like", "_to_copy", "lift_fresh_copy", "where",
    )
)  # fmt: skip
"""Ops that make constants; beyond them, what depends on no input may use the ops of `HANDLERS`."""
_MALFORMED = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
)  # fmt: skip


def is_torch_model(model: Any) -> bool:
    """Whether `model` is a torch module or exported program, without importing torch."""
    names = {f"{kind.__module__.split('.')[0]}.{kind.__name__}" for kind in type(model).__mro__}
    return bool(names & {"torch.Module", "torch.ExportedProgram"})


def from_torch(model: Any, shapes: Sequence[Sequence[int]]) -> Graph:
    """The graph of a module in eval mode, or of an exported program, for inputs of `shapes`.

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
                example = tuple(torch.zeros(1, *shape[1:]) for shape in shapes)
                program = torch.export.export(model, example)
        except Exception as error:  # torch raises of many kinds, all about the module
            raise InvalidModelError(f"torch.export cannot read this module: {error}") from error
        finally:
            for name, part in model.named_modules():
                part.training = name in training
    try:
        return _Reader(program, shapes).graph()
    except _MALFORMED as error:  # a saved program may hold anything
        line = " ".join(str(error).split())[:200]
        raise InvalidModelError(f"the program makes no sense: {line}") from error


class _Reader:
    """Values by fx name: strings and views are computed; arrays and numbers are constants."""

    def __init__(self, program: Any, shapes: Sequence[Sequence[int]]) -> None:
        self.builder = GraphBuilder([1, *shapes[0][1:]], name="torch")
        self.inputs = [self.builder.input]
        self.inputs += [self.builder.add_input([1, *shape[1:]]) for shape in shapes[1:]]
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
        if len(users) != len(self.inputs):
            raise InvalidModelError(
                f"the module has {len(users)} inputs, but {len(self.inputs)} shapes were given"
            )
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                if node.name in users:
                    self._check_input(node, users.index(node.name))
                    self.values[node.name] = self.inputs[users.index(node.name)]
                else:
                    tensor = stored[named[node.name]]
                    self.values[node.name] = tensor.detach().cpu().numpy()
            elif node.op == "call_function":
                self.values[node.name] = self._call(node)
        results = [self.values.get(name) for name in signature.user_outputs]
        seen = [value for value in results if isinstance(value, (str, View))]
        if len(seen) != len(results) or not seen:
            raise InvalidModelError("an output of the module is not computed from its inputs")
        views = [view_of(self.builder, value) for value in seen]
        return self.builder.finish(*(v.value for v in views), axes=[v.axes for v in views])

    def _check_input(self, node: Any, place: int) -> None:
        """A saved program has sizes of its own."""
        wanted = getattr(node.meta.get("val"), "shape", None)
        have = self.builder.shape(self.inputs[place])
        if wanted is None:
            raise InvalidModelError(f"input {node.name} is no tensor")
        fits = len(wanted) == len(have) and all(
            not isinstance(want, int) or want == n
            for want, n in zip(wanted[1:], have[1:], strict=True)
        )
        if not fits:
            raise ShapeError(f"the program takes {tuple(wanted)}, which {have} does not fit")

    def _call(self, node: Any) -> Any:
        arguments = [self._argument(value) for value in node.args]
        keywords = {key: self._argument(value) for key, value in node.kwargs.items()}
        if node.target is operator.getitem:
            return arguments[0][arguments[1]] if isinstance(arguments[0], tuple) else arguments[0]
        name = str(node.target)  # "aten.conv2d.default"
        base = ".".join(name.split(".")[:2])
        if not any(self._computed(value) for value in (*arguments, *keywords.values())):
            return self._fold(node, name, base)
        handler = HANDLERS.get(base)
        if handler is None:
            raise UnsupportedOp(name, node.name)
        call = Call(self.builder, base, node, arguments, keywords)
        try:
            if base in ELEMENTWISE and any(isinstance(value, View) for value in arguments):
                return elementwise(call, arguments, lambda given: handler(call.with_inputs(given)))
            return handler(call)
        except _MALFORMED as error:
            line = " ".join(str(error).split())[:200]
            raise InvalidModelError(f"node {node.name} ({name}) is malformed: {line}") from error

    def _computed(self, argument: Any) -> bool:
        if isinstance(argument, list):
            return any(self._computed(item) for item in argument)
        return isinstance(argument, View) or (
            isinstance(argument, str) and self.builder.has(argument)
        )

    def _fold(self, node: Any, name: str, base: str) -> Any:
        """What depends on no input is computed now, by torch: its size first, then itself."""
        import torch

        if base not in HANDLERS and base not in FACTORIES:
            raise UnsupportedOp(name, node.name)

        def tensor(value: Any) -> Any:
            found = self.values[value.name] if type(value).__name__ == "Node" else value
            if isinstance(found, (list, tuple)):
                return [tensor(item) for item in found]
            return torch.from_numpy(found) if isinstance(found, np.ndarray) else found

        def stored(result: Any) -> Any:
            if isinstance(result, (list, tuple)):
                return tuple(stored(item) for item in result)
            return result.detach().numpy() if isinstance(result, torch.Tensor) else result

        def unmade(value: Any) -> Any:
            if isinstance(value, list):
                return [unmade(item) for item in value]
            return value.to("meta") if isinstance(value, torch.Tensor) else value

        given = {key: tensor(value) for key, value in node.kwargs.items()}
        listed = [tensor(value) for value in node.args]
        with torch.no_grad():
            sizes = {key: unmade(value) for key, value in given.items()}
            if "device" in sizes:
                sizes["device"] = torch.device("meta")
            with torch.device("meta"):
                empty = node.target(*[unmade(value) for value in listed], **sizes)
            for part in empty if isinstance(empty, (list, tuple)) else [empty]:
                if isinstance(part, torch.Tensor) and part.numel() > MAX_FOLDED_ELEMENTS:
                    raise UnsupportedOp(name, node.name, "of constants that are too large")
            return stored(node.target(*listed, **given))

    def _argument(self, value: Any) -> Any:
        if type(value).__name__ == "Node":
            found = self.values.get(value.name)
            return settle(self.builder, found) if isinstance(found, View) else found
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        return value
