"""Activations on vectors, each within a few units of the last place of 1.

NaN stays NaN. All are written with operations whose result IEEE 754 fixes, so that every vector
width gives the same bits.
"""

from __future__ import annotations

import math
from typing import assert_never

from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.codegen.transcendental import transcendental
from hyper_inference.compiler.ir import Activation

_LOG2_E = 1.4426950408889634
_EXP2 = (1.5403530e-4, 1.33335581e-3, 9.61812911e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1)
"""Taylor coefficients of 2^f, highest first; on [-1/2, 1/2] the error is below 1.2e-7."""

_ERF_P = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
"""The rational approximation 7.1.26 of Abramowitz and Stegun, highest power first."""


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
            shrunk = b.fsub(exponential(e, e.select_less(x, zero, x, zero)), one)
            if activation.alpha != 1:
                shrunk = b.fmul(shrunk, e.constant(activation.alpha))
            return e.select_less(x, zero, shrunk, x)
        case "sigmoid":
            return _sigmoid(e, x)
        case "tanh":
            small = exponential(e, b.fmul(e.absolute(x), e.constant(-2.0)))
            right = b.fdiv(b.fsub(one, small), b.fadd(one, small))
            return _or_nan(e, x, e.select_less(x, zero, b.fneg(right), right))
        case "silu":
            return b.fmul(x, _sigmoid(e, x))
        case "erf":
            return _erf(e, x)
        case "gelu":
            half = b.fmul(x, e.constant(0.5))
            return e.fma(half, _erf(e, b.fmul(x, e.constant(math.sqrt(0.5)))), half)
        case "gelu_tanh":
            cube = b.fmul(b.fmul(x, x), x)
            inner = e.fma(cube, e.constant(0.044715), x)
            return b.fmul(x, _sigmoid(e, b.fmul(inner, e.constant(2 * math.sqrt(2 / math.pi)))))
        case "hardswish":
            gate = e.fma(x, e.constant(1 / 6), e.constant(0.5))
            return b.fmul(x, _clip(e, gate, 0.0, 1.0))
        case "clip":
            return _clip(e, x, activation.alpha, activation.beta)
        case "abs":
            return e.absolute(x)
        case "exp" | "log" | "sqrt" | "reciprocal" | "softplus" | "mish":
            return transcendental(e, activation.kind, x)
        case _:
            assert_never(activation.kind)


def _sigmoid(e: Emitter, x: Value) -> Value:
    zero, one, b = e.constant(0.0), e.constant(1.0), e.b
    small = exponential(e, b.fneg(e.absolute(x)))
    right = b.fdiv(one, b.fadd(one, small))
    return _or_nan(e, x, e.select_less(x, zero, b.fmul(small, right), right))


def _clip(e: Emitter, x: Value, low: float, high: float) -> Value:
    least, most = e.constant(low), e.constant(high)
    x = e.select_less(x, least, least, x)
    return e.select_less(most, x, most, x)


def _erf(e: Emitter, x: Value) -> Value:
    """1 - t * polynomial(t) * e^(-x^2), t = 1 / (1 + p |x|); the error is below 2e-7."""
    one, b = e.constant(1.0), e.b
    size = e.absolute(x)
    t = b.fdiv(one, e.fma(size, e.constant(_ERF_P), one))
    value = e.constant(_ERF[0])
    for coefficient in (*_ERF[1:], 0.0):
        value = e.fma(value, t, e.constant(coefficient))
    rest = b.fmul(value, exponential(e, b.fneg(b.fmul(size, size))))
    right = b.fsub(one, rest)
    return _or_nan(e, x, e.select_less(x, e.constant(0.0), b.fneg(right), right))


def _or_nan(e: Emitter, x: Value, result: Value) -> Value:
    return e.b.select(e.b.fcmp_unordered("uno", x, x), x, result)


def exponential(e: Emitter, x: Value) -> Value:
    """e^x for x <= 0: 2^n times a polynomial of the rest; below -87 as at -87; NaN stays NaN."""
    given = x
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
    return _or_nan(e, given, e.b.fmul(value, power))
