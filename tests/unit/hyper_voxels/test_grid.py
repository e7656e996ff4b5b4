"""Grids: chunks tile the array, parts tile the box."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_voxels import Box, ChunkGrid

SIDES = st.tuples(st.integers(0, 9), st.integers(1, 9), st.integers(1, 9))
CHUNKS = st.tuples(*[st.integers(1, 5)] * 3)


@st.composite
def grids_and_boxes(draw: st.DrawFn) -> tuple[ChunkGrid, Box]:
    grid = ChunkGrid(draw(SIDES), draw(CHUNKS))
    edges = [
        sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in grid.shape
    ]
    return grid, Box(tuple(low for low, _ in edges), tuple(high for _, high in edges))


@given(SIDES, CHUNKS)
def test_chunks_tile_the_array(shape: tuple[int, ...], chunk: tuple[int, ...]) -> None:
    grid = ChunkGrid(shape, chunk)
    painted = np.zeros(shape, int)
    indices = list(grid.indices())
    for index in indices:
        painted[grid.box(index).slices] += 1
    assert (painted == 1).all()
    assert len(indices) == len(set(indices)) == len(grid)
    assert indices == sorted(indices)


@given(grids_and_boxes())
def test_parts_tile_the_box(case: tuple[ChunkGrid, Box]) -> None:
    grid, box = case
    source = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    result = np.full(box.shape, -1)
    for part in grid.parts(box):
        chunk = source[grid.box(part.index).slices]
        assert (result[part.in_box.slices] == -1).all()
        result[part.in_box.slices] = chunk[part.in_chunk.slices]
        assert part.whole == (part.in_chunk.shape == chunk.shape)
        assert not part.in_chunk.empty
    assert (result == source[box.slices]).all()


@given(grids_and_boxes())
def test_alignment_means_whole_chunks(case: tuple[ChunkGrid, Box]) -> None:
    grid, box = case
    if not box.empty:
        assert grid.aligned(box) == all(part.whole for part in grid.parts(box))


@given(grids_and_boxes())
def test_index_of_finds_the_holding_chunk(case: tuple[ChunkGrid, Box]) -> None:
    grid, box = case
    if not box.empty:
        assert box.start in grid.box(grid.index_of(box.start))


def test_what_does_not_fit() -> None:
    grid = ChunkGrid((10, 10), (4, 4))
    with pytest.raises(ValueError, match="does not fit"):
        list(grid.parts(Box((0, 0), (11, 3))))
    with pytest.raises(ValueError, match="does not fit"):
        list(grid.indices(Box((0,), (1,))))
    with pytest.raises(IndexError):
        grid.box((3, 0))
    with pytest.raises(IndexError):
        grid.index_of((10, 0))
    with pytest.raises(ValueError, match="do not fit"):
        ChunkGrid((10, 10), (4,))
    with pytest.raises(ValueError, match="positive"):
        ChunkGrid((10,), (0,))
    with pytest.raises(ValueError, match="positive"):
        ChunkGrid((-1,), (2,))
