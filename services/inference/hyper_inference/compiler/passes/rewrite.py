"""Helpers of passes: replace nodes without mutating the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from hyper_inference.compiler.ir import Graph, Node, Op


def rename_inputs(graph: Graph, renames: Mapping[str, str]) -> Graph:
    """Every reader of a key reads its value instead."""

    def target(name: str) -> str:
        while name in renames:
            name = renames[name]
        return name

    nodes = tuple(
        replace(node, inputs=tuple(target(name) for name in node.inputs)) for node in graph.nodes
    )
    return replace(graph, nodes=nodes, outputs=tuple(target(name) for name in graph.outputs))


def merge_into_producer(graph: Graph, merge: Callable[[Op, Node], Op | None]) -> Graph:
    """Let nodes with one input be absorbed by the node that makes it.

    `merge(producer_op, node)` gives the producer's new op, or None. Only a producer that nothing
    else reads is asked. The merged node keeps the absorbed node's name.
    """
    uses = graph.uses()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        producer = nodes.get(node.inputs[0]) if len(node.inputs) == 1 else None
        merged = None
        if producer is not None and uses[producer.name] == 1:
            merged = merge(producer.op, node)
        if producer is None or merged is None:
            nodes[node.name] = node
            continue
        del nodes[producer.name]
        nodes[node.name] = Node(node.name, merged, producer.inputs, node.type)
    return replace(graph, nodes=tuple(nodes.values()))
