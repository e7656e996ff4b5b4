"""Bilinear sampling, compiled: one pass over the pixels that come out."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


def downsample(image: NDArray[Any], factor: int) -> NDArray[np.float32]:
    """Mean over (factor, factor) blocks; rows and columns that fill no block are dropped."""
    if factor == 1:
        return image.astype(np.float32)
    h, w = image.shape[0] // factor, image.shape[1] // factor
    blocks = image[: h * factor, : w * factor].reshape(h, factor, w, factor)
    return np.asarray(blocks.mean(axis=(1, 3), dtype=np.float32))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def sample_patches(
    image: NDArray[np.float32],
    centers: NDArray[np.float64],
    matrices: NDArray[np.float64],
    size: int,
) -> NDArray[np.float32]:
    """Patches read through local affine maps.

    Args:
        image: (H, W); read as the nearest border pixel outside.
        centers: (n, 2), what lies in the middle of each patch, at (size - 1) / 2.
        matrices: (n, 2, 2); a step in the patch is `matrix @ step` in the image.
        size: edge of a patch, px.

    Returns:
        (n, size, size).
    """
    n = len(centers)
    h, w = image.shape
    half = (size - 1) / 2.0
    patches = np.empty((n, size, size), np.float32)
    for k in range(n):
        m = matrices[k]
        for i in range(size):
            for j in range(size):
                u, v = i - half, j - half
                y = centers[k, 0] + m[0, 0] * u + m[0, 1] * v
                x = centers[k, 1] + m[1, 0] * u + m[1, 1] * v
                y = min(max(y, 0.0), h - 1.0)
                x = min(max(x, 0.0), w - 1.0)
                y0, x0 = min(int(y), h - 2), min(int(x), w - 2)
                fy, fx = y - y0, x - x0
                upper = image[y0, x0] * (1 - fx) + image[y0, x0 + 1] * fx
                lower = image[y0 + 1, x0] * (1 - fx) + image[y0 + 1, x0 + 1] * fx
                patches[k, i, j] = upper * (1 - fy) + lower * fy
    return patches
