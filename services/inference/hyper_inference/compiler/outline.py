"""A graph without the memory of its weights: what a compiled net keeps to tell about itself."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np

from hyper_inference.compiler.ir import Graph


def outline(graph: Graph) -> Graph:
    """The same ops, shapes and text; every array of weights is zeros that take no memory."""
    nodes = tuple(replace(node, op=_without_weights(node.op)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _without_weights(op: Any) -> Any:
    arrays = {
        field.name: np.broadcast_to(np.float32(0), value.shape)
        for field in fields(op)
        if isinstance(value := getattr(op, field.name), np.ndarray)
    }
    return replace(op, **arrays) if arrays else op
