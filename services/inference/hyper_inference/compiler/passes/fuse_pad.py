"""Let a convolution pad with zeros itself.

%p = pad constant 0 (%x)                %c = conv pad (%x)
%c = conv (%p)                  ->
"""

from __future__ import annotations

from dataclasses import replace

from hyper_inference.compiler.ir import Conv, Graph, Node, Op, Pad, Triple
from hyper_inference.compiler.passes.rewrite import merge_into_producer


def fuse_pad(graph: Graph) -> Graph:
    """Only zeros, only along z, y and x."""
    return merge_into_producer(graph, _merge)


def _merge(pad: Op, node: Node) -> Op | None:
    if not isinstance(pad, Pad) or not isinstance(node.op, Conv):
        return None
    if pad.mode != "constant" or pad.value != 0 or pad.before[0] or pad.after[0]:
        return None

    def plus(one: Triple, other: tuple[int, ...]) -> Triple:
        z, y, x = (a + b for a, b in zip(one, other, strict=True))
        return z, y, x

    return replace(
        node.op,
        pad_before=plus(node.op.pad_before, pad.before[1:]),
        pad_after=plus(node.op.pad_after, pad.after[1:]),
    )
