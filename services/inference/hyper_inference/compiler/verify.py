"""What a legal graph is; called before and after every pass."""

from __future__ import annotations

import numpy as np

from hyper_inference.compiler.ir import Graph, Op, TensorType
from hyper_inference.compiler.shapes import infer_type


class IllegalGraphError(AssertionError):
    """A pass or frontend made a graph that breaks a rule: a bug of the compiler."""


def verify(graph: Graph, after: str = "frontend") -> Graph:
    """Return `graph` if it is legal.

    Rules: names are unique; every input is defined before its use; the output exists; every type is
    what the op gives; weights are float32 and read-only.

    Raises:
        IllegalGraphError: names the pass and the node.
    """

    def check(condition: bool, node: str, rule: str) -> None:
        if not condition:
            raise IllegalGraphError(f"after {after}: node {node!r}: {rule}\n{graph}")

    known: dict[str, TensorType] = {graph.input: graph.input_type}
    for node in graph.nodes:
        check(node.name not in known, node.name, "its name is taken")
        for name in node.inputs:
            check(name in known, node.name, f"input {name!r} is not defined before it")
        expected = infer_type(node.op, [known[name] for name in node.inputs])
        check(node.type == expected, node.name, f"its type is {expected}, not {node.type}")
        for array in constants(node.op):
            check(array.dtype in (np.float32, np.int32), node.name, f"a constant of {array.dtype}")
            check(not array.flags.writeable, node.name, "a writable constant")
        known[node.name] = node.type
    check(graph.output in known, graph.output, "the output is not defined")
    check(graph.spatial in (2, 3), graph.name, "spatial is 2 or 3")
    return graph


def constants(op: Op) -> list[np.ndarray]:
    """Every array that an op holds."""
    values = [getattr(op, field) for field in op.__dataclass_fields__]
    taps = getattr(op, "taps", ())
    for axis in taps:
        values += [axis.low, axis.high, axis.weight]
    return [value for value in values if isinstance(value, np.ndarray)]
