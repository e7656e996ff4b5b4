"""Remove values that nothing reads, and slices and pads that change nothing.

%a = conv (%input)                      %a = conv (%input)
%b = relu (%a)      [unused]     ->     output %a
%c = slice all of (%a)
output %c
"""

from __future__ import annotations

from dataclasses import replace

from hyper_inference.compiler.ir import Graph, Pad, Resize, Slice
from hyper_inference.compiler.passes.rewrite import rename_inputs


def drop_dead(graph: Graph) -> Graph:
    """Identities first, then what is no longer read."""
    types = graph.types()
    same = {
        node.name: node.inputs[0]
        for node in graph.nodes
        if (isinstance(node.op, (Slice, Pad)) and types[node.inputs[0]] == node.type)
        or (isinstance(node.op, Resize) and _is_identity(node.op, types[node.inputs[0]].shape[1:]))
    }
    graph = rename_inputs(graph, same)
    alive = set(graph.outputs)
    kept = []
    for node in reversed(graph.nodes):
        if node.name in alive:
            alive.update(node.inputs)
            kept.append(node)
    return replace(graph, nodes=tuple(reversed(kept)))


def _is_identity(op: Resize, sizes: tuple[int, ...]) -> bool:
    return all(
        taps.low.tolist() == list(range(size)) and not taps.blends
        for taps, size in zip(op.taps, sizes, strict=True)
    )
