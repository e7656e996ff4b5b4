"""Products of bfloat16 numbers, two in a 32-bit word, summed in float32.

A word holds the numbers of channels 2 n (low half) and 2 n + 1 (high half). CPUs with AVX512_BF16
multiply and add both pairs of two words in one instruction, VDPBF16PS: first the high halves, then
the low ones, each rounded as a fused multiply-add. Elsewhere two fused multiply-adds do just that,
so that the bits are the same. The instruction takes numbers below 2^-126 for zeros: rounding to
bfloat16 makes them so everywhere.
"""

from __future__ import annotations

import llvmlite.ir as ir
import numpy as np
import numpy.typing as npt

from hyper_inference.compiler.codegen.emitter import I32, Emitter, Value
from hyper_inference.compiler.ir import Floats

_SMALLEST = float(np.finfo(np.float32).tiny)


class _BFloat(ir.Type):  # type: ignore[misc]  # llvmlite has no types
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


def load_words(e: Emitter, pointer: Value, offset: Value = 0) -> Value:
    """One vector of words."""
    return e.b.load(e.at(pointer, offset), align=4, typ=e.ivector)


def broadcast_word(e: Emitter, pointer: Value, offset: Value = 0) -> Value:
    """One word in all lanes."""
    word = e.b.load(e.at(pointer, offset), align=4, typ=I32)
    undefined = ir.Constant(e.ivector, ir.Undefined)
    return e.shuffle(e.b.insert_element(undefined, word, ir.Constant(I32, 0)), undefined,
                     [0] * e.width)  # fmt: skip


def join(e: Emitter, low: Value, high: Value) -> Value:
    """Two vectors of floats, each rounded to bfloat16, as words."""
    return e.b.or_(e.b.lshr(_rounded(e, low), e.integers(16)), _rounded(e, high))


def _rounded(e: Emitter, value: Value) -> Value:
    """The nearest bfloat16, ties to even, in the high half of words whose low half is zero."""
    b = e.b
    bits = b.bitcast(value, e.ivector)
    odd = b.and_(b.lshr(bits, e.integers(16)), e.integers(1))
    near = b.add(bits, b.add(odd, e.integers(0x7FFF)))
    near = b.select(b.fcmp_unordered("uno", value, value), e.integers(0x7FC00000), near)
    tiny = b.fcmp_ordered("<", e.absolute(value), e.constant(_SMALLEST))
    return b.and_(b.select(tiny, e.integers(0), near), e.integers(-0x10000))


def add_products(
    e: Emitter, sums: list[Value], words: list[Value], weights: Value, count: int
) -> None:
    """`sums[n * len(words) + v] += weights[n] . words[v]` for `count` weights, in place.

    Each weight is loaded where it is used: sums take nearly all registers.
    """
    if e.target.has_bfloat:
        for n in range(count):
            weight = broadcast_word(e, weights, n)
            for v, word in enumerate(words):
                at = n * len(words) + v
                sums[at] = _dot(e, sums[at], weight, word)
        return
    for half in (_high, _low):
        numbers = [half(e, word) for word in words]
        for n in range(count):
            factor = half(e, broadcast_word(e, weights, n))
            for v, number in enumerate(numbers):
                at = n * len(words) + v
                sums[at] = e.fma(factor, number, sums[at])


def _high(e: Emitter, words: Value) -> Value:
    return e.b.bitcast(e.b.and_(words, e.integers(-0x10000)), e.vector)


def _low(e: Emitter, words: Value) -> Value:
    return e.b.bitcast(e.b.shl(words, e.integers(16)), e.vector)


def _dot(e: Emitter, total: Value, one: Value, other: Value) -> Value:
    pairs = ir.VectorType(_BFloat(), 2 * e.width)
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * e.width}"
    function = e.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(e.vector, [e.vector, pairs, pairs])
        function = ir.Function(e.module, kind, name)
    return e.b.call(function, [total, e.b.bitcast(one, pairs), e.b.bitcast(other, pairs)])


def pack_pairs(weights: Floats) -> npt.NDArray[np.float32]:
    """(..., c, taps, o) -> (..., c / 2 rounded up, taps, o) words, as if they were floats."""
    if weights.shape[-3] % 2:
        more = [(0, 0)] * weights.ndim
        more[-3] = (0, 1)
        weights = np.pad(weights, more)
    bits = np.ascontiguousarray(weights, np.float32).view(np.uint32)
    near = (bits + ((bits >> 16) & 1) + 0x7FFF) & np.uint32(0xFFFF0000)
    near[np.abs(weights) < _SMALLEST] = 0
    words = (near[..., 0::2, :, :] >> 16) | near[..., 1::2, :, :]
    return words.view(np.float32)
