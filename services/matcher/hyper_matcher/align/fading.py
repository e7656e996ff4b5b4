"""Displacement fields that are made tile by tile and fade into each other, so that none shows.

A tile's field is made over its core and a margin, kept over the core and the width of the ramp, and
weighs as a ramp across the core's borders: weights of all tiles add up to 1 at every pixel. Fields
are kept at every second pixel; the refinement makes them no finer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from hyper_matcher.align.blocks import Span, grown

TILE_PX = 3072  # edge of a core; a canvas of half as much again is one tile
RAMP_PX = 192  # of the fading, on either side of a border
MARGIN_PX = 512  # round the core; beyond the ramp, what the field there is drawn from
_STEP_PX = 2


@dataclass(frozen=True, slots=True)
class FieldTile:
    """The field of a tile.

    Args:
        core: its own part of the canvas.
        origin: (y, x) of the field's first pixel.
        field: (h, w, 2), px, at the middle of every 2 x 2 pixels from the origin on.
    """

    core: Span
    origin: tuple[int, int]
    field: NDArray[np.float32]


def keep(core: Span, window: Span, field: NDArray[np.float32], shape: tuple[int, int]) -> FieldTile:
    """What is kept of a field (H, W, 2) that was made over `window` for `core`."""
    y0, x0, y1, x1 = grown(core, RAMP_PX, shape)
    y0, x0 = y0 - y0 % _STEP_PX, x0 - x0 % _STEP_PX
    own = field[y0 - window[0] : y1 - window[0], x0 - window[1] : x1 - window[1]]
    odd = [(0, -edge % _STEP_PX) for edge in own.shape[:2]]
    own = np.pad(own, (*odd, (0, 0)), "edge")
    halves = own.reshape(own.shape[0] // _STEP_PX, _STEP_PX, own.shape[1] // _STEP_PX, _STEP_PX, 2)
    return FieldTile(core, (y0, x0), np.asarray(halves.mean(axis=(1, 3)), np.float32))


def touches(core: Span, part: Span) -> bool:
    """Whether a tile's field counts in a part of the canvas."""
    return all(core[k] - RAMP_PX < part[k + 2] and part[k] < core[k + 2] + RAMP_PX for k in (0, 1))


def faded(tiles: Iterable[FieldTile], part: Span, shape: tuple[int, int]) -> NDArray[np.float32]:
    """The field (h, w, 2) of a part of the canvas, px.

    Args:
        tiles: those that touch it; others do no harm.
        part: y0, x0, y1, x1, ends excluded.
        shape: of the canvas.
    """
    height, width = part[2] - part[0], part[3] - part[1]
    found = np.zeros((height, width, 2), np.float32)
    for tile in tiles:
        if not touches(tile.core, part):
            continue
        places = [np.arange(part[k], part[k + 2]) for k in (0, 1)]
        ramps = [_ramp(at, tile.core[k], tile.core[k + 2], shape[k]) for k, at in enumerate(places)]
        ys, xs = (np.flatnonzero(ramp) for ramp in ramps)
        if not len(ys) or not len(xs):
            continue
        rows, columns = slice(ys[0], ys[-1] + 1), slice(xs[0], xs[-1] + 1)
        field = _lines(tile.field, places[0][rows] - tile.origin[0])
        field = _lines(field.swapaxes(0, 1), places[1][columns] - tile.origin[1]).swapaxes(0, 1)
        weight = ramps[0][rows, None] * ramps[1][columns]
        found[rows, columns] += weight[..., None] * field
    return found


def compose(maps: NDArray[np.float32], field: NDArray[np.float32]) -> NDArray[np.float32]:
    """The inverse map (H, W, 2) of the refined section: `maps` read at p + field[p]; NaN outside.

    One pass over the source then renders both.
    """
    grid = np.mgrid[: maps.shape[0], : maps.shape[1]].astype(np.float32)
    where = grid + np.moveaxis(field, -1, 0)
    read = [
        scipy.ndimage.map_coordinates(maps[..., axis], where, order=1, cval=np.nan)
        for axis in (0, 1)
    ]
    return np.asarray(np.stack(read, -1), np.float32)


def _ramp(at: NDArray[np.int64], begin: int, end: int, edge: int) -> NDArray[np.float32]:
    """Weight of a span at pixels: 1 within, 0 beyond; the canvas's own edges do not fade."""
    middle = at + 0.5
    up = (middle - (begin - RAMP_PX)) / (2 * RAMP_PX) if begin > 0 else np.ones(len(at))
    down = ((end + RAMP_PX) - middle) / (2 * RAMP_PX) if end < edge else np.ones(len(at))
    return (np.clip(up, 0, 1) * np.clip(down, 0, 1)).astype(np.float32)


def _lines(field: NDArray[np.float32], at: NDArray[np.int64]) -> NDArray[np.float32]:
    """The field at pixels along its first axis, linearly between its own places."""
    place = np.clip((at + 0.5) / _STEP_PX - 0.5, 0, len(field) - 1)
    low = np.minimum(place.astype(np.int64), max(0, len(field) - 2))
    part = (place - low).astype(np.float32)[:, None, None]
    high = np.minimum(low + 1, len(field) - 1)
    return np.asarray(field[low] * (1 - part) + field[high] * part, np.float32)
