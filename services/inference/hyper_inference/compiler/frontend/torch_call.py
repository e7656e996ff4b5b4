"""One node of an exported torch program, for the functions that translate it."""

from __future__ import annotations

from typing import Any

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.compiler.frontend.views import View
from hyper_inference.errors import UnsupportedOp


class Call:
    """One fx node to translate; arguments by position or by the schema's name."""

    def __init__(
        self, builder: GraphBuilder, op: str, node: Any, arguments: list[Any], keywords: Any
    ) -> None:
        self.builder, self.op, self.where, self.node = builder, op, node.name, node
        self.keywords = keywords
        self.values: dict[str, Any] = dict(keywords)
        schema = getattr(node.target, "_schema", None)
        if schema is not None:
            self.values |= {a.name: v for a, v in zip(schema.arguments, arguments, strict=False)}
        self.inputs = arguments

    def get(self, name: str, default: Any = None) -> Any:
        """An argument by name."""
        value = self.values.get(name)
        return default if value is None else value

    def is_value(self, argument: Any) -> bool:
        """Whether an argument is computed from the net's input."""
        return isinstance(argument, View) or (
            isinstance(argument, str) and self.builder.has(argument)
        )

    def with_inputs(self, arguments: list[Any]) -> Call:
        """The same node with other arguments."""
        return Call(self.builder, self.op, self.node, arguments, self.keywords)

    def tensor(self, name: str = "input") -> str:
        """An argument that must be a value of the graph, seen as (n, c, [z,] y, x)."""
        value = self.values.get(name, self.inputs[0] if name == "input" else None)
        if isinstance(value, View):
            raise self.refuse(f"{name} is not seen as (n, c, ...): permuted or flattened")
        if not isinstance(value, str):
            raise self.refuse(f"{name} is not computed from the net's input")
        return value

    def constant(self, name: str) -> Any:
        """An argument that must be stored with the module (or None)."""
        value = self.values.get(name)
        if isinstance(value, (str, View)):
            raise self.refuse(f"{name} is computed from the net's input")
        return value

    def refuse(self, why: str) -> UnsupportedOp:
        """The error for a use that is not covered."""
        return UnsupportedOp(self.op, self.where, why)
