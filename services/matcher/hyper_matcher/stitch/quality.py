"""How well tiles meet: fresh matches in the common frame, on a grid of their own."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Affine
from hyper_matcher.align.match import Guess, search
from hyper_matcher.align.metrics import RESIDUAL_FILTER
from hyper_matcher.align.render import Canvas
from hyper_matcher.ncc import SearchImage
from hyper_matcher.stitch.render import corners, render_montage
from hyper_matcher.stitch.solve import Montage

_TEMPLATES_PX = (32, 96)
_RADIUS_PX = 10


def seam_residuals(
    montage: Montage, first: int, second: int, tiles: tuple[NDArray[Any], NDArray[Any]]
) -> tuple[NDArray[np.float64], int]:
    """Distances (n,) px between the same tissue in two placed tiles, and how many were tried.

    Both are rendered on their common part and matched afresh, peak filters only.
    """
    boxes = [corners(montage, tile) for tile in (first, second)]
    low = np.max([box.min(axis=0) for box in boxes], axis=0)
    high = np.min([box.max(axis=0) for box in boxes], axis=0)
    shape = np.floor(high).astype(int) - np.ceil(low).astype(int)
    if shape.min() < _TEMPLATES_PX[0] // 2 + 2 * _RADIUS_PX:
        return np.zeros(0), 0
    canvas = Canvas((int(np.ceil(low[0])), int(np.ceil(low[1]))), (int(shape[0]), int(shape[1])))
    views = [
        render_montage(montage, [tile], lambda _, k=k: tiles[k], canvas)  # type: ignore[misc]
        for k, tile in enumerate((first, second))
    ]
    size = int(np.clip(shape.min() - 2 * _RADIUS_PX, *_TEMPLATES_PX)) // 2 * 2
    size = min(size, int(shape.min()) - 2 * _RADIUS_PX)
    margin = _RADIUS_PX + size / 2
    counts = [max(1, round((edge - 2 * margin) / (0.7 * size))) + 1 for edge in shape]
    axes = [np.linspace(margin, e - margin, n).round() for e, n in zip(shape, counts, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2) - 0.5
    points = np.unique(points, axis=0)
    half = size // 2
    filled = [
        all(
            (v[int(y) - half + 1 : int(y) + half, int(x) - half + 1 : int(x) + half] > 0).all()
            for v in views
        )
        for y, x in points
    ]
    points = points[np.array(filled, bool)]
    if len(points) == 0:
        return np.zeros(0), 0
    identity = np.broadcast_to(Affine.identity().matrix, (len(points), 2, 2))
    found = search(
        SearchImage(views[0]), SearchImage(views[1]), Guess(points, points, identity), size,
        _RADIUS_PX, RESIDUAL_FILTER,
    )  # fmt: skip
    kept = found.rejection == 0
    return np.linalg.norm((found.target - found.source)[kept], axis=1), len(points)
