"""How far a net looks: input voxels on each side that one output voxel depends on. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hyper_inference.compiler.ir import (
    Conv,
    ConvTranspose,
    DepthToSpace,
    Graph,
    Node,
    Pad,
    Pool,
    Resize,
    Shape,
    Slice,
    Triple,
)


@dataclass(frozen=True, slots=True)
class _Reach:
    """Input voxels a voxel of this value stands for, and how far it sees, on one axis."""

    jump: float = 1.0
    reach: float = 0.0


def receptive_field(graph: Graph) -> Triple:
    """Voxels on each side along z, y and x; norms over whole values are not counted."""
    z, y, x = (math.ceil(axis.reach) for axis in _output(graph))
    return z, y, x


def steps(graph: Graph) -> tuple[float, ...]:
    """Input voxels between neighbouring output voxels, along z, y and x."""
    return tuple(axis.jump for axis in _output(graph))


def _output(graph: Graph) -> tuple[_Reach, ...]:
    types = graph.types()
    values: dict[str, tuple[_Reach, ...]] = {name: (_Reach(),) * 3 for name, _ in graph.inputs}
    for node in graph.nodes:
        inputs = [values[name] for name in node.inputs]
        size = types[node.inputs[0]].shape
        values[node.name] = tuple(
            _through(node, axis, [value[axis] for value in inputs], size) for axis in range(3)
        )
    return values[graph.output]


def _through(node: Node, axis: int, inputs: list[_Reach], source: Shape) -> _Reach:
    widest = max(one.reach for one in inputs)
    first = inputs[0]
    op = node.op
    match op:
        case Conv() | Pool():
            dilation = op.dilation[axis] if isinstance(op, Conv) else 1
            span = dilation * (op.kernel[axis] - 1)
            side = max(op.pad_before[axis], span - op.pad_before[axis])
            own = _Reach(first.jump * op.stride[axis], first.reach + side * first.jump)
        case ConvTranspose():
            own = _Reach(first.jump / op.kernel[axis], first.reach + first.jump)
        case DepthToSpace():
            own = _Reach(first.jump / op.factor[axis], first.reach)
        case Resize():
            factor = source[axis + 1] / node.type.shape[axis + 1]
            moved = source[axis + 1] > 1
            own = _Reach(first.jump * factor, first.reach + first.jump * moved)
        case Slice() | Pad():
            step = op.step[axis + 1] if isinstance(op, Slice) else 1
            own = _Reach(first.jump * step, first.reach)
        case _:
            own = first
    return _Reach(own.jump, max(own.reach, widest))
