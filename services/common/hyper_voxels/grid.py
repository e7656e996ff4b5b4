"""Arrays cut into chunks (or shards): which chunk holds what."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hyper_voxels.box import Box


@dataclass(frozen=True, slots=True)
class Part:
    """The piece of a box that lies in one chunk.

    Args:
        index: the chunk's place in the grid.
        in_chunk: the piece, counted from the chunk's start.
        in_box: the piece, counted from the box's start.
        whole: the piece is all of the chunk that lies in the array.
    """

    index: tuple[int, ...]
    in_chunk: Box
    in_box: Box
    whole: bool


@dataclass(frozen=True, slots=True)
class ChunkGrid:
    """A regular grid over an array; chunks at the far edges reach past it."""

    shape: tuple[int, ...]
    chunk: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.chunk):
            raise ValueError(f"chunks {self.chunk} do not fit an array of shape {self.shape}")
        if any(size < 0 for size in self.shape) or any(size < 1 for size in self.chunk):
            raise ValueError(f"sizes must be positive: shape {self.shape}, chunks {self.chunk}")

    @property
    def counts(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.chunk, strict=True))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def box(self, index: Sequence[int]) -> Box:
        """The part of the array that the chunk at `index` holds."""
        if tuple(index) not in Box.of_shape(self.counts):
            raise IndexError(f"no chunk {tuple(index)} in a grid of {self.counts}")
        start = [i * step for i, step in zip(index, self.chunk, strict=True)]
        return Box.at(start, self.chunk).intersect(Box.of_shape(self.shape))

    def index_of(self, voxel: Sequence[int]) -> tuple[int, ...]:
        """Which chunk holds `voxel`."""
        if tuple(voxel) not in Box.of_shape(self.shape):
            raise IndexError(f"no voxel {tuple(voxel)} in an array of shape {self.shape}")
        return tuple(i // step for i, step in zip(voxel, self.chunk, strict=True))

    def indices(self, box: Box | None = None) -> Iterator[tuple[int, ...]]:
        """The chunks that meet `box` (by default all), last axis fastest."""
        box = Box.of_shape(self.shape) if box is None else self._inside(box)
        if box.empty:
            return iter(())
        ranges = [
            range(low // step, -(-high // step))
            for low, high, step in zip(box.start, box.stop, self.chunk, strict=True)
        ]
        return itertools.product(*ranges)

    def parts(self, box: Box) -> Iterator[Part]:
        """`box` taken apart along the grid; the parts are disjoint and make up the box."""
        for index in self.indices(box):
            held = self.box(index)
            piece = held.intersect(box)
            yield Part(
                index, piece.relative_to(held.start), piece.relative_to(box.start), piece == held
            )

    def aligned(self, box: Box) -> bool:
        """`box` is made of whole chunks, so that writing it needs no reading."""
        edges = zip(self._inside(box).start, box.stop, self.chunk, self.shape, strict=True)
        return all(a % step == 0 and (b % step == 0 or b == size) for a, b, step, size in edges)

    def _inside(self, box: Box) -> Box:
        if box.ndim != len(self.shape) or not Box.of_shape(self.shape).covers(box):
            raise ValueError(f"box [{box}] does not fit an array of shape {self.shape}")
        return box
