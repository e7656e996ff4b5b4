"""Sums over whole values: means, and what instance, group and layer norm are made of.

The order of all additions is fixed by the shape: sixteen lanes whatever the vector width, groups
of rows, then lanes and rows in double precision.
"""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir
import numpy as np

from hyper_inference.compiler.codegen.emitter import F32, Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Strides
from hyper_inference.compiler.ir import SUM_LANES, SUM_ROWS, Floats, NormScales, Shape

_F64 = ir.DoubleType()


@dataclass(frozen=True, slots=True)
class LaneSums(Kernel):
    """Partial sums of x, or of (x - mean)^2 where `mean` has strides; rows are groups of rows."""

    channels: int
    height: int
    size: int
    a: Strides
    mean: Strides | None
    out: Strides

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Groups of rows, channels, rows, x; a group's sums stay in the cache."""
        groups = -(-self.height // SUM_ROWS)
        vectors = range(0, SUM_LANES, e.width)
        with e.loop(p.begin, p.end) as row:
            z, group = e.divmod(row.index, groups)
            first = e.mul(group, SUM_ROWS)
            stop = e.add(first, SUM_ROWS)
            if self.height % SUM_ROWS:
                last, height = e.i64(stop), e.i64(self.height)
                stop = e.b.select(e.b.icmp_signed("<", last, height), last, height)
            with e.loop(0, self.channels) as channel:
                offset = e.mul(channel.index, self.a.channel)
                source = e.at(p.a, e.add(offset, e.mul(z, self.a.plane)))
                offsets = e.mul(group, self.out.row), e.mul(z, self.out.plane)
                out = e.at(p.out, e.add(e.mul(channel.index, self.out.channel), *offsets))
                mean = None
                if self.mean is not None:
                    mean = e.broadcast(e.at(p.b, e.mul(channel.index, self.mean.channel)))
                for at in vectors:
                    e.store(e.constant(0.0), out, at)
                with e.loop(first, stop) as y:
                    line = e.at(source, e.mul(y.index, self.a.row))
                    sums = [e.load(out, at) for at in vectors]
                    for at, total in zip(vectors, self._line(e, line, mean, sums), strict=True):
                        e.store(total, out, at)

    def _line(self, e: Emitter, line: Value, mean: Value, sums: list[Value]) -> list[Value]:
        whole, tail = divmod(self.size, SUM_LANES)
        if whole:
            with e.loop(0, whole * SUM_LANES, SUM_LANES, sums) as x:
                x.carried[:] = [
                    self._take(e, total, e.load(line, e.add(x.index, n * e.width)), mean, e.width)
                    for n, total in enumerate(x.carried)
                ]
            sums = x.carried
        if not tail:
            return sums
        return [
            self._take(e, total, e.load(line, whole * SUM_LANES + n * e.width), mean,
                       max(0, tail - n * e.width))
            for n, total in enumerate(sums)
        ]  # fmt: skip

    def _take(self, e: Emitter, total: Value, value: Value, mean: Value, lanes: int) -> Value:
        if mean is None:
            return e.b.fadd(total, e.keep(value, lanes))
        value = e.keep(e.b.fsub(value, mean), lanes)
        return e.fma(value, value, total)


@dataclass(frozen=True, slots=True)
class GroupMeans(Kernel):
    """Partial sums -> a mean for every channel of a group; rows are groups.

    With strides of `mean` (the sums are of squares): scale, and shift behind all scales.
    """

    groups: int
    sums: Shape
    count: int
    epsilon: float
    a: Strides
    mean: Strides | None
    out: Strides

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Groups, all in double precision."""
        each = self.sums[0] // self.groups
        with e.loop(p.begin, p.end) as group:
            first = e.mul(group.index, each)
            total = self._total(e, e.at(p.a, e.mul(first, self.a.channel)), each)
            b = e.b
            value = b.fdiv(total, ir.Constant(_F64, float(self.count)))
            if self.mean is not None:
                shifted = b.fadd(value, ir.Constant(_F64, self.epsilon))
                value = b.fdiv(ir.Constant(_F64, 1.0), self._root(e, shifted))
            with e.loop(0, each) as n:
                channel = e.add(first, n.index)
                out = e.at(p.out, e.mul(channel, self.out.channel))
                if self.mean is not None:
                    self._store_scales(e, p, out, channel, self.mean, value)
                else:
                    b.store(b.fptrunc(value, F32), out, align=4)

    def _store_scales(
        self, e: Emitter, p: Arguments, out: Value, channel: Value, mean: Strides, root: Value
    ) -> None:
        """(x - mean) * weight * root + bias, as x * scale + shift."""
        constants, b = e.at(p.constants, e.mul(channel, 2)), e.b
        weight, bias = (b.fpext(e.load_scalar(constants, k), _F64) for k in (0, 1))
        middle = b.fpext(e.load_scalar(p.b, e.mul(channel, mean.channel)), _F64)
        scale = b.fmul(weight, root)
        shift = b.fsub(bias, b.fmul(middle, scale))
        b.store(b.fptrunc(scale, F32), out, align=4)
        b.store(b.fptrunc(shift, F32), e.at(out, self.sums[0] * self.out.channel), align=4)

    def _total(self, e: Emitter, sums: Value, channels: int) -> Value:
        """Lane by lane over channels, z and y, then pairs of lanes."""
        wide = ir.VectorType(_F64, e.width)
        parts = range(SUM_LANES // e.width)
        zeros = [ir.Constant(wide, [0.0] * e.width) for _ in parts]
        _, depth, height, _ = self.sums
        with (
            e.loop(0, channels, 1, zeros) as c,
            e.loop(0, depth, 1, c.carried) as z,
            e.loop(0, height, 1, z.carried) as y,
        ):
            offset = e.add(e.mul(c.index, self.a.channel), e.mul(z.index, self.a.plane),
                           e.mul(y.index, self.a.row))  # fmt: skip
            line = e.at(sums, offset)
            y.carried[:] = [
                e.b.fadd(total, e.b.fpext(e.load(line, n * e.width), wide))
                for n, total in enumerate(y.carried)
            ]
            z.carried[:] = y.carried
            c.carried[:] = y.carried
        i32 = ir.IntType(32)
        lanes = [
            e.b.extract_element(total, ir.Constant(i32, lane))
            for total in c.carried
            for lane in range(e.width)
        ]
        while len(lanes) > 1:
            half = len(lanes) // 2
            lanes = [e.b.fadd(lanes[n], lanes[n + half]) for n in range(half)]
        return lanes[0]

    def _root(self, e: Emitter, value: Value) -> Value:
        name = "llvm.sqrt.f64"
        function = e.module.globals.get(name)
        if function is None:
            function = ir.Function(e.module, ir.FunctionType(_F64, [_F64]), name)
        return e.b.call(function, [value])


def pack_scales(op: NormScales) -> Floats:
    """Weight and bias of every channel, in turn."""
    return np.stack([op.weight, op.bias], axis=1).ravel()
