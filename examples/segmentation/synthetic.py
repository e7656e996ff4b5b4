"""A made stack of cells with its truth, for machines without the real one and for tests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.spatial import KDTree

Stack = NDArray[np.uint8]
_FLATTEN = 6.0  # a section is as thick as so many pixels


def stack(sections: int, edge: int, seed: int = 0) -> tuple[Stack, Stack, Stack]:
    """Raw, membranes (255: membrane) and labels (255: inside, 0: membrane), each (z, y, x)."""
    rng = np.random.default_rng(seed)
    count = max(8, edge * edge // 900)
    size = np.array([sections * _FLATTEN, edge, edge])
    tree = KDTree(rng.uniform(0, 1, (count, 3)) * size)
    z, y, x = np.meshgrid(
        np.arange(sections) * _FLATTEN, np.arange(edge), np.arange(edge), indexing="ij"
    )
    warp = [ndimage.gaussian_filter(rng.normal(size=z.shape), (0, 8, 8)) * 60 for _ in range(2)]
    points = np.stack([z, y + warp[0], x + warp[1]], -1).reshape(-1, 3)
    distance, _ = tree.query(points, 2)
    gap = (distance[:, 1] - distance[:, 0]).reshape(z.shape)
    wall = gap < 2.5
    grey = np.where(wall, 70.0, 165.0) + rng.normal(0, 14, z.shape)
    grey = ndimage.gaussian_filter(grey, (0, 0.8, 0.8))
    blobs = ndimage.gaussian_filter(rng.normal(size=z.shape), (0, 4, 4))
    grey = np.where((blobs > 2 * blobs.std()) & ~wall, 115.0, grey)
    raw = np.clip(grey, 0, 255).astype(np.uint8)
    return raw, np.where(wall, 255, 0).astype(np.uint8), np.where(wall, 0, 255).astype(np.uint8)
