"""Dtypes and voxel sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hyper_voxels import DTYPES, VoxelSize, dtype_name, parse_dtype


@pytest.mark.parametrize("name", DTYPES)
def test_names_and_dtypes_round_trip(name: str) -> None:
    dtype = parse_dtype(name)
    assert dtype_name(dtype) == name
    assert dtype_name(dtype.newbyteorder(">")) == name
    assert dtype.itemsize == 1 or dtype.str.startswith("<")
    assert dtype_name(dtype.type) == name


@pytest.mark.parametrize("name", ["object", "O", "complex64", "U4", "datetime64", "", "x" * 999])
def test_other_dtypes_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not one of bool, uint8") as caught:
        parse_dtype(name)
    assert len(str(caught.value)) < 300
    with pytest.raises(ValueError, match="is not one of"):
        dtype_name(np.dtype(object))


@pytest.mark.parametrize("edge", [0.0, -1.0, math.nan, math.inf])
def test_voxels_have_positive_finite_edges(edge: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        VoxelSize(1.0, edge, 1.0)


def test_downsampling() -> None:
    assert VoxelSize(40, 4, 4).downsampled((1, 2, 2)) == VoxelSize(40, 8, 8)
    assert VoxelSize(40, 4, 5).zyx_nm == (40, 4, 5)
