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


@numba.njit(cache=True, nogil=True, error_model="numpy")  # type: ignore[untyped-decorator]  # no types in numba
def sample_patches(
    image: NDArray[np.float32],
    centers: NDArray[np.float64],
    matrices: NDArray[np.float64],
    size: int,
) -> NDArray[np.float32]:
    """Patches read through local affine maps.

    Args:
        image: (H, W), at least 2 px each way; read as the nearest border pixel outside.
        centers: (n, 2), what lies in the middle of each patch, at (size - 1) / 2.
        matrices: (n, 2, 2); a step in the patch is `matrix @ step` in the image.
        size: edge of a patch, px.

    Returns:
        (n, size, size).
    """
    n = len(centers)
    h, w = image.shape
    if h < 2 or w < 2:
        raise ValueError("an image to sample has at least two pixels each way")
    half = (size - 1) / 2.0
    patches = np.empty((n, size, size), np.float32)
    for k in range(n):
        (yu, yv), (xu, xv) = matrices[k]
        cy, cx = centers[k]
        reach_y, reach_x = half * (abs(yu) + abs(yv)), half * (abs(xu) + abs(xv))
        inside = reach_y <= cy < h - 1 - reach_y and reach_x <= cx < w - 1 - reach_x
        for i in range(size):
            top = cy + yu * (i - half) - yv * half
            left = cx + xu * (i - half) - xv * half
            for j in range(size):
                y, x = top + yv * j, left + xv * j
                if not inside:
                    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
                # Unsigned: numba then leaves out what negative indices would need.
                y0, x0 = np.uint32(min(int(y), h - 2)), np.uint32(min(int(x), w - 2))
                fy, fx = np.float32(y - y0), np.float32(x - x0)
                a, b = image[y0, x0], image[y0, x0 + np.uint32(1)]
                c, d = image[y0 + np.uint32(1), x0], image[y0 + np.uint32(1), x0 + np.uint32(1)]
                upper, lower = a + (b - a) * fx, c + (d - c) * fx
                patches[k, i, j] = upper + (lower - upper) * fy
    return patches


@numba.njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]  # no types in numba
def contrasts(patches: NDArray[np.float32]) -> NDArray[np.float64]:
    """Standard deviation of each patch: (n, h, w) -> (n,)."""
    n, h, w = patches.shape
    found = np.empty(n)
    for k in range(n):
        first = np.float64(patches[k, 0, 0])  # taken off, so that squares lose nothing
        total, squares = 0.0, 0.0
        for i in range(h):
            for j in range(w):
                value = np.float64(patches[k, i, j]) - first
                total += value
                squares += value * value
        mean = total / (h * w)
        found[k] = np.sqrt(max(squares / (h * w) - mean * mean, 0.0))
    return found
