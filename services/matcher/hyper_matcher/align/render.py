"""Rendering: each triangle of a section's mesh carries its pixels along, bilinear, in one pass.

The output pixel's place in its triangle gives its place in the source (the exact inverse of the
piecewise-affine map); the source is read once. Pixels that no triangle covers are 0 and not valid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Mesh


@dataclass(frozen=True, slots=True)
class Canvas:
    """The common frame's part that is written.

    Args:
        origin: (y, x) of pixel (0, 0) in the common frame.
        shape: (height, width).
    """

    origin: tuple[int, int]
    shape: tuple[int, int]


def choose_canvas(
    positions: NDArray[np.float64],
    mesh: Mesh,
    min_kept: float = 0.97,
    flagged: tuple[int, ...] = (),
) -> Canvas:
    """The sections' own frame if every section keeps `min_kept` of itself in it, else all of them.

    Args:
        positions: (Z, n, 2).
        mesh: of the sections.
        min_kept: share of a section.
        flagged: sections whose placement must not decide.
    """
    frame = Canvas((0, 0), mesh.shape)
    trusted = [z for z in range(len(positions)) if z not in flagged] or list(range(len(positions)))
    if all(kept_share(positions[z], frame) >= min_kept for z in trusted):
        return frame
    low = np.floor(positions[trusted].reshape(-1, 2).min(axis=0) - 1e-6).astype(int)
    high = np.ceil(positions[trusted].reshape(-1, 2).max(axis=0) + 1e-6).astype(int)
    return Canvas(
        (int(low[0]), int(low[1])), (int(high[0] - low[0]) + 1, int(high[1] - low[1]) + 1)
    )


def kept_share(positions: NDArray[np.float64], canvas: Canvas) -> float:
    """Share of a section's vertices (n, 2) that lie on the canvas, give or take a pixel."""
    low = np.array(canvas.origin) - 1.0
    high = low + np.array(canvas.shape) + 1.0
    return float(((positions >= low) & (positions <= high)).all(axis=1).mean())


def render_section(
    section: NDArray[Any], positions: NDArray[np.float64], mesh: Mesh, canvas: Canvas
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The section on the canvas, and which of its pixels are tissue.

    Args:
        section: (H, W), uint8, uint16 or float32.
        positions: (n, 2), where its vertices lie in the common frame.
        mesh: of the section.
        canvas: what to write.

    Returns:
        (height, width) of the section's dtype, 0 outside; (height, width) validity.
    """
    return render_triangles(section, mesh.vertices, positions, mesh.triangles, canvas)


def render_triangles(
    section: NDArray[Any],
    source: NDArray[np.float64],
    placed: NDArray[np.float64],
    triangles: NDArray[np.int64],
    canvas: Canvas,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The same for any triangles (m, 3) over vertices (n, 2) of the section and where they go."""
    origin = np.array(canvas.origin, np.float64)
    maps = _rasterise(placed - origin, source, triangles, canvas.shape[0], canvas.shape[1])
    return render_maps(section, maps)


def render_maps(
    section: NDArray[Any], maps: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """The section read at an inverse map (height, width, 2), NaN outside; and which pixels are."""
    values, valid = _sample(np.ascontiguousarray(section), np.ascontiguousarray(maps))
    if np.issubdtype(section.dtype, np.integer):
        top = np.iinfo(section.dtype).max
        return np.clip(np.rint(values), 0, top).astype(section.dtype), valid
    return values.astype(section.dtype), valid


def inverse_map(positions: NDArray[np.float64], mesh: Mesh, canvas: Canvas) -> NDArray[np.float32]:
    """(height, width, 2): where each pixel of the canvas lies in the source; NaN outside."""
    origin = np.array(canvas.origin, np.float64)
    return np.asarray(
        _rasterise(
            positions - origin, mesh.vertices, mesh.triangles, canvas.shape[0], canvas.shape[1]
        )
    )


def jacobians(positions: NDArray[np.float64], mesh: Mesh) -> NDArray[np.float64]:
    """Area of each triangle over its area in the source: (triangles,)."""
    return _areas(positions, mesh) / _areas(mesh.vertices, mesh)


def placed_px(positions: NDArray[np.float64], mesh: Mesh) -> float:
    """The section's area as placed, whether on the canvas or beyond."""
    return float(np.abs(_areas(positions, mesh)).sum())


def tissue_kept(valid_px: int, area_px: float) -> float:
    """Share of a section's area, as placed, that landed on the canvas as valid pixels."""
    return min(1.0, valid_px / max(area_px, 1.0))


def _areas(points: NDArray[np.float64], mesh: Mesh) -> NDArray[np.float64]:
    a, b, c = (points[mesh.triangles[:, k]] for k in range(3))
    u, v = b - a, c - a
    return np.asarray(0.5 * (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _rasterise(
    placed: NDArray[np.float64],
    source: NDArray[np.float64],
    triangles: NDArray[np.int64],
    height: int,
    width: int,
) -> NDArray[np.float32]:
    maps = np.full((height, width, 2), np.nan, np.float32)
    tiny = 1e-9
    for t in range(len(triangles)):
        i, j, k = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ay, ax = placed[i, 0], placed[i, 1]
        by, bx = placed[j, 0] - ay, placed[j, 1] - ax
        cy, cx = placed[k, 0] - ay, placed[k, 1] - ax
        determinant = by * cx - bx * cy
        if abs(determinant) < tiny:
            continue
        y_low = max(0, math.ceil(ay + min(0.0, by, cy) - tiny))
        y_high = min(height - 1, math.floor(ay + max(0.0, by, cy) + tiny))
        x_low = max(0, math.ceil(ax + min(0.0, bx, cx) - tiny))
        x_high = min(width - 1, math.floor(ax + max(0.0, bx, cx) + tiny))
        for y in range(y_low, y_high + 1):
            for x in range(x_low, x_high + 1):
                v = ((y - ay) * cx - (x - ax) * cy) / determinant
                w = ((x - ax) * by - (y - ay) * bx) / determinant
                u = 1.0 - v - w
                if u >= -1e-7 and v >= -1e-7 and w >= -1e-7:
                    maps[y, x, 0] = u * source[i, 0] + v * source[j, 0] + w * source[k, 0]
                    maps[y, x, 1] = u * source[i, 1] + v * source[j, 1] + w * source[k, 1]
    return maps


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]  # no types in numba
def _sample(
    section: NDArray[Any], maps: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    h, w = section.shape
    height, width = maps.shape[:2]
    values = np.zeros((height, width), np.float32)
    valid = np.zeros((height, width), np.bool_)
    for i in range(height):
        for j in range(width):
            y, x = maps[i, j, 0], maps[i, j, 1]
            if not (y >= -0.01 and x >= -0.01 and y <= h - 0.99 and x <= w - 0.99):
                continue
            y0, x0 = min(max(int(y), 0), h - 2), min(max(int(x), 0), w - 2)
            fy, fx = y - y0, x - x0
            upper = section[y0, x0] * (1 - fx) + section[y0, x0 + 1] * fx
            lower = section[y0 + 1, x0] * (1 - fx) + section[y0 + 1, x0 + 1] * fx
            values[i, j] = upper * (1 - fy) + lower * fy
            valid[i, j] = True
    return values, valid
