"""One node of an exported torch program, for the functions that translate it."""

from __future__ import annotations

from typing import Any

from hyper_inference.compiler.frontend.builder import GraphBuilder
from hyper_inference.errors import UnsupportedOp


class Call:
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
