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

    A stride of 0 uses one channel, row or plane for all, `a_one`, `b_one` one voxel for its row.
    `scale_shift`: b holds scales, and `shift_at` floats behind them shifts.
    """

    kind: Literal[
        "affine", "identity", "prelu", "scale_shift", "add", "sub", "mul", "div", "max", "min"
    ]
    channels: int
    height: int
    size: int
    a: Strides
    b: Strides | None
    out: Strides
    activation: Activation | None
    a_one: bool = False
    b_one: bool = False
    shift_at: int = 0

    def emit(self, e: Emitter, p: Arguments) -> None:
        """Rows, channels, vectors of x."""
        with e.loop(p.begin, p.end) as row:
            z, y = e.divmod(row.index, self.height)
            with e.loop(0, self.channels) as channel:
                at = z, y, channel.index
                a, out = self.a.at(e, p.a, *at), self.out.at(e, p.out, *at)
                b = self.b.at(e, p.b, *at) if self.b is not None else None
                constants = e.at(p.constants, e.mul(channel.index, 2))

                def body(x: Value, lanes: int) -> None:
                    left = e.broadcast(a) if self.a_one else e.load(a, x)
                    if self.kind == "scale_shift":
                        value = e.fma(left, e.broadcast(b), e.broadcast(b, self.shift_at))
                    elif b is None:
                        value = self._alone(e, left, constants)
                    else:
                        value = self._both(e, left, e.broadcast(b) if self.b_one else e.load(b, x))
                    e.store(e.keep(apply(e, self.activation, value), lanes), out, x)

                e.each_vector(self.size, body)

    def _alone(self, e: Emitter, a: Value, constants: Value) -> Value:
        if self.kind == "affine":
            return e.fma(a, e.broadcast(constants), e.broadcast(constants, 1))
        if self.kind == "prelu":
            zero = e.constant(0.0)
            return e.select_less(a, zero, e.b.fmul(a, e.broadcast(constants)), a)
        return a

    def _both(self, e: Emitter, a: Value, b: Value) -> Value:
        match self.kind:
            case "sub":
                return e.b.fsub(a, b)
            case "mul":
                return e.b.fmul(a, b)
            case "div":
                return e.b.fdiv(a, b)
            case "max" | "min":
                less = (
                    e.select_less(a, b, b, a) if self.kind == "max" else e.select_less(b, a, b, a)
                )
                return e.b.select(e.b.fcmp_unordered("uno", b, b), b, less)  # NaN wins
            case _:
                return e.b.fadd(a, b)
