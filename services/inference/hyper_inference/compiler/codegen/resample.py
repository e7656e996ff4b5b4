"""Moving voxels by tables: linear resampling, and remapping (nearest, pad, slice)."""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir
import numpy as np

from hyper_inference.compiler.codegen.emitter import F32, I64, POINTER, Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Strides
from hyper_inference.compiler.ir import Floats, Pad, Resize, Shape, Slice


@dataclass(frozen=True, slots=True)
class Remap(Kernel):
    """`out[c, z, y, x] = a[tc[c], tz[z], ty[y], tx[x]]`, or `fill` where an index is negative.

    The tables are 32-bit integers among the constants. `shift`: tx[x] = x + shift throughout, so
    that whole vectors are read.
    """

    result: Shape
    a: Strides
    out: Strides
    fill: float
    fills: bool
    shift: int | None

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, vectors of x."""
        channels, _, height, size = self.result
        tables = [0, channels, channels + self.result[1], channels + self.result[1] + height]
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, height)
            from_z = e.load_index(e.at(p.constants, tables[1]), z)
            from_y = e.load_index(e.at(p.constants, tables[2]), y)
            with e.loop(0, channels) as channel:
                from_c = e.load_index(p.constants, channel.index)
                inside = self._inside(e, [from_c, from_z, from_y])
                zero = ir.Constant(I64, 0)
                picked = [e.b.select(inside, n, zero) if self.fills else n
                          for n in (from_c, from_z, from_y)]  # fmt: skip
                offsets = [e.mul(n, s) for n, s in zip(
                    picked, (self.a.channel, self.a.plane, self.a.row), strict=True)]  # fmt: skip
                line = e.at(p.a, e.add(*offsets))
                offsets = [e.mul(channel.index, self.out.channel), e.mul(z, self.out.plane)]
                out = e.at(p.out, e.add(*offsets, e.mul(y, self.out.row)))

                def body(x: Value, lanes: int) -> None:
                    if self.shift is not None:
                        value = e.load(line, e.add(x, self.shift))
                    else:
                        value = self._gather(e, line, e.at(p.constants, tables[3]), x)
                    if self.fills:
                        value = e.b.select(inside, value, e.constant(self.fill))
                    e.store(e.keep(value, lanes), out, x)

                e.each_vector(size, body)

    def _inside(self, e: Emitter, indices: list[Value]) -> Value:
        if not self.fills:
            return None
        low = indices[0]
        for index in indices[1:]:
            low = e.b.or_(low, index)  # negative if any is
        return e.b.icmp_signed(">=", low, ir.Constant(I64, 0))

    def _gather(self, e: Emitter, line: Value, table: Value, x: Value) -> Value:
        lanes = []
        for lane in range(e.width):
            index = e.load_index(table, e.add(x, lane))
            if not self.fills:
                lanes.append(e.load_scalar(line, index))
                continue
            ok = e.b.icmp_signed(">=", index, ir.Constant(I64, 0))
            value = e.load_scalar(line, e.b.select(ok, index, ir.Constant(I64, 0)))
            lanes.append(e.b.select(ok, value, ir.Constant(F32, self.fill)))
        return e.build(lanes)


@dataclass(frozen=True, slots=True)
class ResizeLinear(Kernel):
    """Blend rows along z and y into one line, then blend neighbours of the line along x."""

    channels: int
    source_size: int
    height: int
    size: int
    depth: int
    a: Strides
    out: Strides

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels; the line lies on the stack."""
        padded = -(-self.source_size // e.width) * e.width
        with e.b.goto_entry_block():
            room = e.b.alloca(ir.ArrayType(F32, padded))
            room.align = 64
            line = e.b.inttoptr(e.b.ptrtoint(room, I64), POINTER)  # llvmlite's way to opaque
        tables = np.cumsum([0, self.depth, self.depth, self.depth, self.height, self.height,
                            self.height, self._padded(e), self._padded(e)]).tolist()  # fmt: skip
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)

            def taps(first: int, at: Value) -> tuple[Value, Value, Value]:
                table = [e.at(p.constants, tables[first + n]) for n in range(3)]
                low, high = e.load_index(table[0], at), e.load_index(table[1], at)
                return low, high, e.broadcast(table[2], at)

            z_low, z_high, z_weight = taps(0, z)
            y_low, y_high, y_weight = taps(3, y)
            with e.loop(0, self.channels) as channel:
                base = e.at(p.a, e.mul(channel.index, self.a.channel))

                def pointer(z_in: Value, y_in: Value) -> Value:
                    offset = e.add(e.mul(z_in, self.a.plane), e.mul(y_in, self.a.row))
                    return e.at(base, offset)

                rows = [pointer(n, m) for m in (y_low, y_high) for n in (z_low, z_high)]

                def blend_rows(x: Value, _: int) -> None:
                    values = [e.load(r, x) for r in rows]
                    low = _lerp(e, values[0], values[1], z_weight)
                    high = _lerp(e, values[2], values[3], z_weight)
                    e.store(_lerp(e, low, high, y_weight), line, x)

                e.each_vector(self.source_size, blend_rows)
                offsets = e.mul(channel.index, self.out.channel), e.mul(y, self.out.row)
                out = e.at(p.out, e.add(*offsets, e.mul(z, self.out.plane)))

                def blend_x(x: Value, lanes: int) -> None:
                    picked = [
                        e.build([
                            e.load_scalar(line, e.load_index(table, e.add(x, lane)))
                            for lane in range(e.width)
                        ])
                        for table in (e.at(p.constants, tables[6]), e.at(p.constants, tables[7]))
                    ]  # fmt: skip
                    weight = e.load(e.at(p.constants, tables[8]), x)
                    value = _lerp(e, picked[0], picked[1], weight)
                    e.store(e.keep(value, lanes), out, x)

                e.each_vector(self.size, blend_x)

    def _padded(self, e: Emitter) -> int:
        return -(-self.size // e.width) * e.width


def _lerp(e: Emitter, low: Value, high: Value, weight: Value) -> Value:
    rest = e.b.fsub(e.constant(1.0), weight)
    return e.fma(low, rest, e.b.fmul(high, weight))


def pack_linear(op: Resize, width: int) -> Floats:
    """Tables low, high, weight of z, y and x; those of x padded to whole vectors."""
    parts = []
    for axis, taps in enumerate(op.taps):
        more = -len(taps.low) % width if axis == 2 else 0
        for table in (taps.low, taps.high, taps.weight):
            padded = np.pad(table, (0, more))
            integers = padded.dtype == np.int32
            parts.append(padded.view(np.float32) if integers else padded.astype(np.float32))
    return np.concatenate(parts)


def remap_tables(op: Pad | Slice | Resize, source: Shape) -> list[np.ndarray]:
    """Where each output index of c, z, y and x comes from; -1: nowhere."""
    if isinstance(op, Resize):
        return [np.arange(source[0]), *(taps.low for taps in op.taps)]
    if isinstance(op, Slice):
        return [
            np.arange(start, stop, step)
            for start, stop, step in zip(op.start, op.stop, op.step, strict=True)
        ]
    tables = []
    for size, before, after in zip(source, op.before, op.after, strict=True):
        inside = np.arange(size)
        if op.mode == "constant":
            tables.append(np.pad(inside, (before, after), constant_values=-1))
        else:
            tables.append(np.pad(inside, (before, after), mode=op.mode))
    return tables


def pack_remap(tables: list[np.ndarray], width: int) -> Floats:
    """The tables one after another, that of x padded to whole vectors."""
    x = np.pad(tables[3], (0, -len(tables[3]) % width))
    return np.concatenate([*tables[:3], x]).astype(np.int32).view(np.float32)


def shift_of(table: np.ndarray) -> int | None:
    """s, if the table is x + s throughout."""
    shift = int(table[0])
    return shift if shift >= 0 and np.array_equal(table, np.arange(len(table)) + shift) else None
