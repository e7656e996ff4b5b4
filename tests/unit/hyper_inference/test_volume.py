"""Volumes: patches, blending, blocks of whole shards; with arrays in memory."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.errors import InvalidArgumentError
from hyper_inference.volume import (
    Conversion,
    Grid,
    check_sizes,
    infer_volume,
    read_patch,
    split_blocks,
    windows,
)
from hyper_voxels import Box


class MemoryArray:
    """An array that remembers what was written."""

    def __init__(self, data: np.ndarray, shards: tuple[int, ...] = ()) -> None:
        self.data = data
        self.shards = shards
        self.written: list[tuple[slice, ...]] = []

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    @property
    def dtype(self) -> np.dtype:
        return self.data.dtype

    def __getitem__(self, key: object) -> np.ndarray:
        return self.data[key]

    def __setitem__(self, key: tuple[slice, ...], value: np.ndarray) -> None:
        self.written.append(key)
        self.data[key] = value


def blur(values: np.ndarray) -> np.ndarray:
    """A net that sees one voxel on each side; zero outside, as a padded convolution's."""
    result = np.zeros_like(values)
    padded = np.pad(values, [(0, 0), (1, 1), (1, 1), (1, 1)])
    _, z, y, x = values.shape
    for i, j, k in itertools.product(range(3), repeat=3):
        result += padded[:, i : i + z, j : j + y, k : k + x]
    return result


sizes = st.integers(1, 200)


@given(sizes, sizes, sizes)
def test_windows_cover_every_voxel_once(size: int, patch: int, overlap: int) -> None:
    overlap %= patch
    found = windows(size, patch, overlap)
    kept = [voxel for w in found for voxel in range(w.keep_start, w.keep_stop)]
    assert kept == list(range(size))
    for w in found:
        assert w.start <= w.keep_start < w.keep_stop <= w.start + patch
        assert patch >= size or w.start + patch <= size
    for left, right in itertools.pairwise(found):
        assert left.start + patch - right.start >= overlap
        assert left.keep_stop - left.start >= overlap // 2
        assert right.start + overlap // 2 <= right.keep_start


@given(
    st.tuples(*[st.integers(0, 50)] * 3), st.tuples(*[st.integers(1, 60)] * 3),
    st.tuples(*[st.integers(1, 40)] * 3), st.integers(1, 100_000),
)  # fmt: skip
def test_blocks_are_whole_shards(start, shape, shards, voxels) -> None:
    box = Box.at(start, shape)
    blocks = list(split_blocks(box, shards, voxels))
    assert sum(block.voxels for block in blocks) == box.voxels
    for block in blocks:
        assert box.covers(block)
        for axis in range(3):
            assert block.start[axis] == box.start[axis] or block.start[axis] % shards[axis] == 0
            assert block.stop[axis] == box.stop[axis] or block.stop[axis] % shards[axis] == 0
        assert block.voxels <= max(voxels, int(np.prod(shards)))


def run(source: np.ndarray, box: Box, *, patch, overlap, blending="crop", shards=(4, 8, 8)):
    destination = MemoryArray(np.full(source.shape, -7, np.float32), shards)
    grid = Grid.of(source.shape, patch, overlap)
    steps = list(
        infer_volume(
            blur, MemoryArray(source), destination, box, grid, conversion=Conversion(),
            blending=blending, block_bytes=4096,
        )
    )  # fmt: skip
    assert steps[-1].done_patches == steps[-1].total_patches
    return destination


VOLUME = np.random.default_rng(0).integers(0, 9, (9, 30, 26)).astype(np.float32)
WHOLE = blur(VOLUME[None])[0]
ALL = Box.of_shape(VOLUME.shape)


@pytest.mark.parametrize("patch", [(9, 30, 26), (4, 9, 12), (3, 30, 7)])
def test_crop_gives_what_the_net_gives_on_the_whole(patch: tuple[int, int, int]) -> None:
    destination = run(VOLUME, ALL, patch=patch, overlap=(2, 2, 2))
    assert np.array_equal(destination.data, WHOLE)
    for key in destination.written:
        assert all(s.start % n == 0 for s, n in zip(key, (4, 8, 8), strict=True))


@pytest.mark.parametrize("blending", ["crop", "linear", "bump"])
def test_boxes_in_any_split_write_the_same_bytes(blending: str) -> None:
    options = {"patch": (4, 11, 13), "overlap": (2, 4, 5), "blending": blending}
    whole = run(VOLUME, ALL, **options).data
    assert not (whole == -7).any()
    parts = np.full_like(whole, -7)
    for z, y in itertools.product([(5, 9), (0, 5)], [(13, 30), (0, 13)]):
        box = Box((z[0], y[0], 0), (z[1], y[1], 26))
        parts[box.slices] = run(VOLUME, box, **options).data[box.slices]
    assert np.array_equal(whole, parts)


@pytest.mark.parametrize("blending", ["linear", "bump"])
def test_blending_of_agreeing_patches_changes_nothing(blending: str) -> None:
    flat = np.ones((6, 20, 20), np.float32)
    destination = MemoryArray(np.zeros_like(flat), (6, 20, 20))
    grid = Grid.of(flat.shape, (4, 8, 8), (2, 4, 4))
    list(infer_volume(lambda v: 3 * v, MemoryArray(flat), destination, Box.of_shape(flat.shape),
                      grid, conversion=Conversion(), blending=blending))  # fmt: skip
    assert np.allclose(destination.data, 3, rtol=1e-6)


def test_an_array_smaller_than_the_patch_is_reflected() -> None:
    source = np.arange(12).reshape(1, 3, 4)
    grid = Grid.of((1, 3, 4), (2, 6, 5), (0, 0, 0))
    ((patch,),) = [grid.touching(Box.of_shape((1, 3, 4)), "crop")]
    values = read_patch(MemoryArray(source), patch, grid)
    assert values.shape == (1, 2, 6, 5)
    assert values[0, 1, :, 0].tolist() == [0, 4, 8, 4, 0, 4]
    assert values[0, 0, 0].tolist() == [0, 1, 2, 3, 2]


def test_conversion_rounds_clips_and_drops_nan() -> None:
    conversion = Conversion(0.5, 1.0, 100.0, 10.0)
    assert conversion.read(np.uint8([0, 255])).tolist() == [1.0, 128.5]
    values = np.float32([np.nan, -1, 0.004, 0.5, 9e9, np.inf, -np.inf])
    assert conversion.write(values, np.dtype("uint8")).tolist() == [0, 0, 10, 60, 255, 255, 0]
    assert conversion.write(np.float32([1]), np.dtype("float32")).tolist() == [110.0]
    assert conversion.write(np.float32([-1, 1]), np.dtype("bool")).tolist() == [False, True]
    limits = np.float32([-np.inf, np.inf])
    assert Conversion().write(limits, np.dtype("int64")).tolist() == [-(2**63), 2**63 - 1024]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="overlap"):
        windows(10, 4, 4)
    with pytest.raises(InvalidArgumentError, match="blending"):
        run(VOLUME, ALL, patch=(4, 8, 8), overlap=(0, 0, 0), blending="magic")
    with pytest.raises(InvalidArgumentError, match="same size"):
        check_sizes((1, 4, 4, 4), (1, 2, 2, 2))
