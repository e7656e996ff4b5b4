"""How a stack too large for one relaxation is taken apart: meshes of several spacings, and tiles.

The coarsest mesh is relaxed as one. Each finer one is relaxed tile by tile, from where the coarser
one came to rest; a tile is a square of the common frame in a run of sections.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Affine, Mesh, Points
from hyper_matcher.align.springs import RelaxOptions

OVERLAP = 8  # vertices that a tile is relaxed beyond its own
RING = 3  # more, which are held where they are
_RUNS, _RUN_OVERLAP = (16, 32, 64, 128, 256), 32  # sections
_LEAST = OVERLAP + RING + 1  # vertices across a tile, so that it meets its neighbours alone


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of the common frame in a run of sections.

    Args:
        sections: its own.
        low: (y, x), px, of its corner.
        high: (y, x), px, of the corner across.
    """

    sections: range
    low: tuple[float, float]
    high: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Tiling:
    """The tiles of one level.

    Args:
        depth: of the stack.
        mesh: of the level.
        origin: (y, x), px, of the common frame's part that sections lie in.
        size_px: of a tile.
        grid: tiles down and across.
        run: sections of a tile.
        times: how often a vertex is relaxed in one turn, as tiles overlap.
    """

    depth: int
    mesh: Mesh
    origin: tuple[float, float]
    size_px: float
    grid: tuple[int, int]
    run: int
    times: float

    @classmethod
    def of(cls, mesh: Mesh, rigid: Sequence[Affine], budget: int) -> Tiling:
        """Tiles that hold, with what is relaxed beyond them, at most `budget` vertices.

        Args:
            mesh: of the level.
            rigid: placement of each section.
            budget: at least what a tile of a vertex needs.
        """
        depth = len(rigid)
        best = (math.inf, depth, _LEAST)
        for run in {min(run, depth) for run in (*_RUNS, depth)}:
            thick = min(depth, run + 2 * _RUN_OVERLAP)
            edge = max(_LEAST, int(math.sqrt(budget / thick)) - 2 * OVERLAP)
            if edge > _LEAST or run == min(_RUNS[0], depth):
                twice = (1 + 2 * OVERLAP / edge) ** 2 * thick / run  # how often a vertex is solved
                best = min(best, (twice, run, edge))
        times, run, edge = best
        pitch = max(mesh.pitch)
        height, width = mesh.shape
        corners = np.array([(0, 0), (0, width), (height, 0), (height, width)], np.float64)
        reached = np.concatenate([placement(corners) for placement in rigid])
        low, high = reached.min(axis=0) - 1, reached.max(axis=0) + 1
        size = edge * pitch
        counts = np.maximum(1, np.ceil((high - low) / size)).astype(int)
        origin, grid = (float(low[0]), float(low[1])), (int(counts[0]), int(counts[1]))
        return cls(depth, mesh, origin, size, grid, run, times)

    @property
    def runs(self) -> int:
        """How many runs of sections."""
        return -(-self.depth // self.run)

    def __len__(self) -> int:
        return self.runs * self.grid[0] * self.grid[1]

    def __getitem__(self, number: int) -> Tile:
        """Run by run, row by row."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        row, column = divmod(number % (self.grid[0] * self.grid[1]), self.grid[1])
        first = number // (self.grid[0] * self.grid[1]) * self.run
        (y, x), size = self.origin, self.size_px  # neighbours have the same number between them
        low, high = (
            (y + row * size, x + column * size),
            (y + (row + 1) * size, x + (column + 1) * size),
        )
        return Tile(range(first, min(first + self.run, self.depth)), low, high)

    def sections_round(self, tile: Tile, more: int = 0) -> range:
        """The sections that are relaxed with a tile's own, and `more` at either end."""
        reach = (_RUN_OVERLAP if self.runs > 1 else 0) + more
        return range(
            max(0, tile.sections.start - reach), min(self.depth, tile.sections.stop + reach)
        )

    def meeting(self, tile: Tile, sections: range, by_px: float) -> list[int]:
        """Numbers of the tiles that a tile, grown by so much, has to do with."""
        spans = [
            range(
                max(0, math.floor((tile.low[k] - by_px - self.origin[k]) / self.size_px)),
                min(
                    self.grid[k],
                    math.floor((tile.high[k] + by_px - self.origin[k]) / self.size_px) + 1,
                ),
            )
            for k in (0, 1)
        ]
        runs = range(sections.start // self.run, (sections.stop - 1) // self.run + 1)
        plane = self.grid[0] * self.grid[1]
        return [
            run * plane + row * self.grid[1] + column
            for run in runs
            for row in spans[0]
            for column in spans[1]
        ]


def options_at(spacing_px: float, options: RelaxOptions) -> RelaxOptions:
    """The same springs for a mesh of another spacing: energies of smooth fields stay the same."""
    wider = spacing_px / options.spacing_px
    return replace(
        options, spacing_px=spacing_px, stretch=options.stretch / wider**2,
        bend=options.bend / wider**4,
    )  # fmt: skip


def within(places: Points, tile: Tile, by_px: float = 0.0) -> NDArray[np.bool_]:
    """(n,) which of the places (n, 2) lie in a tile grown by so much."""
    low, high = np.array(tile.low) - by_px, np.array(tile.high) + by_px
    return np.asarray(((places >= low) & (places < high)).all(axis=1))


def near(mesh: Mesh, placement: Affine, tile: Tile, by_px: float) -> NDArray[np.int64]:
    """Numbers of a section's vertices that, rigidly placed, lie in a tile grown by so much."""
    low, high = np.array(tile.low) - by_px, np.array(tile.high) + by_px
    corners = np.array([(low[0], low[1]), (low[0], high[1]), (high[0], low[1]), (high[0], high[1])])
    back = placement.inverse()(corners) / np.array(mesh.pitch)
    first = np.clip(np.floor(back.min(axis=0)).astype(int) - 1, 0, None)
    last = np.minimum(np.ceil(back.max(axis=0)).astype(int) + 2, (mesh.rows, mesh.columns))
    rows, columns = np.arange(first[0], last[0]), np.arange(first[1], last[1])
    numbers = (rows[:, None] * mesh.columns + columns).ravel()
    return numbers[within(placement(mesh.places(numbers)), tile, by_px)]
