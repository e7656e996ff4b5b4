"""Voxel sizes and the dtypes an array may have."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

# Every dtype that arrays and tensors may have: numpy's name -> little-endian dtype.
DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(name).newbyteorder("<")
    for name in (
        "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64",
        "float16", "float32", "float64",
    )
}  # fmt: skip


def parse_dtype(name: str) -> np.dtype[Any]:
    """The dtype of this name.

    Raises:
        ValueError: not one of `DTYPES`.
    """
    found = DTYPES.get(name)
    if found is None:
        raise ValueError(f"dtype {name[:40]!r} is not one of {', '.join(DTYPES)}")
    return found


def dtype_name(dtype: np.dtype[Any] | type[np.generic]) -> str:
    """The name of a dtype, whatever its byte order.

    Raises:
        ValueError: not one of `DTYPES`.
    """
    name = np.dtype(dtype).name
    parse_dtype(name)
    return name


@dataclass(frozen=True, slots=True)
class VoxelSize:
    """Edge lengths of a voxel in nanometres: finite and positive."""

    z_nm: float
    y_nm: float
    x_nm: float

    def __post_init__(self) -> None:
        if not all(math.isfinite(edge) and edge > 0 for edge in self.zyx_nm):
            raise ValueError(f"voxel edges must be positive and finite: {self.zyx_nm}")

    @property
    def zyx_nm(self) -> tuple[float, float, float]:
        """The edges in array order."""
        return self.z_nm, self.y_nm, self.x_nm

    def downsampled(self, factors: tuple[int, int, int]) -> VoxelSize:
        """The voxel of an array reduced by `factors` (z, y, x)."""
        z, y, x = factors
        return VoxelSize(self.z_nm * z, self.y_nm * y, self.x_nm * x)
