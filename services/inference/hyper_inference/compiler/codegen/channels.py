"""Across channels: softmax, and channels that become blocks of voxels."""

from __future__ import annotations

from dataclasses import dataclass

from hyper_inference.compiler.codegen.activations import exponential
from hyper_inference.compiler.codegen.conv_transpose import interleave
from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Strides
from hyper_inference.compiler.ir import Triple


@dataclass(frozen=True, slots=True)
class SoftmaxChannels(Kernel):
    """exp(x - largest) / sum, over the channels of every voxel."""

    channels: int
    height: int
    size: int
    a: Strides
    out: Strides

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, vectors of x, channels three times: largest, powers and their sum, quotients."""
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)
            a = e.at(p.a, e.add(e.mul(z, self.a.plane), e.mul(y, self.a.row)))
            out = e.at(p.out, e.add(e.mul(z, self.out.plane), e.mul(y, self.out.row)))

            def body(x: Value, lanes: int) -> None:
                source, to = e.at(a, x), e.at(out, x)
                with e.loop(0, self.channels, 1, [e.constant(float("-inf"))]) as c:
                    value = e.load(source, e.mul(c.index, self.a.channel))
                    c.carried[:] = [e.select_less(c.carried[0], value, value, c.carried[0])]
                largest = c.carried[0]
                with e.loop(0, self.channels, 1, [e.constant(0.0)]) as c:
                    value = e.load(source, e.mul(c.index, self.a.channel))
                    power = exponential(e, e.b.fsub(value, largest))
                    e.store(power, to, e.mul(c.index, self.out.channel))
                    c.carried[:] = [e.b.fadd(c.carried[0], power)]
                total = c.carried[0]
                with e.loop(0, self.channels) as c:
                    at = e.mul(c.index, self.out.channel)
                    e.store(e.keep(e.b.fdiv(e.load(to, at), total), lanes), to, at)

            e.each_vector(self.size, body)


@dataclass(frozen=True, slots=True)
class Blocks(Kernel):
    """`out[o, z, y, x] = a[(o, z % fz, y % fy, x % fx), z / fz, y / fy, x / fx]`.

    `block_first`: o is the last of the four that count the channels of `a`.
    """

    channels: int
    factor: Triple
    height: int
    size: int
    a: Strides
    out: Strides
    block_first: bool

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Output rows, channels, vectors of the input's x, woven."""
        fz, fy, fx = self.factor
        per_part = self.channels if self.block_first else 1
        per_channel = 1 if self.block_first else fz * fy * fx
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)
            z_in, z_part = e.divmod(z, fz)
            y_in, y_part = e.divmod(y, fy)
            part = e.mul(e.add(e.mul(z_part, fy), y_part), fx * per_part)
            with e.loop(0, self.channels) as channel:
                first = e.add(e.mul(channel.index, per_channel), part)
                offsets = e.mul(z_in, self.a.plane), e.mul(y_in, self.a.row)
                a = e.at(p.a, e.add(*offsets, e.mul(first, self.a.channel)))
                offsets = e.mul(z, self.out.plane), e.mul(y, self.out.row)
                out = e.at(p.out, e.add(*offsets, e.mul(channel.index, self.out.channel)))

                def body(x: Value, lanes: int) -> None:
                    step = per_part * self.a.channel
                    values = [e.load(a, e.add(x, n * step)) for n in range(fx)]
                    for n, value in enumerate(interleave(e, values)):
                        used = lanes - n * e.width
                        if used > 0:
                            at = e.add(e.mul(x, fx), n * e.width)
                            e.store(e.keep(value, used), out, at)

                whole, tail = divmod(self.size, fx * e.width)
                if whole:
                    with e.loop(0, whole * e.width, e.width) as loop:
                        body(loop.index, fx * e.width)
                if tail:
                    body(whole * e.width, tail)
