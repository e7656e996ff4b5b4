"""Fuse the addition of a skip connection into the convolution that feeds it.

    %a = conv (%x)                          %s = conv +residual (%x, %skip)
    %s = add act (%a, %skip)        ->

The convolution moves to where the addition stood, so that the skip is defined before it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyper_inference.compiler.frontend.builder import frozen
from hyper_inference.compiler.ir import Binary, Conv, ConvTranspose, Graph, Node


def fuse_residual_add(graph: Graph) -> Graph:
    """Either operand's convolution will do; the later one is preferred (it is the main path)."""
    uses, types = graph.uses(), graph.types()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        nodes[node.name] = node
        if not isinstance(node.op, Binary) or node.op.kind != "add":
            continue
        if any(types[name] != node.type for name in node.inputs):  # one channel for all
            continue
        order = list(nodes)
        main = max(
            (name for name in node.inputs if _takes_residual(nodes.get(name), uses)),
            key=order.index,
            default=None,
        )
        if main is None or node.inputs[0] == node.inputs[1]:
            continue
        producer = nodes.pop(main)
        other = node.inputs[1] if node.inputs[0] == main else node.inputs[0]
        op = producer.op
        if not isinstance(op, (Conv, ConvTranspose)):
            raise AssertionError("only convolutions take residuals")
        fused = replace(
            op,
            residual_scale=frozen(np.ones(node.type.shape[0])),
            activation=node.op.activation,
        )
        nodes[node.name] = Node(node.name, fused, (producer.inputs[0], other), node.type)
    return replace(graph, nodes=tuple(nodes.values()))


def _takes_residual(producer: Node | None, uses: dict[str, int]) -> bool:
    return (
        producer is not None
        and isinstance(producer.op, (Conv, ConvTranspose))
        and producer.op.activation is None
        and producer.op.residual_scale is None
        and uses[producer.name] == 1
    )
