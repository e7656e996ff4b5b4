"""Memory for kernels."""

from __future__ import annotations

import numpy as np

from hyper_inference.compiler.ir import Floats


def aligned_zeros(count: int) -> Floats:
    """Zeros that begin on a cache line."""
    raw = np.zeros(count + 16, np.float32)
    first = (-raw.ctypes.data // 4) % 16
    return raw[first : first + count]
