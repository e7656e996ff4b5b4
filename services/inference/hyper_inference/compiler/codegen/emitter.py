"""A small layer over llvmlite for kernels: loops, vectors of floats, fused multiply-adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import llvmlite.ir as ir
import numpy as np

from hyper_inference.compiler.codegen.target import Target

Value: TypeAlias = Any
"""An llvmlite value; llvmlite has no types of its own."""

F32 = ir.FloatType()
I32 = ir.IntType(32)
I64 = ir.IntType(64)
POINTER = ir.PointerType()


class Emitter:
    """Writes one function. Offsets are in floats; integers may be Python's or LLVM's."""

    def __init__(self, module: Any, function: Any, target: Target) -> None:
        self.module, self.function, self.target = module, function, target
        self.width = target.width
        self.vector = ir.VectorType(F32, self.width)
        self.ivector = ir.VectorType(I32, self.width)
        self.b = ir.IRBuilder(function.append_basic_block("entry"))

    # integers
    def i64(self, value: Value) -> Value:
        """A constant, unless it is a value already."""
        return ir.Constant(I64, value) if isinstance(value, int) else value

    def add(self, *terms: Value) -> Value:
        """Sum; constants are folded."""
        constant = sum(term for term in terms if isinstance(term, int))
        total: Value = None
        for term in terms:
            if not isinstance(term, int):
                total = term if total is None else self.b.add(total, term)
        if total is None:
            return constant
        return self.b.add(total, self.i64(constant)) if constant else total

    def mul(self, value: Value, factor: int) -> Value:
        """Product with a constant."""
        if isinstance(value, int):
            return value * factor
        if factor == 0:
            return 0
        return value if factor == 1 else self.b.mul(value, self.i64(factor))

    def divmod(self, value: Value, by: int) -> tuple[Value, Value]:
        """Quotient and remainder of a value that is not negative."""
        if isinstance(value, int):
            return divmod(value, by)
        if by == 1:
            return value, 0
        return self.b.udiv(value, self.i64(by)), self.b.urem(value, self.i64(by))

    # control
    @contextmanager
    def loop(
        self, start: Value, stop: Value, step: int = 1, carried: Sequence[Value] = ()
    ) -> Iterator[Loop]:
        """A loop over start, start + step, ... < stop; `loop.carried` holds its running values."""
        if isinstance(start, int) and isinstance(stop, int) and stop - start <= step:
            if stop > start:  # one turn: no loop
                yield Loop(start, list(carried))
                return
            raise ValueError("an empty loop")
        b = self.b
        before = b.block
        body = b.append_basic_block("body")
        after = b.append_basic_block("after")
        guard = isinstance(start, int) and isinstance(stop, int)
        if guard or not carried:
            first = self.i64(start)
            if guard:
                b.branch(body)
            else:
                b.cbranch(b.icmp_signed("<", first, self.i64(stop)), body, after)
        else:
            raise ValueError("a loop that carries values has constant bounds")
        b.position_at_end(body)
        index = b.phi(I64)
        index.add_incoming(first, before)
        phis = []
        for value in carried:
            phi = b.phi(value.type)
            phi.add_incoming(value, before)
            phis.append(phi)
        loop = Loop(index, list(phis))
        yield loop
        following = b.add(index, self.i64(step))
        index.add_incoming(following, b.block)
        for phi, value in zip(phis, loop.carried, strict=True):
            phi.add_incoming(value, b.block)
        b.cbranch(b.icmp_signed("<", following, self.i64(stop)), body, after)
        b.position_at_end(after)

    # memory
    def at(self, pointer: Value, offset: Value) -> Value:
        """`pointer + offset` floats."""
        if isinstance(offset, int) and offset == 0:
            return pointer
        return self.b.gep(pointer, [self.i64(offset)], source_etype=F32)

    def load(self, pointer: Value, offset: Value = 0) -> Value:
        """One vector."""
        return self.b.load(self.at(pointer, offset), align=4, typ=self.vector)

    def load_strided(self, pointer: Value, offset: Value, stride: int) -> Value:
        """Every `stride`-th float."""
        if stride == 1:
            return self.load(pointer, offset)
        base = self.at(pointer, offset)
        if stride == 2:
            low, high = self.load(base), self.load(base, self.width)
            return self.shuffle(low, high, range(0, 2 * self.width, 2))
        return self.build([self.load_scalar(base, lane * stride) for lane in range(self.width)])

    def store(self, value: Value, pointer: Value, offset: Value = 0) -> None:
        """One vector."""
        self.b.store(value, self.at(pointer, offset), align=4)

    def store_scalar(self, value: Value, pointer: Value, offset: Value = 0) -> None:
        """One float."""
        self.b.store(value, self.at(pointer, offset), align=4)

    def prefetch(self, pointer: Value, offset: Value = 0, *, write: bool = False) -> None:
        """Bring a cache line near; any address will do."""
        name = "llvm.prefetch.p0"
        function = self.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [POINTER, I32, I32, I32])
            function = ir.Function(self.module, kind, name)
        numbers = [ir.Constant(I32, n) for n in (int(write), 2, 1)]  # into level 2; data
        self.b.call(function, [self.at(pointer, offset), *numbers])

    def load_scalar(self, pointer: Value, offset: Value = 0) -> Value:
        """One float."""
        return self.b.load(self.at(pointer, offset), align=4, typ=F32)

    def load_index(self, pointer: Value, offset: Value = 0) -> Value:
        """One 32-bit integer of a table, as 64 bits."""
        return self.b.sext(self.b.load(self.at(pointer, offset), align=4, typ=I32), I64)

    def broadcast(self, pointer: Value, offset: Value = 0) -> Value:
        """One float in all lanes."""
        return self.splat(self.load_scalar(pointer, offset))

    # vectors
    def splat(self, scalar: Value) -> Value:
        """A scalar in all lanes."""
        undefined = ir.Constant(self.vector, ir.Undefined)
        one = self.b.insert_element(undefined, scalar, ir.Constant(I32, 0))
        return self.shuffle(one, undefined, [0] * self.width)

    def build(self, scalars: Sequence[Value]) -> Value:
        """A vector of these scalars."""
        vector = ir.Constant(self.vector, ir.Undefined)
        for lane, scalar in enumerate(scalars):
            vector = self.b.insert_element(vector, scalar, ir.Constant(I32, lane))
        return vector

    def shuffle(self, low: Value, high: Value, lanes: Sequence[int]) -> Value:
        """Lanes picked from two vectors."""
        mask = ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes))
        return self.b.shuffle_vector(low, high, mask)

    def constant(self, number: float) -> Value:
        """A number in all lanes, rounded to float32."""
        return ir.Constant(self.vector, [_f32(number)] * self.width)

    def integers(self, number: int) -> Value:
        """A 32-bit integer in all lanes."""
        return ir.Constant(self.ivector, [number] * self.width)

    def keep(self, value: Value, lanes: int) -> Value:
        """The first `lanes` of a vector, zeros behind them."""
        if lanes >= self.width:
            return value
        mask = ir.Constant(
            ir.VectorType(ir.IntType(1), self.width),
            [int(lane < lanes) for lane in range(self.width)],
        )
        return self.b.select(mask, value, self.constant(0.0))

    def keep_before(self, value: Value, x: Value, size: int) -> Value:
        """Lanes whose position, counted from `x`, lies before `size`; zeros behind them."""
        if size % self.width == 0:
            return value
        if isinstance(x, int):
            return self.keep(value, size - x)
        undefined = ir.Constant(self.ivector, ir.Undefined)
        left = self.b.trunc(self.b.sub(self.i64(size), x), I32)
        one = self.b.insert_element(undefined, left, ir.Constant(I32, 0))
        left = self.shuffle(one, undefined, [0] * self.width)
        lanes = ir.Constant(self.ivector, list(range(self.width)))
        inside = self.b.icmp_signed("<", lanes, left)
        return self.b.select(inside, value, self.constant(0.0))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        """`a * b + c`, rounded once."""
        return self._intrinsic("fma", a, b, c)

    def nearest(self, value: Value) -> Value:
        """Rounded to integers."""
        return self._intrinsic("nearbyint", value)

    def absolute(self, value: Value) -> Value:
        """Without sign."""
        return self._intrinsic("fabs", value)

    def square_root(self, value: Value) -> Value:
        """Correctly rounded."""
        return self._intrinsic("sqrt", value)

    def _intrinsic(self, name: str, *arguments: Value) -> Value:
        full = f"llvm.{name}.v{self.width}f32"
        function = self.module.globals.get(full)
        if function is None:
            kind = ir.FunctionType(self.vector, [self.vector] * len(arguments))
            function = ir.Function(self.module, kind, full)
        return self.b.call(function, list(arguments))

    def select_less(self, a: Value, b: Value, then: Value, otherwise: Value) -> Value:
        """`then` where a < b, else (NaN too) `otherwise`."""
        return self.b.select(self.b.fcmp_ordered("<", a, b), then, otherwise)

    def each_vector(self, size: int, body: Callable[[Value, int], None]) -> None:
        """`body(x, lanes)` for every vector of a row: a loop over whole ones, then the tail."""
        whole, tail = divmod(size, self.width)
        if whole:
            with self.loop(0, whole * self.width, self.width) as loop:
                body(loop.index, self.width)
        if tail:
            body(whole * self.width, tail)


class Loop:
    """A loop being written: its index, and values that pass from turn to turn."""

    def __init__(self, index: Value, carried: list[Value]) -> None:
        self.index = index
        self.carried = carried


def _f32(number: float) -> float:
    return float(np.float32(number))
