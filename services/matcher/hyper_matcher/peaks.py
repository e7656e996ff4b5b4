"""What a correlogram says: its first and second peak, to a fraction of a pixel, and its shape.

Axes are (y, x); a correlogram's entry (i, j) is the score of the window that starts there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Peaks:
    """What n correlograms say; arrays of n.

    Args:
        offset: (n, 2) sub-pixel position of the first peak in the correlogram, (y, x).
        p1: its score.
        p2: highest score outside a box round it; 0 where the box covers everything.
        dynamic_range: highest minus lowest score.
        kurtosis: of the scores (3 for a normal distribution).
        width: share of the correlogram above half of the first peak.
    """

    offset: NDArray[np.float64]
    p1: NDArray[np.float64]
    p2: NDArray[np.float64]
    dynamic_range: NDArray[np.float64]
    kurtosis: NDArray[np.float64]
    width: NDArray[np.float64]


def find_peaks(correlograms: NDArray[Any], exclusion_px: int = 8) -> Peaks:
    """First and second peak, and the shape of the surface, of (n, rows, columns) correlograms.

    Args:
        correlograms: scores.
        exclusion_px: half the edge of the box round the first peak that the second lies outside of.
    """
    table = _peaks(np.ascontiguousarray(correlograms, np.float32), exclusion_px)
    return Peaks(table[:, :2], *(table[:, k] for k in range(2, 7)))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _peaks(correlograms: NDArray[np.float32], exclusion: int) -> NDArray[np.float64]:
    """Columns: y, x, p1, p2, dynamic range, kurtosis, width."""
    n, rows, columns = correlograms.shape
    table = np.zeros((n, 7))
    for k in range(n):
        c = correlograms[k]
        best, lowest, total = -2.0, 2.0, 0.0
        py, px = 0, 0
        for i in range(rows):
            for j in range(columns):
                value = c[i, j]
                total += value
                lowest = min(lowest, value)
                if value > best:
                    best, py, px = value, i, j
        mean = total / (rows * columns)
        second, m2, m4, above = -2.0, 0.0, 0.0, 0
        for i in range(rows):
            for j in range(columns):
                value = c[i, j]
                d2 = (value - mean) ** 2
                m2 += d2
                m4 += d2 * d2
                if value > 0.5 * best:
                    above += 1
                if (abs(i - py) > exclusion or abs(j - px) > exclusion) and value > second:
                    second = value
        y, x = float(py), float(px)
        if 0 < py < rows - 1 and 0 < px < columns - 1:
            dy, dx = _refine(c[py - 1 : py + 2, px - 1 : px + 2])
            y += dy
            x += dx
        table[k, 0], table[k, 1], table[k, 2] = y, x, best
        table[k, 3] = second if second > -2.0 else 0.0
        table[k, 4] = best - lowest
        table[k, 5] = m4 * rows * columns / (m2 * m2) if m2 > 1e-20 else 0.0
        table[k, 6] = above / (rows * columns)
    return table


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _refine(p: NDArray[np.float32]) -> tuple[float, float]:
    """Top of the paraboloid fitted by least squares to 3 x 3 scores, relative to their centre."""
    gy, gx, a, b, c = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(3):
        for j in range(3):
            value, u, v = float(p[i, j]), i - 1.0, j - 1.0
            gy += u * value / 6.0
            gx += v * value / 6.0
            a += (u * u - 2.0 / 3.0) * value  # second derivatives: the fit's coefficients
            b += (v * v - 2.0 / 3.0) * value
            c += u * v * value / 4.0
    determinant = a * b - c * c
    if not (a < 0.0 and determinant > 0.0):
        return 0.0, 0.0
    dy = -(b * gy - c * gx) / determinant
    dx = -(a * gx - c * gy) / determinant
    if abs(dy) > 1.0 or abs(dx) > 1.0:
        return 0.0, 0.0
    return dy, dx
