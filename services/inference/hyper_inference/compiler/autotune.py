"""Try other blockings of the convolutions that matter, and keep the fastest.

All candidates become steps of one net, run a few times on one thread; the clocks that `explain`
reads tell how long each took. Only the block of a kernel changes: which algorithm computes a
convolution, and the order of every sum, do not, so the result has the same bits whatever is chosen
here. Choices are kept in the cache of compiled code.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from hyper_inference.compiler.cache import CodeCache
from hyper_inference.compiler.codegen import abi, conv_winograd
from hyper_inference.compiler.codegen.conv_direct import ConvDirect
from hyper_inference.compiler.codegen.conv_winograd import ConvWinograd
from hyper_inference.compiler.codegen.jit import compile_object, load_object
from hyper_inference.compiler.codegen.kernel import Kernel, Step
from hyper_inference.compiler.codegen.target import Target
from hyper_inference.compiler.memory import aligned_zeros

Tuned: TypeAlias = dict[Kernel, Kernel]

LEAST_SHARE = 0.02
"""Of a net's operations: convolutions with less are left alone."""
MOST_WEIGHTS = 2**20
"""Floats: more stream from far away, which a trial of one layer alone does not show."""
ROUNDS = 5
"""The least of so many times counts: other programs only ever add to it."""
LEAST_GAIN = 0.97
"""Another block must take less than this part of the time of the usual one."""


def autotune(steps: Sequence[Step], arena_floats: int, target: Target, cache: CodeCache) -> Tuned:
    """Kernels of `steps`, and those with other blocks that take their places.

    Nothing where the CPU has no clock that programs can read.
    """
    if not target.has_clock:
        return {}
    whole = sum(step.flops for step in steps)
    first: dict[Kernel, Step] = {}
    shares: dict[Kernel, float] = {}
    for step in steps:
        first.setdefault(step.kernel, step)
        shares[step.kernel] = shares.get(step.kernel, 0.0) + step.flops / max(whole, 1.0)
    tried = [
        (kernel, candidate)
        for kernel, share in shares.items()
        if share >= LEAST_SHARE and len(first[kernel].constants) <= MOST_WEIGHTS
        for candidate in candidates(kernel, target)
    ]
    if not tried:
        return {}
    trials = [_trial(first[kernel], candidate) for kernel, candidate in tried]
    key = abi.fingerprint(trials, target) + "-blocks"
    times = _read(cache.get(key), len(trials))
    if times is None:
        times = _measure(trials, arena_floats, target)
        cache.put(key, json.dumps(times).encode())
    usual = {kernel: took for (kernel, block), took in zip(tried, times, strict=True)
             if block == kernel}  # fmt: skip
    tuned: Tuned = {}
    best: dict[Kernel, float] = {kernel: took * LEAST_GAIN for kernel, took in usual.items()}
    for (kernel, candidate), took in zip(tried, times, strict=True):
        if took < best[kernel]:
            best[kernel], tuned[kernel] = took, candidate
    return tuned


def candidates(kernel: Kernel, target: Target) -> list[Kernel]:
    """The kernel itself, then the same with other blocks."""
    match kernel:
        case ConvWinograd():
            return [kernel, *_winograd(kernel, target)]
        case ConvDirect():
            return [kernel, *_direct(kernel, target)]
        case _:
            return []


def _winograd(kernel: ConvWinograd, target: Target) -> list[Kernel]:
    block, found = kernel.block, []
    for vectors in range(1, 5):
        channels = min(target.accumulators // vectors, kernel.channels_out)
        equal = -(-kernel.channels_out // -(-kernel.channels_out // channels))
        for count in {channels, equal}:
            slice_ = -(-block.slice // count) * count
            found.append(replace(block, channels=count, vectors=vectors, slice=slice_))
    if not kernel.folded and block.tiles == 1:
        covered = -(-kernel.size // target.width) * target.width
        for columns in (block.columns // 2, block.columns * 2):
            if target.width <= columns <= covered and columns % target.width == 0:
                pitch = conv_winograd.unfolded_pitch(columns, kernel.kernel_x)
                found.append(replace(block, columns=columns, pitch=pitch))
    return [replace(kernel, block=other) for other in dict.fromkeys(found) if other != block]


def _direct(kernel: ConvDirect, target: Target) -> list[Kernel]:
    found = []
    rows_shared = kernel.stride[1] == kernel.dilation[1] == 1 and kernel.kernel[1] > 1
    for rows in (1, 2) if rows_shared and kernel.height > 1 else (1,):
        if kernel.in_place and kernel.height % rows:
            continue  # the last rows would be computed twice
        for vectors in (1, 2, 3, 4):
            channels = min(target.accumulators // (rows * vectors), kernel.channels_out)
            if channels and vectors * target.width < kernel.size + target.width:
                found.append((channels, rows, vectors))
    return [replace(kernel, block=block) for block in found if block != kernel.block]


def _trial(step: Step, kernel: Kernel) -> Step:
    """The step with another block: as many rows as that has, one chunk, weights of any numbers."""
    rows = step.rows
    if isinstance(kernel, ConvWinograd):
        rows = kernel.tasks
        padded = kernel.channels_out + kernel.block.channels
        size = len(step.constants) * padded // kernel.channels_out + padded
        return replace(step, kernel=kernel, rows=rows, chunk=rows, constants=_zeros(size))
    if isinstance(kernel, ConvDirect) and isinstance(step.kernel, ConvDirect):
        of_plane = -(-kernel.height // step.kernel.block[1])
        rows = step.rows // of_plane * -(-kernel.height // kernel.block[1])
    return replace(step, kernel=kernel, rows=rows, chunk=rows)


def _zeros(size: int) -> np.ndarray:
    return np.broadcast_to(np.float32(0), (size,))


def _measure(trials: Sequence[Step], arena_floats: int, target: Target) -> list[float]:
    """The least time of each, in units of their own."""
    code = load_object(compile_object(abi.build_module(trials, target), target), target)
    arena, constants = aligned_zeros(arena_floats), aligned_zeros(abi.constant_offsets(trials)[1])
    constants[:] = 1.0  # memory of its own: zeros would all be one page of the system's
    scratch = aligned_zeros(abi.scratch_floats(trials))
    state = np.zeros(abi.state_words(trials), np.int64)
    best = [float("inf")] * len(trials)
    for _ in range(ROUNDS):
        state[:] = 0
        memory = arena, constants, arena, arena, scratch, state
        code.call(*(array.ctypes.data for array in memory))
        best = [min(pair) for pair in zip(best, abi.step_cycles(trials, state), strict=True)]
    return best


def _read(data: bytes | None, count: int) -> list[float] | None:
    """What was measured before; None if it is not that."""
    if data is None:
        return None
    try:
        times = json.loads(data)
    except ValueError:
        return None
    ok = isinstance(times, list) and len(times) == count
    return times if ok and all(isinstance(n, (int, float)) and n >= 0 for n in times) else None
