"""Downsampling and the metadata of pyramids (pure)."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper import pyramids
from hyper.pyramids import downsample, factors_of, ome_attributes, precomputed_info

lengths = st.tuples(*[st.integers(1, 7)] * 3)
factors = st.tuples(*[st.integers(1, 3)] * 3)


@given(lengths, factors, st.sampled_from(["uint8", "int16", "float32"]))
def test_means_over_boxes(shape: tuple[int, ...], by: tuple[int, ...], dtype: str) -> None:
    block = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    coarse = downsample(block, by)
    assert coarse.dtype == block.dtype
    assert coarse.shape == tuple(-(-n // f) for n, f in zip(shape, by, strict=True))
    for index in np.ndindex(*coarse.shape):
        box = block[tuple(slice(i * f, i * f + f) for i, f in zip(index, by, strict=True))]
        mean = box.astype(np.float64).mean()
        assert abs(float(coarse[index]) - mean) <= (0.5 if dtype != "float32" else 1e-3) + 1e-9


def test_labels_are_not_averaged() -> None:
    labels = np.arange(4 * 4 * 4, dtype=np.uint64).reshape(4, 4, 4) + 2**60
    np.testing.assert_array_equal(downsample(labels, (2, 2, 2), labels=True), labels[::2, ::2, ::2])


@pytest.mark.parametrize(
    ("voxel", "shape", "expected"),
    [
        ((40, 4, 4), (100, 100, 100), (1, 2, 2)),
        ((8, 8, 8), (100, 100, 100), (2, 2, 2)),
        ((8, 8, 8), (1, 100, 100), (1, 2, 2)),
        ((30, 16, 16), (9, 9, 9), (2, 2, 2)),
    ],
)
def test_voxels_become_cubes(
    voxel: tuple[int, ...], shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert factors_of(voxel, shape) == expected


def test_metadata_has_scales_in_nanometres() -> None:
    sizes = [(40.0, 4.0, 4.0), (40.0, 8.0, 8.0)]
    multiscale = ome_attributes("raw", sizes)["ome"]["multiscales"][0]
    assert [axis["name"] for axis in multiscale["axes"]] == ["z", "y", "x"]
    assert multiscale["datasets"][1]["coordinateTransformations"] == [
        {"type": "scale", "scale": [40.0, 8.0, 8.0]},
        {"type": "translation", "translation": [0.0, 2.0, 2.0]},
    ]
    info = precomputed_info("uint8", [(3, 20, 10), (3, 10, 5)], sizes, (64, 64, 64), labels=False)
    assert [scale["size"] for scale in info["scales"]] == [[10, 20, 3], [5, 10, 3]]
    assert info["scales"][1]["resolution"] == [8.0, 8.0, 40.0]
    assert info["scales"][1]["key"] == "8_8_40"


class Blocks:
    """An array in memory that is written shard by shard."""

    def __init__(self, content: np.ndarray, shards: tuple[int, ...]) -> None:
        self.content, self.shards = content, shards
        self.shape, self.dtype = content.shape, content.dtype

    def __getitem__(self, box: tuple[slice, ...]) -> np.ndarray:
        return self.content[box]

    def __setitem__(self, box: tuple[slice, ...], value: np.ndarray) -> None:
        assert all(s.start % edge == 0 for s, edge in zip(box, self.shards, strict=True))
        self.content[box] = value


@given(st.tuples(*[st.integers(1, 20)] * 3), lengths, factors, st.integers(1, 60))
def test_levels_are_the_same_shard_by_shard(
    shape: tuple[int, ...], shards: tuple[int, ...], by: tuple[int, ...], most: int
) -> None:
    source = Blocks(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8), (1, 1, 1))
    whole = downsample(source.content, by)
    target: Any = Blocks(np.zeros_like(whole), shards)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pyramids, "_PIECE_VOXELS", most)
        for number in range(pyramids.shards_of(target)):
            pyramids.fill_shard(cast(Any, source), target, number, by)
    np.testing.assert_array_equal(target.content, whole)


def test_a_brain_has_levels_until_it_fits_a_thumbnail() -> None:
    levels = pyramids.levels_of((7_600, 92_000, 187_000), (40.0, 4.0, 4.0))
    assert [each.factors for each in levels[:4]] == [(1, 2, 2)] * 3 + [(2, 2, 2)]
    assert [each.level for each in levels] == list(range(1, len(levels) + 1))
    assert max(levels[-1].shape) <= 64 < max(levels[-2].shape)
    assert pyramids.levels_of((10, 500, 500), (40.0, 4.0, 4.0), count=2) == [
        pyramids.Level(1, (1, 2, 2), (10, 250, 250), (40.0, 8.0, 8.0))
    ]
