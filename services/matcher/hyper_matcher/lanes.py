"""Eight float32 values as one value in numba code: explicit SIMD.

Left to itself, LLVM does not vectorise an in-place butterfly: it cannot know that the rows it reads
are not the rows it writes. Here a `Lanes` is an LLVM vector; `+`, `-` and `*` work on it, and LLVM
maps it to what the processor has (AVX, two SSE or NEON registers).

Arrays are C-contiguous float32 of one axis; indices count floats and are not checked.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

LANES = 8

_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_CONTRACT = ("contract",)  # a * b + c in one rounding: never less exact


class LanesType(types.Type):  # type: ignore[misc]  # no types in numba
    """The numba type of a vector."""

    def __init__(self) -> None:
        super().__init__("float32x8")


lanes_type = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]  # no types in numba
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VECTOR)


class _Arithmetic(AbstractTemplate):  # type: ignore[misc]  # no types in numba
    def generic(self, args: Any, kws: Any) -> Any:
        if args == (lanes_type, lanes_type):
            return signature(lanes_type, lanes_type, lanes_type)
        return None


def _define(function: Any, instruction: str) -> None:
    infer_global(function)(type(f"_{instruction}", (_Arithmetic,), {"key": function}))

    @lower_builtin(function, lanes_type, lanes_type)  # type: ignore[untyped-decorator]
    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args, flags=_CONTRACT)


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")


def _address(context: Any, builder: Any, kind: Any, array: Any, index: Any) -> Any:
    data = cgutils.create_struct_proxy(kind)(context, builder, value=array).data
    return builder.gep(data, [index], source_etype=_FLOAT)


def _load(builder: Any, pointer: Any) -> Any:
    pointer = builder.bitcast(pointer, _VECTOR.as_pointer())
    return builder.load(pointer, align=4, typ=_VECTOR)


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, builder.bitcast(pointer, _VECTOR.as_pointer()), align=4)


@intrinsic  # type: ignore[untyped-decorator]  # no types in numba
def load(typing_context: Any, array: Any, index: Any) -> Any:
    """array[index : index + 8]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _load(builder, _address(context, builder, sig.args[0], *args))

    return lanes_type(array, types.intp), generate


@intrinsic  # type: ignore[untyped-decorator]  # no types in numba
def store(typing_context: Any, array: Any, index: Any, value: Any) -> Any:
    """array[index : index + 8] = value."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _store(builder, args[2], _address(context, builder, sig.args[0], *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes_type), generate


@intrinsic  # type: ignore[untyped-decorator]  # no types in numba
def splat(typing_context: Any, value: Any) -> Any:
    """The same value in all lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        one = builder.insert_element(ir.Constant(_VECTOR, ir.Undefined), args[0], _lane(0))
        return builder.shuffle_vector(one, one, _mask([0] * LANES))

    return lanes_type(types.float32), generate


@intrinsic  # type: ignore[untyped-decorator]  # no types in numba
def cut(typing_context: Any, value: Any, limit: Any) -> Any:
    """The values, cut to [-limit, limit]."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value, limit = args
        over = builder.fcmp_ordered(">", value, limit)
        value = builder.select(over, limit, value)
        least = builder.fneg(limit)
        return builder.select(builder.fcmp_ordered("<", value, least), least, value)

    return lanes_type(lanes_type, lanes_type), generate


@intrinsic  # type: ignore[untyped-decorator]  # no types in numba
def transpose(
    typing_context: Any, source: Any, at: Any, step: Any, target: Any, to: Any, step_to: Any
) -> Any:
    """target[to + i step_to + j] = source[at + j step + i] for i, j < 8."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source, at, step, target, to, step_to = args
        first = _address(context, builder, sig.args[0], source, at)
        rows = []
        for k in range(LANES):
            offset = builder.mul(step, ir.Constant(step.type, k))
            rows.append(_load(builder, builder.gep(first, [offset], source_etype=_FLOAT)))
        for half in (1, 2, 4):  # swap blocks of 1, 2, 4 lanes between rows that far apart
            low = _mask([i if not i & half else LANES + i - half for i in range(LANES)])
            high = _mask([i + half if not i & half else LANES + i for i in range(LANES)])
            for k in range(LANES):
                if not k & half:
                    a, b = rows[k], rows[k + half]
                    rows[k] = builder.shuffle_vector(a, b, low)
                    rows[k + half] = builder.shuffle_vector(a, b, high)
        first = _address(context, builder, sig.args[3], target, to)
        for k in range(LANES):
            offset = builder.mul(step_to, ir.Constant(step_to.type, k))
            _store(builder, rows[k], builder.gep(first, [offset], source_etype=_FLOAT))
        return context.get_dummy_value()

    index = types.intp
    return types.void(source, index, index, target, index, index), generate


def _lane(index: int) -> Any:
    return ir.Constant(ir.IntType(32), index)


def _mask(indices: list[int]) -> Any:
    return ir.Constant(ir.VectorType(ir.IntType(32), len(indices)), [_lane(i) for i in indices])
