"""Tiles in memory to a montage: the functions that the tasks run, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper.tile_positions import overlapping
from hyper_matcher.align.geometry import Points
from hyper_matcher.align.render import Canvas
from hyper_matcher.stitch.overlap import match_overlap
from hyper_matcher.stitch.quality import seam_residuals
from hyper_matcher.stitch.render import montage_canvas, render_montage
from hyper_matcher.stitch.solve import Montage, solve
from hyper_matcher.stitch.summary import Summary, stitch_result
from hyper_matcher.stitch.values import Seam, StitchOptions, TileFacts


@dataclass(frozen=True, slots=True)
class Stitched:
    """A stitched section and how it came to be.

    Args:
        section: (height, width), 0 where no tile lies.
        canvas: the part of the common frame that it shows.
        montage: where the tiles lie.
        seams: all overlaps.
        result: the result object, see `stitch_result`.
    """

    section: NDArray[Any]
    canvas: Canvas
    montage: Montage
    seams: tuple[Seam, ...]
    result: dict[str, Any]


def stitch_tiles(
    tiles: Sequence[NDArray[Any]], positions: Points, options: StitchOptions | None = None
) -> Stitched:
    """Stitch the tiles of one section.

    Args:
        tiles: (H, W) each, of one shape and integer dtype.
        positions: (T, 2) of their first pixels (y, x), px, as the stage knew them.
        options: how.
    """
    options = options or StitchOptions()
    shape = (tiles[0].shape[0], tiles[0].shape[1])
    if any(tile.shape != shape or tile.dtype != tiles[0].dtype for tile in tiles):
        raise ValueError("tiles must have one shape and dtype")
    at = np.asarray(positions, np.float64)
    section = [0] * len(tiles)
    seams = [
        match_overlap(tiles[a], tiles[b], at[b] - at[a], options, (a, b))
        for a, b in overlapping(at, shape, section, options.min_overlap_px)
    ]
    facts = {number: TileFacts.of(tile) for number, tile in enumerate(tiles)}
    montage = solve(shape, at, section, seams, facts, options)
    canvas = montage_canvas(montage)
    rendered = render_montage(montage, range(len(tiles)), lambda k: tiles[k], canvas)
    residuals = {
        (s.first, s.second): seam_residuals(
            montage, s.first, s.second, (tiles[s.first], tiles[s.second])
        )
        for s in seams
        if not s.flag
    }  # fmt: skip
    result = stitch_result(Summary.of(montage, seams, residuals), montage.lens, shape)
    return Stitched(rendered, canvas, montage, tuple(seams), result)
