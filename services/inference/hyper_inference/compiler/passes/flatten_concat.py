"""Join nested concatenations, so that every part has one place in one buffer.

%a = concat (%x, %y)                    %b = concat (%x, %y, %z)
%b = concat (%a, %z)            ->
"""

from __future__ import annotations

from dataclasses import replace

from hyper_inference.compiler.ir import Concat, Graph, Node


def flatten_concat(graph: Graph) -> Graph:
    """Only where nothing else reads the inner one."""
    uses = graph.uses()
    nodes: dict[str, Node] = {}
    for node in graph.nodes:
        if isinstance(node.op, Concat):
            inputs: list[str] = []
            for name in node.inputs:
                inner = nodes.get(name)
                if inner is not None and isinstance(inner.op, Concat) and uses[name] == 1:
                    inputs += inner.inputs
                    del nodes[name]
                else:
                    inputs.append(name)
            node = replace(node, inputs=tuple(inputs))
        nodes[node.name] = node
    return replace(graph, nodes=tuple(nodes.values()))
