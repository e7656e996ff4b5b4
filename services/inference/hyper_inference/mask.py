"""Masks: where a volume is computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hyper_inference.errors import ShapeError


class Mask:
    """An array (z, y, x), not zero where results are wanted; coarser than the volume or equal.

    Args:
        array: of the mask.
        size: (z, y, x) of the volume.

    Raises:
        ShapeError: a voxel of the mask is no whole number of voxels.
    """

    def __init__(self, array: Any, size: Sequence[int]) -> None:
        shape = tuple(array.shape)
        if len(shape) != 3:
            raise ShapeError(f"a mask of {shape} is not (z, y, x)")
        self._factors = [-(-n // m) for n, m in zip(size, shape, strict=True)]
        fits = [-(-n // f) == m for n, m, f in zip(size, shape, self._factors, strict=True)]
        if not all(fits):
            raise ShapeError(
                f"a mask of {shape} does not cover a volume of {tuple(size)}: make it of equal "
                "size, or coarser by a whole factor along each axis"
            )
        self._array = array

    def touches(self, start: Sequence[int], stop: Sequence[int]) -> bool:
        """Whether anything is wanted between two corners."""
        spans = tuple(
            slice(low // f, -(-high // f))
            for low, high, f in zip(start, stop, self._factors, strict=True)
        )
        return bool(np.any(self._array[spans]))
