"""Transposed convolution whose stride is its kernel, in rows of its input.

For every (dz, dy) of the kernel, one output row: `kx` sums a vector of input, interleaved when they
are stored. Each sum starts at 0 and runs over input channels; bias and residual follow.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

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
from hyper_inference.compiler.ir import Activation, ConvTranspose, Floats, Triple


@dataclass(frozen=True, slots=True)
class ConvTransposeDirect(Kernel):
    """Sizes and strides; `height` and `size` are the input's along y and x."""

    channels_in: int
    channels_out: int
    kernel: Triple
    height: int
    size: int
    a: Strides
    out: Strides
    residual: Strides | None
    activation: Activation | None
    block: int

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Blocks of output channels, dz, dy, rows, vectors of x."""
        for dz in range(self.kernel[0]):
            for dy in range(self.kernel[1]):
                whole, rest = divmod(self.channels_out, self.block)
                part = self.channels_in * self.kernel[2]
                weights = (dz * self.kernel[1] + dy) * part * self.channels_out
                if whole:
                    with e.loop(0, whole) as block:
                        at = e.add(e.mul(block.index, part * self.block), weights)
                        channel = e.mul(block.index, self.block)
                        self._rows(e, p, e.at(p.constants, at), channel, self.block, dz, dy)
                if rest:
                    at = e.at(p.constants, weights + whole * part * self.block)
                    self._rows(e, p, at, whole * self.block, rest, dz, dy)

    def _rows(
        self, e: Emitter, p: Arguments, weights: Value, channel: Value, count: int, dz: int, dy: int
    ) -> None:
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)
            source = e.at(p.a, e.add(e.mul(z, self.a.plane), e.mul(y, self.a.row)))
            z_out = e.add(e.mul(z, self.kernel[0]), dz)
            y_out = e.add(e.mul(y, self.kernel[1]), dy)

            def place(pointer: Value, s: Strides) -> Value:
                offsets = e.mul(channel, s.channel), e.mul(y_out, s.row), e.mul(z_out, s.plane)
                return e.at(pointer, e.add(*offsets))

            out = place(p.out, self.out)
            residual = place(p.b, self.residual) if self.residual is not None else None

            def body(x: Value, lanes: int) -> None:
                self._block(e, p, source, weights, channel, count, x, lanes, out, residual)

            e.each_vector(self.size, body)

    def _block(
        self, e: Emitter, p: Arguments, source: Value, weights: Value, channel: Value, count: int,
        x: Value, lanes: int, out: Value, residual: Value,
    ) -> None:  # fmt: skip
        kx = self.kernel[2]
        with e.loop(0, self.channels_in, 1, [e.constant(0.0)] * (count * kx)) as c:
            pixels = e.load(source, e.add(x, e.mul(c.index, self.a.channel)))
            slice_ = e.at(weights, e.mul(c.index, count * kx))
            c.carried[:] = [
                e.fma(e.broadcast(slice_, n), pixels, total) for n, total in enumerate(c.carried)
            ]
        per_weight = int(np.prod(self.kernel)) * self.channels_in * self.channels_out
        biases = e.at(e.at(p.constants, per_weight), channel)
        scales = e.at(biases, self.channels_out)
        for n in range(count):
            bias = e.broadcast(biases, n)
            woven = interleave(e, c.carried[n * kx : (n + 1) * kx])
            for part, value in enumerate(woven):
                used = lanes * kx - part * e.width
                if used <= 0:
                    break
                at = e.add(e.mul(x, kx), part * e.width)
                value = e.b.fadd(value, bias)
                next_row = e.add(at, n * self.out.channel + self.kernel[1] * self.out.row)
                e.prefetch(out, next_row, write=True)
                if self.residual is not None:
                    seen = e.add(at, n * self.residual.channel)
                    e.prefetch(residual, e.add(seen, self.kernel[1] * self.residual.row))
                    other = e.load(residual, seen)
                    value = e.fma(other, e.broadcast(scales, n), value)
                value = e.keep(apply(e, self.activation, value), used)
                e.store(value, out, e.add(at, n * self.out.channel))


def interleave(e: Emitter, vectors: list[Value]) -> list[Value]:
    """a0 b0 c0 a1 b1 c1 ... as vectors again."""
    count = len(vectors)
    if count == 1:
        return vectors
    woven = []
    for part in range(count):
        lanes = [divmod(part * e.width + lane, count) for lane in range(e.width)]
        value = vectors[0]
        for index in range(count):
            if index == 0:
                mask = [x if which == 0 else 0 for x, which in lanes]
                value = e.shuffle(vectors[0], vectors[0], mask)
                continue
            mask = [
                e.width + x if which == index else lane for lane, (x, which) in enumerate(lanes)
            ]
            value = e.shuffle(value, vectors[index], mask)
        woven.append(value)
    return woven


def pack(op: ConvTranspose, block: int) -> Packed:
    """Weights as [dz][dy][block][c][o of the block][dx], then biases, then residual scales."""
    _, channels, kz, ky, _ = op.weight.shape

    def fill(out: Floats, _: Transforms) -> None:
        start = 0
        for dz, dy, first in itertools.product(range(kz), range(ky), range(0, channels, block)):
            part = op.weight[:, first : first + block, dz, dy, :]
            out[start : start + part.size].reshape(part.shape)[:] = part
            start += part.size

    return packed(op, op.weight.size, fill)


def choose_block(channels: int, kernel_x: int, accumulators: int) -> int:
    """Output channels of a register block: as many as fit, in equal blocks."""
    most = max(1, min(channels, accumulators // kernel_x))
    return -(-channels // -(-channels // most))
