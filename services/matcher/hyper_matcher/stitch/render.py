"""The montage: each pixel a blend of the tiles that show it, by the distance to their edges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.render import Canvas
from hyper_matcher.stitch.solve import Montage

_STEP_PX = 16  # the map is worked out on a grid this wide, and read between bilinearly
_POWER = 4.0  # of the distance: a seam blends within about a quarter of the overlap


def corners(montage: Montage, tile: int) -> NDArray[np.float64]:
    """(8, 2): where a tile's corners and edges' middles lie."""
    h, w = montage.shape
    points = [[y, x] for y in (0, (h - 1) / 2, h - 1) for x in (0, (w - 1) / 2, w - 1)]
    return montage.place(tile, np.array(points, np.float64))


def montage_canvas(montage: Montage) -> Canvas:
    """The smallest frame that holds the tiles."""
    places = np.concatenate([corners(montage, tile) for tile in range(len(montage.positions))])
    low, high = np.floor(places.min(axis=0)).astype(int), np.ceil(places.max(axis=0)).astype(int)
    return Canvas(
        (int(low[0]), int(low[1])), (int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1)
    )


def render_montage(
    montage: Montage,
    tiles: Sequence[int],
    read: Callable[[int], NDArray[Any]],
    canvas: Canvas,
) -> NDArray[Any]:
    """The tiles of one section on a canvas: (height, width) of their dtype.

    0 where no tile lies; where one does, at least 1. Memory is bounded by the canvas and one tile.

    Args:
        montage: where they lie.
        tiles: their numbers.
        read: gives a tile's pixels (H, W).
        canvas: what to write.
    """
    total = np.zeros(canvas.shape, np.float32)
    weight = np.zeros(canvas.shape, np.float32)
    dtype = np.dtype(np.uint8)
    origin = np.array(canvas.origin, np.float64)
    for tile in tiles:
        places = corners(montage, tile) - origin
        low = np.maximum(np.floor(places.min(axis=0)).astype(int) - 1, 0)
        high = np.minimum(np.ceil(places.max(axis=0)).astype(int) + 2, canvas.shape)
        if (high <= low).any():
            continue
        pixels = read(tile)
        dtype = pixels.dtype
        maps, gains = _grid(montage, tile, low + origin, high - low)
        part = np.s_[low[0] : high[0], low[1] : high[1]]
        _add(np.ascontiguousarray(pixels), maps, gains, _STEP_PX, _POWER, total[part], weight[part])
    inside = weight > 0
    np.divide(total, weight, out=total, where=inside)
    top = np.iinfo(dtype).max
    section = np.clip(np.rint(total), 1, top)
    section[~inside] = 0
    return section.astype(dtype)


def _grid(
    montage: Montage, tile: int, corner: NDArray[np.float64], size: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(rows, columns, 2) points of the tile, and their gains, every `_STEP_PX` of the canvas."""
    counts = -(-size // _STEP_PX) + 1
    axes = [corner[k] + np.arange(counts[k]) * _STEP_PX for k in (0, 1)]
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    flat = montage.unplace(tile, places.reshape(-1, 2))
    inside = np.clip(flat, 0, np.array(montage.shape) - 1.0)
    return flat.reshape(places.shape), montage.gain(tile, inside).reshape(places.shape[:2])


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _add(
    tile: NDArray[Any],
    maps: NDArray[np.float64],
    gains: NDArray[np.float64],
    step: int,
    power: float,
    total: NDArray[np.float32],
    weight: NDArray[np.float32],
) -> None:
    """Add a tile's pixels, bilinear, to sums of value x weight and of weight."""
    h, w = tile.shape
    rows, columns = total.shape
    for i in range(rows):
        gi, fi = i // step, (i % step) / step
        for j in range(columns):
            gj, fj = j // step, (j % step) / step
            a, b = (1 - fi) * (1 - fj), (1 - fi) * fj
            c, d = fi * (1 - fj), fi * fj
            y = a * maps[gi, gj, 0] + b * maps[gi, gj + 1, 0]
            y += c * maps[gi + 1, gj, 0] + d * maps[gi + 1, gj + 1, 0]
            x = a * maps[gi, gj, 1] + b * maps[gi, gj + 1, 1]
            x += c * maps[gi + 1, gj, 1] + d * maps[gi + 1, gj + 1, 1]
            if not (y >= -0.5 and x >= -0.5 and y <= h - 0.5 and x <= w - 0.5):
                continue
            near = min(min(y, h - 1.0 - y), min(x, w - 1.0 - x)) + 1.0
            gain = a * gains[gi, gj] + b * gains[gi, gj + 1]
            gain += c * gains[gi + 1, gj] + d * gains[gi + 1, gj + 1]
            y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
            y0, x0 = min(int(y), h - 2), min(int(x), w - 2)
            fy, fx = y - y0, x - x0
            upper = tile[y0, x0] * (1 - fx) + tile[y0, x0 + 1] * fx
            lower = tile[y0 + 1, x0] * (1 - fx) + tile[y0 + 1, x0 + 1] * fx
            share = (near / (0.5 * min(h, w))) ** power + 1e-12
            total[i, j] += share * (upper * (1 - fy) + lower * fy) / gain
            weight[i, j] += share
