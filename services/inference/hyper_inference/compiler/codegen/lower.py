"""Graph and memory plan -> steps: which kernel family computes each node.

A new family (Winograd, say) is a new file, and one more choice here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, assert_never

import numpy as np

from hyper_inference.compiler.codegen import conv_direct, conv_transpose, pool, resample
from hyper_inference.compiler.codegen.boundary import Pack, Unpack
from hyper_inference.compiler.codegen.kernel import Kernel, Step, Strides, strides_of
from hyper_inference.compiler.codegen.pointwise import Pointwise
from hyper_inference.compiler.codegen.target import Target
from hyper_inference.compiler.ir import (
    Activate,
    Affine,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    Floats,
    Graph,
    Node,
    Pad,
    Pool,
    Resize,
    Slice,
    TensorType,
)
from hyper_inference.compiler.memory_plan import MemoryPlan, Place
from hyper_inference.errors import UnsupportedOp

MAX_STRIDE = 64
CHUNK_FLOPS = 4e6
"""A thread takes about this much at once: 50 us of work against 1 us of taking it."""
_NOTHING = np.zeros(0, np.float32)


def lower(graph: Graph, plan: MemoryPlan, target: Target) -> list[Step]:
    """Steps in order; the first reads the user's input, the last writes the user's output."""
    lowering = _Lowering(graph, plan, target)
    first, last = plan.places[graph.input], plan.places[graph.output]
    steps = [_step("input", Pack(first.shape, strides_of(first)), first.offset, None, first.shape)]
    for node in graph.nodes:
        steps += lowering.node(node)
    unpack = Unpack(last.shape, strides_of(last))
    return [*steps, _step("output", unpack, None, last.offset, last.shape)]


def _step(
    name: str,
    kernel: Kernel,
    out: int | None,
    a: int | None,
    shape: tuple[int, ...],
    *,
    b: int | None = None,
    constants: Floats = _NOTHING,
    flops: float = 0.0,
) -> Step:
    """`shape` is (c, z, y, x) of what the rows are taken from."""
    rows = shape[1] * shape[2]
    work = max(flops, 4.0 * np.prod(shape))
    chunk = int(np.clip(np.ceil(CHUNK_FLOPS * rows / work), 1, max(1, rows // 16)))
    return Step(name, kernel, out, a, b, constants, rows, chunk, flops)


class _Lowering:
    """Facts that every node's lowering needs."""

    def __init__(self, graph: Graph, plan: MemoryPlan, target: Target) -> None:
        self.places, self.in_place, self.target = plan.places, plan.in_place, target
        self.types = graph.types()

    def node(self, node: Node) -> list[Step]:
        """The steps of one node; none where its parts were written in place."""
        match node.op:
            case Conv():
                return [self._conv(node, node.op)]
            case ConvTranspose():
                return [self._conv_transpose(node, node.op)]
            case Affine() | Activate() | Binary():
                return [self._pointwise(node, node.op)]
            case Concat():
                return self._concat(node)
            case Pool():
                return [self._pool(node, node.op)]
            case Resize() if node.op.linear:
                return [self._resize_linear(node, node.op)]
            case Slice() if (node.name, node.inputs[0]) in self.in_place:
                return []
            case Resize() | Pad() | Slice():
                return [self._remap(node, node.op)]
            case _:
                assert_never(node.op)

    def _conv(self, node: Node, op: Conv) -> Step:
        if max(op.stride) > MAX_STRIDE:
            raise UnsupportedOp("conv", node.name, f"a stride over {MAX_STRIDE}")
        a, out = self.places[node.inputs[0]], self.places[node.name]
        residual = self.places[node.inputs[1]] if op.residual_scale is not None else None
        per_group = op.weight.shape[0] // op.groups
        block = conv_direct.choose_block(
            per_group, out.shape[2], out.shape[3],
            op.kernel[1] if op.stride[1] == op.dilation[1] == 1 else 1,
            self.target.width, self.target.accumulators,
        )  # fmt: skip
        kernel = conv_direct.ConvDirect(
            op.weight.shape[1], per_group, op.groups, op.kernel, op.stride, op.dilation,
            op.pad_before, out.shape[2], out.shape[3], strides_of(a), strides_of(out),
            strides_of(residual) if residual is not None else None, op.activation, block,
        )  # fmt: skip
        flops = 2.0 * op.weight[0].size * node.type.elements
        step = _step(
            node.name, kernel, out.offset, a.offset,
            (out.shape[0], out.shape[1], -(-out.shape[2] // block[1]), out.shape[3]), flops=flops,
            b=residual.offset if residual is not None else None,
            constants=conv_direct.pack(op, block[0]),
        )  # fmt: skip
        # Few rows with many weights: longer chunks, so that weights are read less often.
        if op.weight.size * 4 > 2**19:
            step = replace(step, chunk=max(step.chunk, -(-step.rows // 16)))
        return step

    def _conv_transpose(self, node: Node, op: ConvTranspose) -> Step:
        a, out = self.places[node.inputs[0]], self.places[node.name]
        residual = self.places[node.inputs[1]] if op.residual_scale is not None else None
        if op.kernel[2] > self.target.accumulators:
            raise UnsupportedOp("conv_transpose", node.name, f"a stride of {op.kernel[2]}")
        block = conv_transpose.choose_block(out.shape[0], op.kernel[2], self.target.accumulators)
        kernel = conv_transpose.ConvTransposeDirect(
            a.shape[0], out.shape[0], op.kernel, a.shape[2], a.shape[3], strides_of(a),
            strides_of(out), strides_of(residual) if residual is not None else None,
            op.activation, block,
        )  # fmt: skip
        return _step(
            node.name, kernel, out.offset, a.offset, a.shape,
            b=residual.offset if residual is not None else None,
            constants=conv_transpose.pack(op, block),
            flops=2.0 * a.shape[0] * node.type.elements,
        )  # fmt: skip

    def _pointwise(self, node: Node, op: Affine | Activate | Binary) -> Step:
        out = self.places[node.name]
        inputs = [self.places[name] for name in node.inputs]
        strides = [_broadcast(place, node.type) for place in inputs]
        constants = _NOTHING
        if isinstance(op, Affine):
            constants = np.stack([op.scale, op.shift], axis=1).ravel()
        kernel = Pointwise(
            _pointwise_kind(op),
            out.shape[0], out.shape[2], out.shape[3], strides[0],
            strides[1] if len(strides) > 1 else None, strides_of(out), op.activation,
        )  # fmt: skip
        return _step(
            node.name, kernel, out.offset, inputs[0].offset, out.shape,
            b=inputs[1].offset if len(inputs) > 1 else None, constants=constants,
            flops=2.0 * node.type.elements,
        )  # fmt: skip

    def _concat(self, node: Node) -> list[Step]:
        out = self.places[node.name]
        steps, channel = [], 0
        for name in node.inputs:
            part = self.places[name]
            if (node.name, name) not in self.in_place:
                kernel = Pointwise(
                    "identity", part.shape[0], part.shape[2], part.shape[3], strides_of(part),
                    None, strides_of(out), None,
                )  # fmt: skip
                at = out.offset + channel * out.channel
                steps.append(_step(node.name, kernel, at, part.offset, part.shape))
            channel += part.shape[0]
        return steps

    def _pool(self, node: Node, op: Pool) -> Step:
        if max(op.stride) > MAX_STRIDE or max(op.kernel) > MAX_STRIDE:
            raise UnsupportedOp("pool", node.name, f"a window or stride over {MAX_STRIDE}")
        a, out = self.places[node.inputs[0]], self.places[node.name]
        kernel = pool.PoolWindows(
            op.kind == "max", out.shape[0], op.kernel, op.stride, op.pad_before,
            a.shape[1:], out.shape[1:], strides_of(a), strides_of(out),
        )  # fmt: skip
        return _step(
            node.name, kernel, out.offset, a.offset, out.shape,
            constants=pool.pack(op, a.shape, out.shape, self.target.width),
            flops=float(np.prod(op.kernel)) * node.type.elements,
        )  # fmt: skip

    def _resize_linear(self, node: Node, op: Resize) -> Step:
        a, out = self.places[node.inputs[0]], self.places[node.name]
        if a.shape[3] > 2**16:
            raise UnsupportedOp("resize", node.name, "rows over 65,536 voxels")
        kernel = resample.ResizeLinear(
            out.shape[0], a.shape[3], out.shape[2], out.shape[3], out.shape[1], strides_of(a),
            strides_of(out),
        )  # fmt: skip
        return _step(
            node.name, kernel, out.offset, a.offset, out.shape,
            constants=resample.pack_linear(op, self.target.width),
            flops=9.0 * node.type.elements,
        )  # fmt: skip

    def _remap(self, node: Node, op: Resize | Pad | Slice) -> Step:
        a, out = self.places[node.inputs[0]], self.places[node.name]
        tables = resample.remap_tables(op, a.shape)
        fill = op.value if isinstance(op, Pad) else 0.0
        kernel = resample.Remap(
            out.shape, strides_of(a), strides_of(out), fill,
            any(bool(np.any(table < 0)) for table in tables), resample.shift_of(tables[3]),
        )  # fmt: skip
        return _step(
            node.name, kernel, out.offset, a.offset, out.shape,
            constants=resample.pack_remap(tables, self.target.width),
        )  # fmt: skip


def _pointwise_kind(
    op: Affine | Activate | Binary,
) -> Literal["affine", "identity", "add", "sub", "mul"]:
    match op:
        case Binary():
            return op.kind
        case Affine():
            return "affine"
        case Activate():
            return "identity"


def _broadcast(place: Place, result: TensorType) -> Strides:
    """Strides of an operand; 0 along the channels if it has one for all."""
    strides = strides_of(place)
    if place.shape[0] == 1 and result.shape[0] > 1:
        return replace(strides, channel=0)
    return strides
