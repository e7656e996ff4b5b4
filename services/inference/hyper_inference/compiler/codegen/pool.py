"""Maximum and mean over windows, with bounds checked only where there is padding."""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir
import numpy as np

from hyper_inference.compiler.codegen.emitter import I64, Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Strides
from hyper_inference.compiler.ir import Floats, Pool, Shape, Triple


@dataclass(frozen=True, slots=True)
class PoolWindows(Kernel):
    """`source` and `result` are (z, y, x) sizes."""

    maximum: bool
    channels: int
    kernel: Triple
    stride: Triple
    pad: Triple
    source: Triple
    result: Triple
    a: Strides
    out: Strides

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, vectors of x."""
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.result[1])
            first_z = e.add(e.mul(z, self.stride[0]), -self.pad[0])
            first_y = e.add(e.mul(y, self.stride[1]), -self.pad[1])
            with e.loop(0, self.channels) as channel:
                offset = e.mul(channel.index, self.a.channel)
                a = e.at(p.a, offset)
                offsets = e.mul(channel.index, self.out.channel), e.mul(y, self.out.row)
                out = e.at(p.out, e.add(*offsets, e.mul(z, self.out.plane)))

                def body(x: Value, lanes: int) -> None:
                    total = self._window(e, a, first_z, first_y, x)
                    if not self.maximum:
                        total = e.b.fmul(total, self._share(e, p, z, y, x))
                    e.store(e.keep(total, lanes), out, x)

                e.each_vector(self.result[2], body)

    def _window(self, e: Emitter, a: Value, first_z: Value, first_y: Value, x: Value) -> Value:
        empty = e.constant(float("-inf") if self.maximum else 0.0)
        total = empty
        first_x = e.add(e.mul(x, self.stride[2]), -self.pad[2])
        for kz in range(self.kernel[0]):
            for ky in range(self.kernel[1]):
                z, y = e.add(first_z, kz), e.add(first_y, ky)
                z, z_ok = self._inside(e, z, 0, kz)
                y, y_ok = self._inside(e, y, 1, ky)
                line = e.at(a, e.add(e.mul(z, self.a.plane), e.mul(y, self.a.row)))
                for kx in range(self.kernel[2]):
                    at = e.add(first_x, kx)
                    value = e.load_strided(line, at, self.stride[2])
                    for ok in (z_ok, y_ok, self._lanes_inside(e, at)):
                        if ok is not None:
                            value = e.b.select(ok, value, empty)
                    total = self._take(e, total, value)
        return total

    def _take(self, e: Emitter, total: Value, value: Value) -> Value:
        if not self.maximum:
            return e.b.fadd(total, value)
        larger = e.select_less(total, value, value, total)
        return e.b.select(e.b.fcmp_unordered("uno", value, value), value, larger)  # NaN wins

    def _inside(self, e: Emitter, at: Value, axis: int, tap: int) -> tuple[Value, Value]:
        """The coordinate, moved inside, and whether it was (None: always)."""
        last = (self.result[axis] - 1) * self.stride[axis] - self.pad[axis] + tap
        if tap >= self.pad[axis] and last < self.source[axis]:
            return at, None
        at = e.i64(at)
        b, size = e.b, e.i64(self.source[axis])
        ok = b.icmp_unsigned("<", at, size)
        return b.select(ok, at, ir.Constant(I64, 0)), ok

    def _lanes_inside(self, e: Emitter, first: Value) -> Value:
        last = (self.result[2] - 1) * self.stride[2] + self.kernel[2] - 1 - self.pad[2]
        if self.pad[2] == 0 and last < self.source[2]:
            return None
        start = e.b.trunc(e.i64(first), e.ivector.element)
        undefined = ir.Constant(e.ivector, ir.Undefined)
        one = e.b.insert_element(undefined, start, ir.Constant(e.ivector.element, 0))
        steps = ir.Constant(e.ivector, [lane * self.stride[2] for lane in range(e.width)])
        lanes = e.b.add(e.shuffle(one, undefined, [0] * e.width), steps)
        return e.b.icmp_unsigned("<", lanes, e.integers(self.source[2]))

    def _share(self, e: Emitter, p: Arguments, z: Value, y: Value, x: Value) -> Value:
        """1 / (voxels in the window), as the product of one table an axis."""
        y_table = self.result[0]
        x_table = y_table + self.result[1]
        shares = e.b.fmul(
            e.load_scalar(p.constants, z), e.load_scalar(e.at(p.constants, y_table), y)
        )
        return e.b.fmul(e.splat(shares), e.load(e.at(p.constants, x_table), x))


def pack(op: Pool, source: Shape, result: Shape, width: int) -> Floats:
    """Shares along z, y and x of a mean; the last padded to whole vectors."""
    if op.kind == "max":
        return np.zeros(0, np.float32)
    tables = []
    for axis in range(3):
        starts = np.arange(result[axis + 1]) * op.stride[axis] - op.pad_before[axis]
        ends = starts + op.kernel[axis]
        counts = np.minimum(ends, source[axis + 1]) - np.maximum(starts, 0)
        counted = np.full_like(counts, op.kernel[axis]) if op.count_pad else counts
        tables.append(1.0 / counted)
    tables.append(np.zeros(width))
    return np.concatenate(tables).astype(np.float32)
