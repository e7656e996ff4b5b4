"""torch modules -> graph, through `torch.export`. The only module that imports torch."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.torch_call import Call
from hyper_inference.compiler.frontend.torch_ops import HANDLERS
from hyper_inference.compiler.ir import Graph
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
        handler = HANDLERS.get(base)
        if handler is None:
            raise UnsupportedOp(name, node.name)
        return handler(Call(self.builder, name, node, arguments, keywords))

    def _argument(self, value: Any) -> Any:
        if type(value).__name__ == "Node":
            return self.values.get(value.name)
        if isinstance(value, (list, tuple)):
            return [self._argument(item) for item in value]
        return value
