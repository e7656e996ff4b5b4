"""Direct convolution: any kernel, stride, dilation, groups.

A register block is `channels x rows x vectors` sums. For every input channel and tap, `vectors`
loads of the input meet `channels` broadcast weights; with few channels, several output rows share
each load too. Each output's sum starts at its bias and runs over input channel, z, y, x in that
order, whatever the block, so blocking never changes a bit. Where errors shall be small, few
products are summed in a row, and such sums added: the error of a sum grows with its length.

The block of output channels is the outer loop and the rows of the chunk the inner one: a slice of
the weights is read from memory once a chunk.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import TypeAlias

from hyper_inference.compiler.codegen.activations import apply
from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.codegen.kernel import (
    Arguments,
    Kernel,
    Packed,
    Strides,
    Transforms,
    packed,
)
from hyper_inference.compiler.ir import Activation, Conv, Floats, Triple

Sums: TypeAlias = list[Value]

MAX_UNROLLED = 1200
"""Multiply-adds in a straight line; more and the instruction cache suffers."""


@dataclass(frozen=True, slots=True)
class ConvDirect(Kernel):
    """Sizes and strides of one convolution.

    Args:
        channels_in, channels_out: of one group.
        height, size: of the output along y and x.
        residual: strides of a second input, or None.
        block: (output channels, rows, vectors) of a register block.
        in_place: results take the residual's place: no row may be computed twice.
        products: how many are summed in a row, about; 0: all.
    """

    channels_in: int
    channels_out: int
    groups: int
    kernel: Triple
    stride: Triple
    dilation: Triple
    pad: Triple
    height: int
    size: int
    a: Strides
    out: Strides
    residual: Strides | None
    activation: Activation | None
    block: Triple
    in_place: bool = False
    products: int = 0

    @property
    def taps(self) -> int:
        """Weights of one pair of channels."""
        z, y, x = self.kernel
        return z * y * x

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Groups, blocks of output channels, rows, blocks of x."""
        whole, rest = divmod(self.channels_out, self.block[0])
        per_block = self.channels_in * self.taps * self.block[0]
        per_group = self.channels_in * self.taps * self.channels_out
        with e.loop(0, self.groups) as group:
            weights = e.at(p.constants, e.mul(group.index, per_group))
            first = e.mul(group.index, self.channels_out)
            a = e.at(p.a, e.mul(e.mul(group.index, self.channels_in), self.a.channel))
            if whole:
                with e.loop(0, whole) as block:
                    channel = e.add(first, e.mul(block.index, self.block[0]))
                    at = e.at(weights, e.mul(block.index, per_block))
                    self._rows(e, p, a, at, channel, self.block[0])
            if rest:
                at = e.at(weights, whole * per_block)
                self._rows(e, p, a, at, e.add(first, whole * self.block[0]), rest)

    def _rows(
        self, e: Emitter, p: Arguments, a: Value, weights: Value, channel: Value, count: int
    ) -> None:
        """All rows of the chunk for `count` output channels from `channel` on."""
        rows = self.block[1]
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, -(-self.height // rows))
            if rows > 1:  # the last block overlaps the one before: the same bits, written again
                last = e.i64(self.height - rows)
                y = e.i64(e.mul(y, rows))
                y = e.b.select(e.b.icmp_signed("<", y, last), y, last)
            z_in = e.add(e.mul(z, self.stride[0]), -self.pad[0])
            y_in = e.add(e.mul(y, self.stride[1]), -self.pad[1])
            source = e.at(
                a, e.add(e.mul(z_in, self.a.plane), e.mul(y_in, self.a.row), -self.pad[2])
            )

            def place(pointer: Value, s: Strides) -> Value:
                offsets = e.mul(channel, s.channel), e.mul(y, s.row), e.mul(z, s.plane)
                return e.at(pointer, e.add(*offsets))

            out = place(p.out, self.out)
            residual = place(p.b, self.residual) if self.residual is not None else None
            lanes = [min(e.width, self.size - x) for x in range(0, self.size, e.width)]
            step = min(self.block[2], len(lanes))
            blocks, rest = divmod(len(lanes), step)
            if rest == 0 and lanes[-1] < e.width:
                blocks, rest = blocks - 1, step
            if blocks:
                with e.loop(0, blocks * step * e.width, step * e.width) as xs:
                    self._block(
                        e, p, source, weights, channel, count, xs.index, [e.width] * step, out,
                        residual,
                    )  # fmt: skip
            if rest:
                x = blocks * step * e.width
                self._block(e, p, source, weights, channel, count, x, lanes[-rest:], out, residual)

    def _block(
        self, e: Emitter, p: Arguments, source: Value, weights: Value, channel: Value, count: int,
        x: Value, lanes: list[int], out: Value, residual: Value,
    ) -> None:  # fmt: skip
        """One register block: sums, then epilogue and stores."""
        rows = self.block[1]
        biases = e.at(p.constants, self.groups * self.channels_in * self.taps * self.channels_out)
        biases = e.at(biases, channel)
        each = rows * len(lanes)
        start = [b for n in range(count) for b in [e.broadcast(biases, n)] * each]
        source = e.at(source, e.mul(x, self.stride[2]))
        sums = self._channels(e, source, weights, count, len(lanes), start)
        scales = e.at(biases, self.groups * self.channels_out)
        for n in range(count):
            scale = e.broadcast(scales, n) if self.residual is not None else None
            for r in range(rows):
                for v, used in enumerate(lanes):
                    value = sums[n * each + r * len(lanes) + v]
                    if self.residual is not None:
                        at = n * self.residual.channel + r * self.residual.row + v * e.width
                        value = e.fma(e.load(residual, e.add(x, at)), scale, value)
                    value = e.keep(apply(e, self.activation, value), used)
                    at = n * self.out.channel + r * self.out.row + v * e.width
                    e.store(value, out, e.add(x, at))

    def _channels(
        self, e: Emitter, source: Value, weights: Value, count: int, vectors: int, start: Sums
    ) -> Sums:
        """Sums over all input channels, or over groups of them, added up."""

        def some(source: Value, weights: Value, channels: int, sums: Sums) -> Sums:
            with e.loop(0, channels, 1, sums) as c:
                pixels = e.at(source, e.mul(c.index, self.a.channel))
                part = e.at(weights, e.mul(c.index, self.taps * count))
                self._prefetch(e, pixels, vectors)
                c.carried[:] = self._taps_z(e, pixels, part, count, vectors, c.carried)
            return c.carried

        each = max(1, self.products // self.taps) if self.products else self.channels_in
        if self.channels_in < 2 * each:
            return some(source, weights, self.channels_in, start)

        def add(first: Value, channels: int, totals: Sums) -> Sums:
            pixels = e.at(source, e.mul(first, self.a.channel))
            part = e.at(weights, e.mul(first, self.taps * count))
            sums = some(pixels, part, channels, [e.constant(0.0)] * len(totals))
            return [e.b.fadd(total, sum_) for total, sum_ in zip(totals, sums, strict=True)]

        whole, rest = divmod(self.channels_in, each)
        with e.loop(0, whole, 1, start) as group:
            group.carried[:] = add(e.mul(group.index, each), each, group.carried)
        return add(whole * each, rest, group.carried) if rest else group.carried

    def _prefetch(self, e: Emitter, pixels: Value, vectors: int) -> None:
        """The rows of the input that the next block of rows adds."""
        step = self.block[1] * self.stride[1]
        seen = (self.kernel[1] - 1) * self.dilation[1] + step
        for row in range(seen, seen + step):
            for x in range(0, vectors * e.width * self.stride[2], 16):
                e.prefetch(pixels, row * self.a.row + x)

    def _taps_z(
        self, e: Emitter, pixels: Value, weights: Value, count: int, vectors: int, sums: Sums
    ) -> Sums:
        """Taps along z: unrolled while the line is short enough, else a loop."""
        plane = self.kernel[1] * self.kernel[2] * count
        step = self.a.plane * self.dilation[0]

        def one(z: Value, sums: Sums) -> Sums:
            at = e.at(pixels, e.mul(z, step)), e.at(weights, e.mul(z, plane))
            return self._taps_y(e, *at, count, vectors, sums)

        if self.kernel[0] * plane * self.block[1] * vectors <= MAX_UNROLLED:
            for z in range(self.kernel[0]):
                sums = one(z, sums)
            return sums
        with e.loop(0, self.kernel[0], 1, sums) as loop:
            loop.carried[:] = one(loop.index, loop.carried)
        return loop.carried

    def _taps_y(
        self, e: Emitter, pixels: Value, weights: Value, count: int, vectors: int, sums: Sums
    ) -> Sums:
        """Input rows along y; each meets the tap `row - r` of every output row r that sees it."""
        taps, rows = self.kernel[1], self.block[1]
        line = self.kernel[2] * count

        def one(row: Value, seen_by: list[int], sums: Sums) -> Sums:
            meets = [(r, e.at(weights, e.mul(e.add(row, -r), line))) for r in seen_by]
            at = e.at(pixels, e.mul(row, self.a.row * self.dilation[1]))
            return self._taps_x(e, at, meets, count, vectors, sums)

        def partial(row: int, sums: Sums) -> Sums:
            return one(row, [r for r in range(rows) if 0 <= row - r < taps], sums)

        if taps * line * rows * vectors <= MAX_UNROLLED:
            for row in range(taps + rows - 1):
                sums = partial(row, sums)
            return sums
        for row in range(rows - 1):
            sums = partial(row, sums)
        with e.loop(rows - 1, taps, 1, sums) as loop:
            loop.carried[:] = one(loop.index, list(range(rows)), loop.carried)
        sums = loop.carried
        for row in range(taps, taps + rows - 1):
            sums = partial(row, sums)
        return sums

    def _taps_x(
        self, e: Emitter, pixels: Value, meets: list[tuple[int, Value]], count: int, vectors: int,
        sums: Sums,
    ) -> Sums:  # fmt: skip
        """Taps along x of one input row, for the output rows and weights of `meets`."""
        stride, rows = self.stride[2], self.block[1]

        def one(x: Value, sums: Sums) -> Sums:
            sums = list(sums)
            at = e.mul(x, self.dilation[2])
            loads = [
                e.load_strided(pixels, e.add(at, v * e.width * stride), stride)
                for v in range(vectors)
            ]
            for r, weights in meets:
                for n in range(count):
                    weight = e.broadcast(weights, e.add(e.mul(x, count), n))
                    first = (n * rows + r) * vectors
                    for v in range(vectors):
                        sums[first + v] = e.fma(weight, loads[v], sums[first + v])
            return sums

        if self.kernel[2] * count * rows * vectors <= MAX_UNROLLED:
            for x in range(self.kernel[2]):
                sums = one(x, sums)
            return sums
        with e.loop(0, self.kernel[2], 1, sums) as loop:
            loop.carried[:] = one(loop.index, loop.carried)
        return loop.carried


def pack(op: Conv, block: int) -> Packed:
    """Weights in the order the kernel reads them, then biases, then residual scales."""
    per_group = op.weight.shape[0] // op.groups

    def fill(out: Floats, _: Transforms) -> None:
        start = 0
        for group, first in itertools.product(range(op.groups), range(0, per_group, block)):
            channel = group * per_group + first
            size = min(block, per_group - first)
            part = op.weight[channel : channel + size].transpose(1, 2, 3, 4, 0)
            out[start : start + part.size].reshape(part.shape)[:] = part
            start += part.size

    return packed(op, op.weight.size, fill)


@functools.cache
def choose_block(
    channels: int, height: int, size: int, rows_share: int, width: int, accumulators: int
) -> Triple:
    """(output channels, rows, vectors) of the register block that costs the fewest cycles.

    A tap of a block costs its multiply-adds, or the latency of one chain, or its loads (an
    unaligned load of a whole cache line counts twice), whichever is most; and a little for each
    load in any case. `rows_share`: taps along y where neighbouring rows may share loads, else 1.
    """
    vectors = -(-size // width)
    best, chosen = float("inf"), (1, 1, 1)
    for rows in (1, 2, 4):
        if rows > min(rows_share, height):
            break
        for xs in range(1, min(8, vectors) + 1):
            for cs in range(1, min(channels, accumulators // (rows * xs)) + 1):
                total = 0.0
                for c, c_blocks in ((cs, channels // cs), (channels % cs, int(channels % cs > 0))):
                    for x, x_blocks in ((xs, vectors // xs), (vectors % xs, int(vectors % xs > 0))):
                        if c * x == 0:
                            continue
                        loads = 0.5 * c * rows + 2.0 * x * (rows_share + rows - 1) / rows_share
                        cycles = max(c * x * rows, 7.0, loads) + 0.1 * loads
                        total += c_blocks * x_blocks * cycles
                total *= -(-height // rows)
                if total < best:
                    best, chosen = total, (cs, rows, xs)
    return chosen
