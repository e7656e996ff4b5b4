"""Memory for kernels, and memory given back."""

from __future__ import annotations

import ctypes

import numpy as np

from hyper_inference.compiler.ir import Floats


def aligned_zeros(count: int) -> Floats:
    """Zeros that begin on a cache line."""
    raw = np.zeros(count + 16, np.float32)
    first = (-raw.ctypes.data // 4) % 16
    return raw[first : first + count]


def give_back() -> None:
    """What was freed goes back to the system at once, where the C library can.

    Compiling needs for a moment a copy of all weights, and LLVM's memory; a process that lives long
    would keep them.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)
