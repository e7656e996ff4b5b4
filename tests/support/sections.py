"""Sections to match and align: a synthetic texture with known warps, and the real stack."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def data_folder(name: str) -> Path:
    """A folder below `HYPER_DATA_DIR` (by default `../shared/data`); skips where it is missing."""
    folder = Path(os.environ.get("HYPER_DATA_DIR", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        pytest.skip(f"no {name} below HYPER_DATA_DIR")
    return folder


def real_stack(count: int, crop: tuple[slice, slice] = (slice(None), slice(None))) -> NDArray[Any]:
    """The first sections of the unaligned stack."""
    files = sorted(data_folder("em/aligntk_raw").glob("*.png"))[:count]
    return np.stack([np.asarray(Image.open(file))[crop] for file in files])


def texture(shape: tuple[int, int], seed: int = 0, sigma_px: float = 3.0) -> NDArray[np.uint8]:
    """Blobs of all greys from 20 to 235."""
    rng = np.random.default_rng(seed)
    fine = scipy.ndimage.gaussian_filter(rng.normal(size=shape), sigma_px)
    broad = scipy.ndimage.gaussian_filter(rng.normal(size=shape), 3 * sigma_px)
    mixed = fine / fine.std() + broad / broad.std()
    return (127.5 + 107.5 * np.tanh(0.7 * mixed)).astype(np.uint8)


def smooth_field(
    shape: tuple[int, int], rms_px: float, seed: int, sigma_px: float = 100.0
) -> NDArray[np.float64]:
    """(2, H, W) displacements of this root mean square length."""
    rng = np.random.default_rng(seed)
    coarse = (2, *(max(4, edge // 16) for edge in shape))
    noise = scipy.ndimage.gaussian_filter(
        rng.normal(size=coarse), (0, sigma_px / 16, sigma_px / 16)
    )
    zoom = (1, shape[0] / coarse[1], shape[1] / coarse[2])
    field = scipy.ndimage.zoom(noise, zoom, order=3, mode="nearest", grid_mode=True)
    return np.asarray(field * rms_px / np.sqrt((field**2).sum(axis=0).mean()))


def pull(
    section: NDArray[Any],
    angle_rad: float = 0.0,
    shift: tuple[float, float] = (0.0, 0.0),
    field: NDArray[np.float64] | None = None,
    fill: float = 0.0,
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A warped section, and (2, H, W): where each of its pixels lies in the original."""
    height, width = section.shape
    y, x = np.mgrid[:height, :width].astype(np.float64)
    cy, cx = (height - 1) / 2, (width - 1) / 2
    c, s = np.cos(angle_rad), np.sin(angle_rad)
    where = np.stack(
        [
            c * (y - cy) - s * (x - cx) + cy + shift[0],
            s * (y - cy) + c * (x - cx) + cx + shift[1],
        ]
    )
    if field is not None:
        where = where + field
    warped = scipy.ndimage.map_coordinates(
        section.astype(np.float32), where, order=1, mode="constant", cval=fill
    )
    return np.clip(np.rint(warped), 0, 255).astype(section.dtype), where
