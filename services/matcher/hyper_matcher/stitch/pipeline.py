"""Tiles in memory to a montage: the functions that the tasks run, one after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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
    return Stitched(
        rendered, canvas, montage, tuple(seams), stitch_result(montage, seams, residuals)
    )


def stitch_result(
    montage: Montage,
    seams: Sequence[Seam],
    residuals: Mapping[tuple[int, int], tuple[NDArray[np.float64], int]],
) -> dict[str, Any]:
    """The result object of a stitching; None where nothing was measured.

    `seam_residual_*` are px over all fresh matches; `residual_share` the share of the tried ones
    that passed the peak filters; `stage_error_px` the median distance of tiles from their
    positions, `lens_px` the lens's largest displacement.
    """
    lengths = np.concatenate([np.zeros(0), *(values for values, _ in residuals.values())])
    tried = sum(number for _, number in residuals.values())
    rejected: Counter[str] = Counter()
    for seam in seams:
        rejected.update(seam.counts())

    def at(share: float) -> float | None:
        return round(float(np.percentile(lengths, share)), 3) if len(lengths) else None

    edge = np.linspace(-1, 1, 21)
    grid = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    grid = grid * (np.array(montage.shape) / max(montage.shape))
    moved = np.linalg.norm(montage.maps[:, 0], axis=1)
    return {
        "tiles": len(montage.positions),
        "seams": len(seams),
        "failed_seams": [
            {"first": s.first, "second": s.second, "why": s.flag} for s in seams if s.flag
        ],
        "matches": sum(int(s.accepted.sum()) for s in seams),
        "rejected": dict(sorted(rejected.items())),
        "seam_residual_p50": at(50),
        "seam_residual_p95": at(95),
        "seam_residual_p99": at(99),
        "residual_share": round(len(lengths) / tried, 4) if tried else None,
        "stage_error_px": round(float(np.median(moved)), 2),
        "lens_px": round(float(np.linalg.norm(montage.lens(grid), axis=1).max()), 2),
        "lens_degree": max((i + j for i, j in montage.lens.products), default=0),
        "flagged_tiles": {str(k): why for k, why in sorted(montage.flagged.items())},
    }
