"""Between the user's dense arrays and the arena: `(c, z, y, x)` <-> `[z][y][c][x]`.

Dense rows end where the next begins, so their tails move float by float, never past the end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from hyper_inference.compiler.codegen.emitter import F32, Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Strides
from hyper_inference.compiler.ir import Shape


@dataclass(frozen=True, slots=True)
class Pack(Kernel):
    """Read the user's array, `skip` floats behind its beginning."""

    shape: Shape
    out: Strides
    skip: int = 0

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, x."""

        def line(dense: Value, placed: Value) -> None:
            whole, tail = divmod(self.shape[3], e.width)
            if whole:
                with e.loop(0, whole * e.width, e.width) as loop:
                    e.store(e.load(dense, loop.index), placed, loop.index)
            if tail:
                at = whole * e.width
                lanes = [e.load_scalar(dense, at + lane) for lane in range(tail)]
                zeros = [ir.Constant(F32, 0.0)] * (e.width - tail)
                e.store(e.build([*lanes, *zeros]), placed, at)

        _each_line(e, p, self.shape, e.at(p.a, self.skip), p.out, self.out, line)


@dataclass(frozen=True, slots=True)
class Unpack(Kernel):
    """Write the user's array, `skip` floats behind its beginning."""

    shape: Shape
    a: Strides
    skip: int = 0

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, x."""

        def line(dense: Value, placed: Value) -> None:
            whole, tail = divmod(self.shape[3], e.width)
            if whole:
                with e.loop(0, whole * e.width, e.width) as loop:
                    e.store(e.load(placed, loop.index), dense, loop.index)
            for lane in range(tail):
                at = whole * e.width + lane
                e.b.store(e.load_scalar(placed, at), e.at(dense, at), align=4)

        _each_line(e, p, self.shape, e.at(p.out, self.skip), p.a, self.a, line)


def _each_line(
    e: Emitter,
    p: Arguments,
    shape: Shape,
    dense: Value,
    placed: Value,
    s: Strides,
    line: Callable[[Value, Value], None],
) -> None:
    channels, depth, height, size = shape
    with e.loop(p.begin, p.end) as row:
        z, y = e.divmod(row.index, height)
        with e.loop(0, channels) as channel:
            row_at = e.add(e.mul(channel.index, depth * height * size), e.mul(row.index, size))
            offsets = e.mul(z, s.plane), e.mul(y, s.row), e.mul(channel.index, s.channel)
            line(e.at(dense, row_at), e.at(placed, e.add(*offsets)))
