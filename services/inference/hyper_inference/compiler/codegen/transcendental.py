"""Exponential, logarithm and what is made of them, for any argument, on vectors.

Only operations whose result IEEE 754 fixes, so that every vector width gives the same bits. Errors
are a few units of the last place.
"""

from __future__ import annotations

import math
from typing import Literal, TypeAlias, assert_never

from hyper_inference.compiler.codegen.emitter import Emitter, Value

Kind: TypeAlias = Literal["exp", "log", "sqrt", "reciprocal", "softplus", "mish"]

_EXP2 = (1.5403530e-4, 1.33335581e-3, 9.61812911e-3, 5.55041087e-2, 2.40226507e-1, 6.93147181e-1)
"""Taylor coefficients of 2^f, highest first."""
_LN2_HIGH, _LN2_LOW = 0.693145751953125, 1.42860682030941723212e-6
_ATANH = (1 / 9, 1 / 7, 1 / 5, 1 / 3, 1.0)
"""log(m) = 2 s (1 + s^2 / 3 + ...), s = (m - 1) / (m + 1)."""
_SMALLEST_NORMAL = 1.17549435e-38


def transcendental(e: Emitter, kind: Kind, x: Value) -> Value:
    """`kind(x)`; NaN stays NaN."""
    b, one, two = e.b, e.constant(1.0), e.constant(2.0)
    match kind:
        case "exp":
            return exp(e, x)
        case "log":
            return log(e, x)
        case "sqrt":
            return e.square_root(x)
        case "reciprocal":
            return b.fdiv(one, x)
        case "softplus":
            small = exp(e, b.fneg(e.absolute(x)))
            positive = e.select_less(x, e.constant(0.0), e.constant(0.0), x)
            return b.fadd(positive, log(e, b.fadd(one, small)))
        case "mish":  # tanh(log(1 + e^x)) with w = e^-|x|, so that nothing overflows
            w = exp(e, b.fneg(e.absolute(x)))
            right = b.fdiv(e.fma(two, w, one), e.fma(w, e.fma(two, w, two), one))
            top = e.fma(w, w, b.fmul(two, w))
            left = b.fdiv(top, b.fadd(top, two))
            return b.fmul(x, e.select_less(x, e.constant(0.0), left, right))
        case _:
            assert_never(kind)


def exp(e: Emitter, x: Value) -> Value:
    """e^x: 2^n in two factors, so that the ends of the range come out as 0 and infinity."""
    b, given = e.b, x
    low, high = e.constant(-104.0), e.constant(89.0)
    x = e.select_less(low, x, x, low)
    x = e.select_less(x, high, x, high)
    whole = e.nearest(b.fmul(x, e.constant(1 / math.log(2))))
    rest = e.fma(whole, e.constant(-_LN2_HIGH), x)
    rest = e.fma(whole, e.constant(-_LN2_LOW), rest)
    rest = b.fmul(rest, e.constant(1 / math.log(2)))
    value = e.constant(_EXP2[0])
    for coefficient in (*_EXP2[1:], 1.0):
        value = e.fma(value, rest, e.constant(coefficient))
    n = b.fptosi(whole, e.ivector)
    half = b.ashr(n, e.integers(1))
    for part in (half, b.sub(n, half)):
        power = b.shl(b.add(part, e.integers(127)), e.integers(23))
        value = b.fmul(value, b.bitcast(power, e.vector))
    return b.select(b.fcmp_unordered("uno", given, given), given, value)


def log(e: Emitter, x: Value) -> Value:
    """log(x): of 0 it is -infinity, of less NaN."""
    b, given = e.b, x
    tiny = b.fcmp_ordered("<", x, e.constant(_SMALLEST_NORMAL))
    x = b.select(tiny, b.fmul(x, e.constant(2.0**23)), x)
    bits = b.bitcast(x, e.ivector)
    # The mantissa in [sqrt(1/2), sqrt(2)): its exponent is counted from that of sqrt(1/2).
    moved = b.sub(bits, e.integers(0x3F3504F3))
    exponent = b.ashr(moved, e.integers(23))
    mantissa = b.bitcast(b.sub(bits, b.shl(exponent, e.integers(23))), e.vector)
    count = b.sitofp(exponent, e.vector)
    count = b.select(tiny, b.fsub(count, e.constant(23.0)), count)
    s = b.fdiv(b.fsub(mantissa, e.constant(1.0)), b.fadd(mantissa, e.constant(1.0)))
    square = b.fmul(s, s)
    series = e.constant(_ATANH[0])
    for coefficient in _ATANH[1:]:
        series = e.fma(series, square, e.constant(coefficient))
    value = b.fmul(b.fmul(e.constant(2.0), s), series)
    value = e.fma(count, e.constant(_LN2_LOW), value)
    value = e.fma(count, e.constant(_LN2_HIGH), value)
    infinity, zero = e.constant(math.inf), e.constant(0.0)
    value = b.select(b.fcmp_ordered("==", given, infinity), infinity, value)
    value = b.select(b.fcmp_ordered("==", given, zero), e.constant(-math.inf), value)
    return b.select(b.fcmp_unordered("<", given, zero), e.constant(math.nan), value)
