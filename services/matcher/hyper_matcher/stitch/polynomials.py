"""Smooth fields over a tile that all tiles share: products of Legendre polynomials."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.polynomial import legendre
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Points


def terms(lowest: int, highest: int) -> list[tuple[int, int]]:
    """(degree along y, along x) of the products of total degree `lowest` to `highest`."""
    return [(i, d - i) for d in range(lowest, highest + 1) for i in range(d + 1)]


def normalised(points: Points, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Points of a tile as -1..1 along its longer edge, from its middle."""
    middle = (np.array(shape) - 1) / 2
    return np.asarray((points - middle) / (max(shape) / 2))


def basis(points: NDArray[np.float64], products: list[tuple[int, int]]) -> NDArray[np.float64]:
    """(n, terms) values at normalised points (n, 2)."""
    highest = max((max(pair) for pair in products), default=0)
    y, x = (legendre.legvander(points[:, axis], highest) for axis in (0, 1))
    columns: list[NDArray[Any]] = [y[:, i] * x[:, j] for i, j in products]
    return np.stack(columns, -1) if columns else np.zeros((len(points), 0))
