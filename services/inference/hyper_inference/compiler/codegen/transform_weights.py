"""Weights into Winograd's domain by machine code: a net of 390 MB takes seconds in numpy.

G g along z and y (`winograd.py`), in float64, in one order everywhere, rounded to float32 once. The
code is the same for all sizes; it is made when it is first needed and kept like that of nets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import llvmlite
import llvmlite.ir as ir
import numpy as np

from hyper_inference.compiler.algorithm import Winograd
from hyper_inference.compiler.cache import CodeCache
from hyper_inference.compiler.codegen.abi import NET
from hyper_inference.compiler.codegen.emitter import F32, I64, POINTER, Emitter, Value
from hyper_inference.compiler.codegen.jit import Code, compile_object, load_object
from hyper_inference.compiler.codegen.kernel import Transforms
from hyper_inference.compiler.codegen.target import Target, find_target
from hyper_inference.compiler.codegen.winograd import points
from hyper_inference.compiler.ir import Floats

_F64 = ir.DoubleType()


@dataclass(frozen=True, slots=True)
class CachedTransforms(Transforms):
    """Transforms whose code a cache on disk may have."""

    cache: CodeCache

    def winograd(self, weight: Floats, tile: Winograd, out: Floats) -> None:
        """See `Transforms`."""
        count, block = weight.shape[0], out.shape[-1]
        _, channels, depth, _, taps = weight.shape
        wanted = points(tile.z) * points(tile.y), channels, taps, block
        if out.shape != wanted or count > block:
            raise AssertionError(f"{out.shape} is no place for {count} of {wanted}")
        if not out.flags.c_contiguous:
            raise AssertionError("the place lies in one piece")
        dense = np.ascontiguousarray(weight, np.float32)
        code = _loaded.get((tile, depth)) or _load(tile, depth, self.cache)
        code.call(out.ctypes.data, dense.ctypes.data, channels, taps, block, count)


_loaded: dict[tuple[Winograd, int], Code] = {}


def _load(tile: Winograd, depth: int, cache: CodeCache) -> Code:
    target = find_target("generic")
    text = _text(tile, depth, target)
    key = hashlib.sha256(f"{llvmlite.__version__}\n{target}\n{text}".encode()).hexdigest()
    data = cache.get(key)
    if data is None:
        data = compile_object(text, target)
        cache.put(key, data)
    code = _loaded[tile, depth] = load_object(data, target)
    return code


def _text(tile: Winograd, depth: int, target: Target) -> str:
    """`void net(out, weight, channels, taps, block, count)`.

    out [point][c][kx][block], of which `count` lanes are written; weight [count][c][z][y][kx].
    """
    module = ir.Module(name=NET)
    kind = ir.FunctionType(ir.VoidType(), [POINTER] * 2 + [I64] * 4)
    function = ir.Function(module, kind, NET)
    for pointer in function.args[:2]:
        pointer.add_attribute("noalias")
    out, weight, channels, taps, block, count = function.args
    e = Emitter(module, function, target)
    b = e.b
    lines = depth * 3
    point_size = b.mul(b.mul(channels, taps), block)
    with e.loop(0, channels) as c, e.loop(0, taps) as x, e.loop(0, count) as o:
        pair = b.add(b.mul(o.index, channels), c.index)
        source = e.at(weight, b.add(b.mul(e.mul(pair, lines), taps), x.index))
        g = [
            b.fpext(e.load_scalar(source, b.mul(taps, e.i64(line))), _F64) for line in range(lines)
        ]
        along_y = [_evaluate(b, tile.y, g[3 * z : 3 * z + 3]) for z in range(depth)]
        columns = [_evaluate(b, tile.z, column) for column in zip(*along_y, strict=True)]
        place = b.add(b.mul(b.add(b.mul(c.index, taps), x.index), block), o.index)
        into = e.at(out, place)
        for number, value in enumerate(v for row in zip(*columns, strict=True) for v in row):
            at = e.at(into, b.mul(point_size, e.i64(number)))
            b.store(b.fptrunc(value, F32), at, align=4)
    b.ret_void()
    return str(module)


def _evaluate(b: ir.IRBuilder, outputs: int, g: Sequence[Value]) -> list[Value]:
    """G g of F(outputs, 3)."""

    def times(value: Value, factor: float) -> Value:
        return b.fmul(value, ir.Constant(_F64, factor))

    match outputs:
        case 1:
            return list(g)
        case 2:
            even, odd = times(b.fadd(g[0], g[2]), 0.5), times(g[1], 0.5)
            return [g[0], b.fadd(even, odd), b.fsub(even, odd), g[2]]
        case 4:
            even, odd = times(b.fadd(g[0], g[2]), -1 / 6), times(g[1], -1 / 6)
            even_2 = b.fadd(times(g[0], 1 / 24), times(g[2], 1 / 6))
            odd_2 = times(g[1], 1 / 12)
            return [
                times(g[0], 0.25), b.fadd(even, odd), b.fsub(even, odd),
                b.fadd(even_2, odd_2), b.fsub(even_2, odd_2), g[2],
            ]  # fmt: skip
        case _:
            raise ValueError(f"no G of F({outputs}, 3)")
