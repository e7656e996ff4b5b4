"""What a kernel is: code for a range of output rows; and a step: a kernel on certain memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from hyper_inference.compiler.algorithm import Winograd
from hyper_inference.compiler.codegen.emitter import Emitter, Value
from hyper_inference.compiler.ir import Conv, ConvTranspose, Floats
from hyper_inference.compiler.memory_plan import Place


@dataclass(frozen=True, slots=True)
class Strides:
    """Floats between neighbours of a value along c, y and z (x: 1)."""

    channel: int
    row: int
    plane: int

    def at(self, e: Emitter, pointer: Value, z: Value, y: Value, channel: Value) -> Value:
        """Where a row begins in a value that begins at `pointer`."""
        offsets = e.mul(z, self.plane), e.mul(y, self.row), e.mul(channel, self.channel)
        return e.at(pointer, e.add(*offsets))


def strides_of(place: Place) -> Strides:
    """Strides of a value in the arena."""
    return Strides(place.channel, place.row, place.plane)


@dataclass(frozen=True, slots=True)
class Arguments:
    """LLVM values of a kernel's arguments: pointers to voxel 0, and rows begin <= r < end.

    `scratch` is memory of the thread's own, `Kernel.scratch` floats, with anything in it.
    """

    out: Value
    a: Value
    b: Value
    constants: Value
    scratch: Value
    begin: Value
    end: Value


class Kernel(ABC):
    """A frozen dataclass of everything its code depends on; equal kernels share code.

    A row is one (z, y) of what the family divides its work by, usually the output.
    """

    __slots__ = ()

    @property
    def scratch(self) -> int:
        """Floats of scratch memory that a thread needs."""
        return 0

    @abstractmethod
    def emit(self, e: Emitter, p: Arguments) -> None:
        """Write the body."""


class Transforms(ABC):
    """What weights are transformed with while they are packed."""

    __slots__ = ()

    @abstractmethod
    def winograd(self, weight: Floats, tile: Winograd, out: Floats) -> None:
        """Weights (o, c, kz, 3, kx) -> out (points, c, kx, block), o at most the block."""


Fill: TypeAlias = Callable[[Floats, Transforms], None]


@dataclass(frozen=True, slots=True)
class Packed:
    """Constants that are written once, into their last place.

    Args:
        size: how many floats.
        fill: writes them all into an array of that many zeros.
    """

    size: int
    fill: Fill

    def __len__(self) -> int:
        return self.size


def packed(op: Conv | ConvTranspose, size: int, fill: Fill) -> Packed:
    """`size` floats of weights, then the biases, then the residual scales."""
    rest = [op.bias] if op.residual_scale is None else [op.bias, op.residual_scale]

    def fill_all(out: Floats, transforms: Transforms) -> None:
        fill(out[:size], transforms)
        np.concatenate(rest, out=out[size:], casting="same_kind")

    return Packed(size + sum(map(len, rest)), fill_all)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One kernel on certain memory: offsets in the arena, or None for the user's own array.

    Args:
        name: of the node it computes.
        rows: how many rows there are.
        chunk: how many a thread takes at once; changes nothing in the result.
        flops: multiplications and additions, for `explain`.
    """

    name: str
    kernel: Kernel
    out: int | None
    a: int | None
    b: int | None
    constants: Floats | Packed
    rows: int
    chunk: int
    flops: float = 0.0
