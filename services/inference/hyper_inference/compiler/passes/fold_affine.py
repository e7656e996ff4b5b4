"""Fold scale and shift (batch norm) into the convolution, or other affine, before it.

    %a = conv W, b (%x)                     %n = conv W * s, b * s + t (%x)
    %n = affine s, t (%a)           ->

A residual that was already fused is scaled with the rest: `residual_scale * s`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hyper_inference.compiler.frontend.builder import frozen
from hyper_inference.compiler.ir import Affine, Conv, ConvTranspose, Floats, Graph, Node, Op
from hyper_inference.compiler.passes.rewrite import merge_into_producer


def fold_affine(graph: Graph) -> Graph:
    """Products are formed in float64 and rounded once."""
    return merge_into_producer(graph, _merge)


def _merge(producer: Op, node: Node) -> Op | None:
    affine = node.op
    if not isinstance(affine, Affine):
        return None
    if not isinstance(producer, (Conv, ConvTranspose, Affine)) or producer.activation is not None:
        return None
    scale, shift = affine.scale.astype(np.float64), affine.shift.astype(np.float64)
    match producer:
        case Conv():
            return replace(
                producer,
                weight=frozen(producer.weight * scale[:, None, None, None, None]),
                bias=frozen(producer.bias * scale + shift),
                residual_scale=_scaled(producer.residual_scale, affine),
                activation=affine.activation,
            )
        case ConvTranspose():
            return replace(
                producer,
                weight=frozen(producer.weight * scale[None, :, None, None, None]),
                bias=frozen(producer.bias * scale + shift),
                residual_scale=_scaled(producer.residual_scale, affine),
                activation=affine.activation,
            )
        case Affine():
            return Affine(
                frozen(producer.scale * scale),
                frozen(producer.shift * scale + shift),
                affine.activation,
            )


def _scaled(residual_scale: Floats | None, affine: Affine) -> Floats | None:
    if residual_scale is None:
        return None
    return frozen(residual_scale.astype(np.float64) * affine.scale)
