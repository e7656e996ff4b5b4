"""Chunk and shard shapes for arrays whose maker named none (pure).

A stack of sections is written and read a section at a time: one shard holds as much of one section
as fits 64 MiB, in inner chunks of about 1024 x 1024. A volume gets inner chunks of about 128 along
z, y and x. Leading axes (channels) have chunks of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

SHARD_BYTES = 64 * 2**20
SECTION_CHUNK = 1024
VOLUME_CHUNK = 128
_ALIGN = 16


def is_stack(shape: Sequence[int]) -> bool:
    """Whether the array is more like a pile of sections than like a block."""
    return len(shape) < 3 or shape[-3] * 4 <= min(shape[-2:])


def default_chunks(shape: Sequence[int], shards: Sequence[int] = ()) -> tuple[int, ...]:
    """Inner chunks for an array of `shape`, dividing `shards` where those are given."""
    if shards:
        edges = _edges(shards)
        return tuple(_divisor(n, edge) for n, edge in zip(shards, edges, strict=True))
    return tuple(_near(n, edge) for n, edge in zip(shape, _edges(shape), strict=True))


def default_shards(shape: Sequence[int], chunks: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Shards of about 64 MiB at most, whole multiples of `chunks`."""
    counts = [1] * len(shape)
    wanted = [-(-n // c) for n, c in zip(shape, chunks, strict=True)]
    growing = range(len(shape) - (2 if is_stack(shape) else 3), len(shape))
    chunk_bytes = math.prod(chunks) * itemsize
    while True:
        open_axes = [a for a in growing if a >= 0 and counts[a] < wanted[a]]
        best: list[int] | None = None
        for axis in sorted(open_axes, key=lambda a: counts[a] * chunks[a]):
            grown = list(counts)
            grown[axis] = min(counts[axis] * 2, wanted[axis])
            if math.prod(grown) * chunk_bytes <= SHARD_BYTES:
                best = grown
                break
        if best is None:
            return tuple(c * n for c, n in zip(chunks, counts, strict=True))
        counts = best


def _edges(shape: Sequence[int]) -> list[int]:
    """The chunk's aim along each axis."""
    if is_stack(shape):
        spatial = [SECTION_CHUNK] * min(2, len(shape))
    else:
        spatial = [VOLUME_CHUNK] * 3
    return [1] * (len(shape) - len(spatial)) + spatial


def _near(length: int, edge: int) -> int:
    """A chunk of about `edge` that cuts `length` into equal parts with little left over."""
    if length <= edge:
        return length
    parts = -(-length // edge)
    even = -(-length // parts)
    return even if length % parts == 0 else -(-even // _ALIGN) * _ALIGN


def _divisor(length: int, edge: int) -> int:
    """The largest divisor of `length` up to `edge`."""
    return next(d for d in range(min(edge, length), 0, -1) if length % d == 0)
