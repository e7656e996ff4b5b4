"""What a legal graph is; called before and after every pass."""

from __future__ import annotations

import numpy as np

from hyper_inference.compiler.ir import Graph, Op, TensorType
from hyper_inference.compiler.shapes import infer_type


class IllegalGraphError(AssertionError):
    """A pass or frontend made a graph that breaks a rule: a bug of the compiler."""


def verify(graph: Graph, after: str = "frontend") -> Graph:
    """Return `graph` if it is legal.

    Rules: names are unique; every input is defined before its use; outputs exist and are seen
    whole; every type is what the op gives; weights are float32 and read-only.

    Raises:
        IllegalGraphError: names the pass and the node.
    """

    def check(condition: bool, node: str, rule: str) -> None:
        if not condition:
            raise IllegalGraphError(f"after {after}: node {node!r}: {rule}\n{graph}")

    known: dict[str, TensorType] = dict(graph.inputs)
    check(len(known) == len(graph.inputs) > 0, graph.name, "inputs have names of their own")
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
    check(len(graph.outputs) == len(graph.axes) > 0, graph.name, "every output has axes")
    for name, axes in zip(graph.outputs, graph.axes, strict=True):
        check(name in known, name, "the output is not defined")
        listed = [axis for group in axes for axis in group]
        unseen = [n for axis, n in enumerate(known[name].shape) if axis not in listed]
        check(len(set(listed)) == len(listed) and set(unseen) <= {1}, name, "its axes are wrong")
    check(graph.spatial in (2, 3), graph.name, "spatial is 2 or 3")
    return graph


def constants(op: Op) -> list[np.ndarray]:
    """Every array that an op holds."""
    values = [getattr(op, field) for field in op.__dataclass_fields__]
    taps = getattr(op, "taps", ())
    for axis in taps:
        values += [axis.low, axis.high, axis.weight]
    return [value for value in values if isinstance(value, np.ndarray)]
