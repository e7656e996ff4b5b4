"""Boxes, grids and dtypes of voxel arrays: pure values, numpy alone."""
