"""Boxes, chunk grids, voxel sizes and dtypes: pure values on numpy alone."""

from hyper_voxels.box import Box
from hyper_voxels.grid import ChunkGrid, Part
from hyper_voxels.values import DTYPES, VoxelSize, dtype_name, parse_dtype

__all__ = ["DTYPES", "Box", "ChunkGrid", "Part", "VoxelSize", "dtype_name", "parse_dtype"]
