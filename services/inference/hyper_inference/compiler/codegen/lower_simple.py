"""Which kernel computes the nodes that are no convolutions and move no voxels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias, assert_never

import numpy as np

from hyper_inference.compiler.codegen import statistics
from hyper_inference.compiler.codegen.channels import Blocks, SoftmaxChannels
from hyper_inference.compiler.codegen.kernel import Step, Strides, strides_of
from hyper_inference.compiler.codegen.pointwise import Pointwise
from hyper_inference.compiler.codegen.steps import NOTHING, make_step
from hyper_inference.compiler.ir import (
    Activate,
    Affine,
    Binary,
    DepthToSpace,
    Means,
    Node,
    NormScales,
    PartialSums,
    Prelu,
    ScaleShift,
    Softmax,
    TensorType,
)
from hyper_inference.compiler.memory_plan import Place
from hyper_inference.errors import UnsupportedOp

PointwiseOp: TypeAlias = Affine | Activate | Binary | Prelu | ScaleShift
SimpleOp: TypeAlias = PointwiseOp | Softmax | PartialSums | Means | NormScales | DepthToSpace
MAX_FACTOR = 64


def lower_simple(node: Node, op: SimpleOp, places: Mapping[str, Place]) -> Step:
    """The step of one node."""
    out = places[node.name]
    inputs = [places[name] for name in node.inputs]
    match op:
        case Affine() | Activate() | Binary() | Prelu() | ScaleShift():
            return _pointwise(node, op, out, inputs)
        case Softmax():
            softmax = SoftmaxChannels(
                out.shape[0], out.shape[2], out.shape[3], strides_of(inputs[0]), strides_of(out)
            )
            return make_step(
                node.name, softmax, out.offset, inputs[0].offset, out.shape,
                flops=20.0 * node.type.elements,
            )  # fmt: skip
        case PartialSums():
            return _partial_sums(node, out, inputs)
        case Means() | NormScales():
            return _means(node, op, out, inputs)
        case DepthToSpace():
            if op.factor[2] > MAX_FACTOR:
                raise UnsupportedOp("depth_to_space", node.name, f"blocks over {MAX_FACTOR}")
            blocks = Blocks(
                out.shape[0], op.factor, out.shape[2], out.shape[3], strides_of(inputs[0]),
                strides_of(out), op.block_first,
            )  # fmt: skip
            return make_step(node.name, blocks, out.offset, inputs[0].offset, out.shape)
        case _:
            assert_never(op)


def _pointwise(node: Node, op: PointwiseOp, out: Place, inputs: list[Place]) -> Step:
    strides = [_broadcast(place, node.type) for place in inputs]
    constants = NOTHING
    if isinstance(op, Affine):
        constants = np.stack([op.scale, op.shift], axis=1).ravel()
    elif isinstance(op, Prelu):
        constants = np.repeat(op.slope, 2)
    elif isinstance(op, ScaleShift):
        strides[1] = Strides(inputs[1].channel, 0, 0)
    one = [place.shape[3] < out.shape[3] for place in inputs]
    kernel = Pointwise(
        _kind(op), out.shape[0], out.shape[2], out.shape[3], strides[0],
        strides[1] if len(strides) > 1 else None, strides_of(out),
        None if isinstance(op, Prelu) else op.activation,
        a_one=one[0], b_one=len(one) > 1 and one[1],
        shift_at=out.shape[0] * inputs[1].channel if isinstance(op, ScaleShift) else 0,
    )  # fmt: skip
    return make_step(
        node.name, kernel, out.offset, inputs[0].offset, out.shape,
        b=inputs[1].offset if len(inputs) > 1 else None, constants=constants,
        flops=2.0 * node.type.elements,
    )  # fmt: skip


def _partial_sums(node: Node, out: Place, inputs: list[Place]) -> Step:
    a, *means = inputs
    kernel = statistics.LaneSums(
        a.shape[0], a.shape[2], a.shape[3], strides_of(a),
        strides_of(means[0]) if means else None, strides_of(out),
    )  # fmt: skip
    return make_step(
        node.name, kernel, out.offset, a.offset, out.shape,
        b=means[0].offset if means else None, flops=2.0 * float(np.prod(a.shape)),
    )  # fmt: skip


def _means(node: Node, op: Means | NormScales, out: Place, inputs: list[Place]) -> Step:
    a, *means = inputs
    kernel = statistics.GroupMeans(
        op.groups, a.shape, op.count, op.epsilon if isinstance(op, NormScales) else 0.0,
        strides_of(a), strides_of(means[0]) if means else None, strides_of(out),
    )  # fmt: skip
    return make_step(
        node.name, kernel, out.offset, a.offset, (1, 1, op.groups, 1),
        b=means[0].offset if means else None,
        constants=statistics.pack_scales(op) if isinstance(op, NormScales) else NOTHING,
        flops=float(np.prod(a.shape)),
    )  # fmt: skip


def _kind(
    op: PointwiseOp,
) -> Literal[
    "affine", "identity", "prelu", "scale_shift", "add", "sub", "mul", "div", "max", "min"
]:
    match op:
        case Binary():
            return op.kind
        case Affine():
            return "affine"
        case Activate():
            return "identity"
        case Prelu():
            return "prelu"
        case ScaleShift():
            return "scale_shift"


def _broadcast(place: Place, result: TensorType) -> Strides:
    """Strides of an operand; 0 along an axis of which it has one for all."""
    c, z, y, _ = (have == 1 < want for have, want in zip(place.shape, result.shape, strict=True))
    strides = strides_of(place)
    return Strides(strides.channel * (not c), strides.row * (not y), strides.plane * (not z))
