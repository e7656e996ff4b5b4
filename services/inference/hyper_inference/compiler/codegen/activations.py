"""Activations on vectors, each within a few units of the last place of 1.

NaN stays NaN. All are written with operations whose result IEEE 754 fixes, so that every vector
width gives the same bits.
"""

from __future__ import annotations

from typing import assert_never

from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.ir import Activation

_LOG2_E = 1.4426950408889634
_EXP2 = (1.5403530e-4, 1.33335581e-3, 9.61812911e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1)
"""Taylor coefficients of 2^f, highest first; on [-1/2, 1/2] the error is below 1.2e-7."""


def apply(e: Emitter, activation: Activation | None, x: Value) -> Value:
    """`activation(x)`."""
    if activation is None:
        return x
    zero, one = e.constant(0.0), e.constant(1.0)
    b = e.b
    match activation.kind:
        case "relu":
            return e.select_less(x, zero, zero, x)
        case "leaky_relu":
            return e.select_less(x, zero, b.fmul(x, e.constant(activation.alpha)), x)
        case "elu":
            shrunk = b.fsub(_exp(e, e.select_less(x, zero, x, zero)), one)
            if activation.alpha != 1:
                shrunk = b.fmul(shrunk, e.constant(activation.alpha))
            return e.select_less(x, zero, shrunk, x)
        case "sigmoid":
            small = _exp(e, b.fneg(e.absolute(x)))
            right = b.fdiv(one, b.fadd(one, small))
            return _or_nan(e, x, e.select_less(x, zero, b.fmul(small, right), right))
        case "tanh":
            small = _exp(e, b.fmul(e.absolute(x), e.constant(-2.0)))
            right = b.fdiv(b.fsub(one, small), b.fadd(one, small))
            return _or_nan(e, x, e.select_less(x, zero, b.fneg(right), right))
        case _:
            assert_never(activation.kind)


def _or_nan(e: Emitter, x: Value, result: Value) -> Value:
    return e.b.select(e.b.fcmp_unordered("uno", x, x), x, result)


def _exp(e: Emitter, x: Value) -> Value:
    """e^x for x <= 0: 2^n times a polynomial of the rest; below -87 as at -87."""
    floor = e.constant(-87.0)
    x = e.select_less(floor, x, x, floor)
    scaled = e.b.fmul(x, e.constant(_LOG2_E))
    whole = e.nearest(scaled)
    rest = e.b.fsub(scaled, whole)
    value = e.constant(_EXP2[0])
    for coefficient in (*_EXP2[1:], 1.0):
        value = e.fma(value, rest, e.constant(coefficient))
    exponent = e.b.add(e.b.fptosi(whole, e.ivector), e.integers(127))
    power = e.b.bitcast(e.b.shl(exponent, e.integers(23)), e.vector)
    return e.b.fmul(value, power)
