"""Sections spoilt on purpose, and how far an alignment is from the truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

RMS_PX, ANGLE_RAD, SHIFT_PX = 6.0, 0.02, 12.0
Triangles = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]


def smooth_field(shape: tuple[int, int], rms_px: float, seed: int) -> NDArray[np.float64]:
    """(2, H, W) displacements of this root mean square length, smooth over about 100 px."""
    rng = np.random.default_rng(seed)
    coarse = (2, *(max(8, edge // 16) for edge in shape))
    noise = scipy.ndimage.gaussian_filter(rng.normal(size=coarse), (0, 6, 6))
    zoom = (1, shape[0] / coarse[1], shape[1] / coarse[2])
    field = scipy.ndimage.zoom(noise, zoom, order=3, mode="nearest", grid_mode=True)
    return np.asarray(field * rms_px / np.sqrt((field**2).sum(axis=0).mean()))


def turn(
    section: NDArray[Any], angle_rad: float, shift: Sequence[float], field: Any = 0.0
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A section moved, and (2, H, W): where each of its pixels lies in the original."""
    height, width = section.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    cy, cx = (height - 1) / 2, (width - 1) / 2
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    where = np.stack([
        c * (y - cy) - s * (x - cx) + cy + shift[0], s * (y - cy) + c * (x - cx) + cx + shift[1],
    ])  # fmt: skip
    where = where + field
    moved = scipy.ndimage.map_coordinates(section.astype(np.float32), where, order=1, cval=0.0)
    return np.clip(np.rint(moved), 0, 255).astype(section.dtype), where


def warp(volume: NDArray[Any], seed: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Every section under a known smooth warp, a rotation and a shift: (volume, wheres)."""
    rng = np.random.default_rng(seed)
    moved = [
        turn(
            np.maximum(section, 1), rng.uniform(-ANGLE_RAD, ANGLE_RAD),
            rng.uniform(-SHIFT_PX, SHIFT_PX, 2), smooth_field(section.shape, RMS_PX, seed + z),
        )
        for z, section in enumerate(volume)
    ]  # fmt: skip
    return np.stack([m for m, _ in moved]), np.stack([w for _, w in moved])


def fold(section: NDArray[Any], width_px: int, at: float = 0.5) -> NDArray[Any]:
    """A dark fold down the section; what it swallowed is missing, the rest has moved in."""
    edge = int(section.shape[1] * at)
    folded = section.copy()
    folded[:, edge:-width_px] = section[:, edge + width_px :]
    folded[:, -width_px:] = 0
    folded[:, edge - 4 : edge + 5] = 15
    return folded


def damage(volume: NDArray[Any], seed: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """One section missing, one folded, two swapped, one turned by 170 degrees."""
    depth = len(volume)
    if depth < 10:
        raise SystemExit("error: --damage needs ten sections or more")
    spoilt = volume.copy()
    missing, folded, swapped, turned = 2, 4, (5, 6), 8
    spoilt[missing] = 0
    spoilt[folded] = fold(volume[folded], 40)
    spoilt[list(swapped)] = spoilt[list(swapped[::-1])]
    spoilt[turned], _ = turn(volume[turned], np.deg2rad(170), (0.0, 0.0))
    return spoilt, {"missing": missing, "folded": folded, "swapped": swapped, "turned": turned}


def truth_errors(placed: Sequence[Triangles], wheres: NDArray[np.float64]) -> dict[str, float]:
    """Distances of common points from their mean place, px: `truth_p50`, `truth_p95`.

    Args:
        placed: vertices of each section and where they went.
        wheres: (Z, 2, H, W), where each pixel of a section lies in the original.
    """
    from scipy.interpolate import LinearNDInterpolator

    _, _, height, width = wheres.shape
    y, x = np.meshgrid(np.linspace(80, height - 81, 24), np.linspace(80, width - 81, 24))
    true = np.stack([y.ravel(), x.ravel()], -1)
    places = []
    for (source, target, _), where in zip(placed, wheres, strict=True):
        at = true.copy()
        for _ in range(30):  # where the section shows the true point
            seen = [scipy.ndimage.map_coordinates(w, at.T, order=1, mode="nearest") for w in where]
            at += true - np.stack(seen, -1)
        places.append(LinearNDInterpolator(source, target)(at))
    stacked = np.stack(places)
    error = np.linalg.norm(stacked - np.nanmedian(stacked, axis=0), axis=-1)
    known = error[np.isfinite(error)]
    return {
        "truth_p50": round(float(np.median(known)), 3),
        "truth_p95": round(float(np.percentile(known, 95)), 3),
        "truth_known": round(len(known) / error.size, 4),
    }
