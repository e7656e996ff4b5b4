"""Scale and shift, activations, and two values added, subtracted or multiplied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hyper_inference.compiler.codegen.activations import apply
from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.codegen.kernel import Arguments, Kernel, Strides
from hyper_inference.compiler.ir import Activation


@dataclass(frozen=True, slots=True)
class Pointwise(Kernel):
    """`act(a * scale + shift)` or `act(a op b)`.

    A stride of 0 along the channels uses one channel for all.
    """

    kind: Literal["affine", "identity", "add", "sub", "mul"]
    channels: int
    height: int
    size: int
    a: Strides
    b: Strides | None
    out: Strides
    activation: Activation | None

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, vectors of x."""
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)
            with e.loop(0, self.channels) as channel:

                def place(pointer: Value, s: Strides) -> Value:
                    offsets = (
                        e.mul(z, s.plane), e.mul(y, s.row), e.mul(channel.index, s.channel)
                    )  # fmt: skip
                    return e.at(pointer, e.add(*offsets))

                a, out = place(p.a, self.a), place(p.out, self.out)
                b = place(p.b, self.b) if self.b is not None else None
                constants = e.at(p.constants, e.mul(channel.index, 2))

                def body(x: Value, lanes: int) -> None:
                    value = self._value(e, e.load(a, x), e.load(b, x) if b else None, constants)
                    e.store(e.keep(apply(e, self.activation, value), lanes), out, x)

                e.each_vector(self.size, body)

    def _value(self, e: Emitter, a: Value, b: Value, constants: Value) -> Value:
        match self.kind:
            case "affine":
                return e.fma(a, e.broadcast(constants), e.broadcast(constants, 1))
            case "add":
                return e.b.fadd(a, b)
            case "sub":
                return e.b.fsub(a, b)
            case "mul":
                return e.b.fmul(a, b)
            case "identity":
                return a
