"""Apply an activation where its input is made, while that is still in registers.

%a = conv (%x)                          %r = conv relu (%x)
%r = activate relu (%a)         ->
"""

from __future__ import annotations

from dataclasses import replace

from hyper_inference.compiler.ir import (
    Activate,
    Affine,
    Binary,
    Conv,
    ConvTranspose,
    Graph,
    Node,
    Op,
    ScaleShift,
)
from hyper_inference.compiler.passes.rewrite import merge_into_producer


def fuse_activation(graph: Graph) -> Graph:
    """Convolutions, affines and binaries take one activation each."""
    return merge_into_producer(graph, _merge)


def _merge(producer: Op, node: Node) -> Op | None:
    if not isinstance(node.op, Activate):
        return None
    if not isinstance(producer, (Conv, ConvTranspose, Affine, Binary, ScaleShift)):
        return None
    if producer.activation is not None:
        return None
    return replace(producer, activation=node.op.activation)
