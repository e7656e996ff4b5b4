"""Downsampling and the metadata of pyramids (pure)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
