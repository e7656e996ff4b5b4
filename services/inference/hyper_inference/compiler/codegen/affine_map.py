"""`x * scale + shift` with a constant for every voxel, read in the order of the result's rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Step, Strides, strides_of
from hyper_inference.compiler.codegen.steps import make_step
from hyper_inference.compiler.ir import AffineMap, Floats, Node
from hyper_inference.compiler.memory_plan import Place

_PITCH = 16


@dataclass(frozen=True, slots=True)
class MapAffine(Kernel):
    """Constants are rows of scales, each followed by its row of shifts, `pitch` floats each."""

    channels: int
    height: int
    size: int
    pitch: int
    a: Strides
    out: Strides

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, vectors of x."""
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)
            with e.loop(0, self.channels) as channel:
                a = self.a.at(e, p.a, z, y, channel.index)
                out = self.out.at(e, p.out, z, y, channel.index)
                line = e.add(e.mul(row.index, self.channels), channel.index)
                scales = e.at(p.constants, e.mul(line, 2 * self.pitch))
                shifts = e.at(scales, self.pitch)

                def body(x: Value, lanes: int) -> None:
                    value = e.fma(e.load(a, x), e.load(scales, x), e.load(shifts, x))
                    e.store(e.keep(value, lanes), out, x)

                e.each_vector(self.size, body)


def pack(op: AffineMap) -> Floats:
    """[z][y][c][scale, shift][x]."""
    c, z, y, x = op.scale.shape
    packed = np.zeros((z, y, c, 2, _pitch(x)), np.float32)
    packed[..., 0, :x] = op.scale.transpose(1, 2, 0, 3)
    packed[..., 1, :x] = op.shift.transpose(1, 2, 0, 3)
    return packed.ravel()


def lower_map(node: Node, op: AffineMap, places: Mapping[str, Place]) -> Step:
    """The step of one node."""
    a, out = places[node.inputs[0]], places[node.name]
    kernel = MapAffine(
        out.shape[0], out.shape[2], out.shape[3], _pitch(out.shape[3]), strides_of(a),
        strides_of(out),
    )  # fmt: skip
    return make_step(
        node.name, kernel, out.offset, a.offset, out.shape, constants=pack(op),
        flops=2.0 * node.type.elements,
    )  # fmt: skip


def _pitch(size: int) -> int:
    return -(-size // _PITCH) * _PITCH
