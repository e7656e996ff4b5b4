"""Winograd's minimal filtering along one axis: transforms of inputs, weights and sums.

F(m, 3) computes m neighbouring outputs of a filter of three taps from n = m + 2 inputs d with n
multiplications instead of 3 m (Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks",
CVPR 2016, section 4):

    Y = A^T [ (G g) * (B^T d) ]

It is polynomial multiplication by evaluation: the filter g and the outputs' polynomial are
evaluated at n points (the rows of G, the columns of A^T), multiplied point by point, and brought
back; transposed (Tellegen), the interpolation becomes B^T on the inputs. F(2, 3) uses the points
0, 1, -1 and infinity; F(4, 3) uses 0, 1, -1, 2, -2 and infinity. Small integers keep B^T and A^T
cheap and the rounding error low; the denominators of the interpolation are moved into G, which is
applied once, in float64 (`transform_weights.py`).

Transforms along two axes nest: each is linear, so F(2, 3) x F(4, 3) applies one along z, then the
other along y. m = 1 is the axis left alone.
"""

from __future__ import annotations

from collections.abc import Sequence

from hyper_inference.compiler.codegen.emitter import Emitter, Value


def points(outputs: int) -> int:
    """Inputs of a tile, and products: n of F(outputs, 3)."""
    return outputs + 2 if outputs > 1 else 1


def transform_inputs(e: Emitter, outputs: int, d: Sequence[Value]) -> list[Value]:
    """B^T d, lane by lane."""
    b = e.b
    match outputs:
        case 1:
            return list(d)
        case 2:
            return [b.fsub(d[0], d[2]), b.fadd(d[1], d[2]), b.fsub(d[2], d[1]), b.fsub(d[1], d[3])]
        case 4:
            even, odd = e.fma(e.constant(-4), d[2], d[4]), e.fma(e.constant(-4), d[1], d[3])
            even_2, odd_2 = b.fsub(d[4], d[2]), b.fsub(d[3], d[1])
            return [
                e.fma(e.constant(4), d[0], e.fma(e.constant(-5), d[2], d[4])),
                b.fadd(even, odd),
                b.fsub(even, odd),
                e.fma(e.constant(2), odd_2, even_2),
                e.fma(e.constant(-2), odd_2, even_2),
                e.fma(e.constant(4), d[1], e.fma(e.constant(-5), d[3], d[5])),
            ]
        case _:
            raise ValueError(f"no F({outputs}, 3)")


def transform_sums(e: Emitter, outputs: int, m: Sequence[Value]) -> list[Value]:
    """A^T m, lane by lane."""
    b = e.b
    match outputs:
        case 1:
            return list(m)
        case 2:
            return [
                b.fadd(b.fadd(m[0], m[1]), m[2]),
                b.fsub(b.fsub(m[1], m[2]), m[3]),
            ]
        case 4:
            plus, minus = b.fadd(m[1], m[2]), b.fsub(m[1], m[2])
            plus_2, minus_2 = b.fadd(m[3], m[4]), b.fsub(m[3], m[4])
            return [
                b.fadd(b.fadd(m[0], plus), plus_2),
                e.fma(e.constant(2), minus_2, minus),
                e.fma(e.constant(4), plus_2, plus),
                b.fadd(e.fma(e.constant(8), minus_2, minus), m[5]),
            ]
        case _:
            raise ValueError(f"no A^T of F({outputs}, 3)")
