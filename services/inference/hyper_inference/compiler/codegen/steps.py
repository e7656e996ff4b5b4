"""Making steps: how many rows a thread takes at once."""

from __future__ import annotations

import numpy as np

from hyper_inference.compiler.codegen.kernel import Kernel, Packed, Step
from hyper_inference.compiler.ir import Floats

CHUNK_FLOPS = 4e6
"""A thread takes about this much at once: 50 us of work against 1 us of taking it."""
NOTHING = np.zeros(0, np.float32)


def make_step(
    name: str,
    kernel: Kernel,
    out: int | None,
    a: int | None,
    shape: tuple[int, ...],
    *,
    b: int | None = None,
    constants: Floats | Packed = NOTHING,
    flops: float = 0.0,
) -> Step:
    """`shape` is (c, z, y, x) of what the rows are taken from."""
    rows = shape[1] * shape[2]
    work = max(flops, 4.0 * np.prod(shape))
    chunk = int(np.clip(np.ceil(CHUNK_FLOPS * rows / work), 1, max(1, rows // 16)))
    return Step(name, kernel, out, a, b, constants, rows, chunk, flops)
