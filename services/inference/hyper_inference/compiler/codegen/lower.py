"""Graph and memory plan -> steps: which kernel family computes each node.

A new family is a new file, and one more choice here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar, assert_never

import numpy as np

from hyper_inference.compiler.algorithm import (
    Mode,
    Winograd,
    choose_winograd,
    summed_products,
)
from hyper_inference.compiler.codegen import (
    conv_direct,
    conv_transpose,
    conv_winograd,
    pool,
    resample,
)
from hyper_inference.compiler.codegen.affine_map import lower_map
from hyper_inference.compiler.codegen.boundary import Pack, Unpack
from hyper_inference.compiler.codegen.clear import ClearHalos
from hyper_inference.compiler.codegen.kernel import Kernel, Step, strides_of
from hyper_inference.compiler.codegen.lower_simple import lower_simple
from hyper_inference.compiler.codegen.pointwise import Pointwise
from hyper_inference.compiler.codegen.steps import make_step
from hyper_inference.compiler.codegen.target import Target
from hyper_inference.compiler.ir import (
    Activate,
    Affine,
    AffineMap,
    Binary,
    Concat,
    Conv,
    ConvTranspose,
    DepthToSpace,
    Graph,
    Means,
    Node,
    NormScales,
    Pad,
    PartialSums,
    Pool,
    Prelu,
    Resize,
    ScaleShift,
    Slice,
    Softmax,
)
from hyper_inference.compiler.memory_plan import MemoryPlan
from hyper_inference.errors import UnsupportedOp

MAX_STRIDE = 64
NO_CHOICES: Mapping[Kernel, Kernel] = MappingProxyType({})
Tunable = TypeVar("Tunable", conv_direct.ConvDirect, conv_winograd.ConvWinograd)


def lower(
    graph: Graph,
    plan: MemoryPlan,
    target: Target,
    mode: Mode = "exact",
    tuned: Mapping[Kernel, Kernel] = NO_CHOICES,
) -> list[Step]:
    """Steps in order; the first read the user's inputs, the last write the user's outputs.

    Inputs lie one behind the other in the user's memory, dense (c, z, y, x) each; so do outputs.
    `tuned`: kernels that others, with blocks found by `autotune.py`, take the places of.
    """
    lowering = _Lowering(graph, plan, target, mode, tuned)
    steps: list[Step] = []
    skip = 0
    for name, kind in graph.inputs:
        place = plan.places[name]
        steps += _clear(name, plan)
        pack = Pack(place.shape, strides_of(place), skip)
        steps.append(make_step("input", pack, place.offset, None, place.shape))
        skip += kind.elements
    for node in graph.nodes:
        steps += _clear(node.name, plan)
        steps += lowering.node(node)
    skip = 0
    for name in graph.outputs:
        place = plan.places[name]
        unpack = Unpack(place.shape, strides_of(place), skip)
        steps.append(make_step("output", unpack, None, place.offset, place.shape))
        skip += math.prod(place.shape)
    return steps


def _clear(value: str, plan: MemoryPlan) -> list[Step]:
    """Before `value` is written: zeros around it, where another buffer has used the memory."""
    clear = plan.clears.get(value)
    if clear is None:
        return []
    g = clear.geometry
    planes, rows = (
        n + before + after for n, before, after in zip(g.shape[1:3], g.before, g.after, strict=True)
    )
    shape = (1, planes, rows, g.row_stride)
    return [make_step(f"{value} halo", ClearHalos(g), clear.start, None, shape)]


class _Lowering:
    """Facts that every node's lowering needs."""

    def __init__(
        self, graph: Graph, plan: MemoryPlan, target: Target, mode: Mode,
        tuned: Mapping[Kernel, Kernel],
    ) -> None:  # fmt: skip
        self.mode, self.tuned = mode, tuned
        self.places, self.in_place, self.target = plan.places, plan.in_place, target
        self.types = graph.types()

    def node(self, node: Node) -> list[Step]:
        """The steps of one node; none where its parts were written in place."""
        match node.op:
            case Conv():
                return [self._conv(node, node.op)]
            case ConvTranspose():
                return [self._conv_transpose(node, node.op)]
            case AffineMap():
                return [lower_map(node, node.op, self.places)]
            case Affine() | Activate() | Binary() | Prelu() | ScaleShift() | Softmax():
                return [lower_simple(node, node.op, self.places)]
            case PartialSums() | Means() | NormScales() | DepthToSpace():
                return [lower_simple(node, node.op, self.places)]
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
        tile = choose_winograd(op, node.type.shape, self.mode)
        if tile is not None:
            return self._conv_winograd(node, op, tile)
        a, out = self.places[node.inputs[0]], self.places[node.name]
        residual = self.places[node.inputs[1]] if op.residual_scale is not None else None
        per_group = op.weight.shape[0] // op.groups
        in_place = residual is not None and residual.offset == out.offset
        share = op.kernel[1] if op.stride[1] == op.dilation[1] == 1 else 1
        vectors = self.target.width, self.target.accumulators
        block = conv_direct.choose_block(per_group, out.shape[2], out.shape[3], share, *vectors)
        if in_place and out.shape[2] % block[1]:
            block = conv_direct.choose_block(per_group, out.shape[2], out.shape[3], 1, *vectors)
        kernel = conv_direct.ConvDirect(
            op.weight.shape[1], per_group, op.groups, op.kernel, op.stride, op.dilation,
            op.pad_before, out.shape[2], out.shape[3], strides_of(a), strides_of(out),
            strides_of(residual) if residual is not None else None, op.activation, block, in_place,
            summed_products(self.mode),
        )  # fmt: skip
        kernel = self._tuned(kernel)
        block = kernel.block
        flops = 2.0 * op.weight[0].size * node.type.elements
        step = make_step(
            node.name, kernel, out.offset, a.offset,
            (out.shape[0], out.shape[1], -(-out.shape[2] // block[1]), out.shape[3]), flops=flops,
            b=residual.offset if residual is not None else None,
            constants=conv_direct.pack(op, block[0]),
        )  # fmt: skip
        # Few rows with many weights: longer chunks, so that weights are read less often.
        if op.weight.size * 4 > 2**19:
            step = replace(step, chunk=max(step.chunk, -(-step.rows // 16)))
        return step

    def _conv_winograd(self, node: Node, op: Conv, tile: Winograd) -> Step:
        a, out = self.places[node.inputs[0]], self.places[node.name]
        residual = self.places[node.inputs[1]] if op.residual_scale is not None else None
        _, depth, height, size = node.type.shape
        pairs = self.mode == "bf16"
        channels = -(-op.weight.shape[1] // (1 + pairs))
        block = conv_winograd.choose_blocking(
            channels, op.weight.shape[0], op.kernel[2], tile, (depth, height, size),
            self.target.width, self.target.accumulators,
        )  # fmt: skip
        kernel = conv_winograd.ConvWinograd(
            op.weight.shape[1], op.weight.shape[0], op.kernel[2], tile, op.pad_before, depth,
            height, size, strides_of(a), strides_of(out),
            strides_of(residual) if residual is not None else None, op.activation, block, pairs,
        )  # fmt: skip
        kernel = self._tuned(kernel)
        block = kernel.block
        return Step(
            node.name, kernel, out.offset, a.offset,
            residual.offset if residual is not None else None,
            conv_winograd.pack(op, tile, block.channels, pairs=pairs), kernel.tasks, 1,
            2.0 * op.weight[0].size * node.type.elements,
        )  # fmt: skip

    def _tuned(self, kernel: Tunable) -> Tunable:
        other = self.tuned.get(kernel, kernel)
        return other if isinstance(other, type(kernel)) else kernel

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
        return make_step(
            node.name, kernel, out.offset, a.offset, a.shape,
            b=residual.offset if residual is not None else None,
            constants=conv_transpose.pack(op, block),
            flops=2.0 * a.shape[0] * node.type.elements,
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
                steps.append(make_step(node.name, kernel, at, part.offset, part.shape))
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
        return make_step(
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
        return make_step(
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
        return make_step(
            node.name, kernel, out.offset, a.offset, out.shape,
            constants=resample.pack_remap(tables, self.target.width),
        )  # fmt: skip
