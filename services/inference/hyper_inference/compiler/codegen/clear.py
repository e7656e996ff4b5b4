"""Zero what lies around the rows of a buffer: halo planes and rows, margins between rows."""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from hyper_inference.compiler.codegen.emitter import F32, Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel
from hyper_inference.compiler.memory_plan import Geometry


@dataclass(frozen=True, slots=True)
class ClearHalos(Kernel):
    """`out` is the buffer's start; a row is one of its (z, y), halos included."""

    geometry: Geometry

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Halo rows as a whole; of the others the margins of every channel."""
        g = self.geometry
        with e.loop(p.begin, p.end) as row:
            out = e.at(p.out, e.mul(row.index, g.row_stride))
            self._zero(e, out, 0, g.left)  # also the right margin of the row before
            halo = self._is_halo(e, row.index)
            if halo is None:
                self._margins(e, out)
            else:
                with e.b.if_else(halo) as (whole, margins):
                    with whole:
                        self._zero(e, out, g.left, g.row_stride + g.left)
                    with margins:
                        self._margins(e, out)

    def _margins(self, e: Emitter, out: Value) -> None:
        g = self.geometry
        if g.left:
            with e.loop(0, g.shape[0]) as channel:
                self._zero(e, e.at(out, e.mul(channel.index, g.pitch)), g.pitch, g.pitch + g.left)

    def _zero(self, e: Emitter, out: Value, first: int, stop: int) -> None:
        """Not a float more: behind the buffer may lie another that is in use."""
        whole = stop - (stop - first) % e.width
        if first < whole:
            with e.loop(first, whole, e.width) as x:
                e.store(e.constant(0.0), out, x.index)
        for offset in range(whole, stop):
            e.store_scalar(ir.Constant(F32, 0.0), out, offset)

    def _is_halo(self, e: Emitter, row: Value) -> Value:
        """None: the buffer has no halo rows."""
        g = self.geometry
        rows = g.shape[2] + g.before[1] + g.after[1]
        z, y = e.divmod(row, rows)
        outside = None
        for at, before, size, after in (
            (z, g.before[0], g.shape[1], g.after[0]),
            (y, g.before[1], g.shape[2], g.after[1]),
        ):
            if before or after:
                inside = e.b.icmp_unsigned("<", e.i64(e.add(at, -before)), e.i64(size))
                beyond = e.b.not_(inside)
                outside = beyond if outside is None else e.b.or_(outside, beyond)
        return outside
