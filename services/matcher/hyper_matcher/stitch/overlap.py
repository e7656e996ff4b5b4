"""Matching of the overlap of two tiles: the shift of the whole first, then blocks of it.

The whole overlap is correlated under masks, shrunk, in a search that widens until a peak stands
out. Blocks follow in two passes: wide, then dense round the affine map of the first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.coarse import contrast_features
from hyper_matcher.align.filters import PeakFilter, consensus
from hyper_matcher.align.geometry import Affine, Points, Rejection, lattice
from hyper_matcher.align.match import Found, Guess, search
from hyper_matcher.align.sampling import downsample
from hyper_matcher.ncc import SearchImage, masked_cross_correlation
from hyper_matcher.peaks import find_peaks
from hyper_matcher.stitch.values import Seam, StitchOptions

_COARSE_EDGE_PX = 384  # longest edge of a shrunken overlap
_COARSE_SCORE = 0.25  # a peak of the whole overlap below this is no fit
_COARSE_RATIO = 0.8  # second peak over first above which the search is widened
_SIZES_PX = (24, 96)  # of blocks
_FINE_RADIUS_PX = 6
_FEWEST = 4  # accepted matches of a seam
_PEAKS = PeakFilter(
    min_peak=0.3, min_distinctness=0.05, max_ratio=0.95, min_dynamic_range=0.3, max_width=0.8,
    edge=0.9, max_kurtosis=float("inf"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Box:
    """Rows y0 to y1 and columns x0 to x1 of a tile, ends excluded."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def corner(self) -> NDArray[np.float64]:
        return np.array([self.y0, self.x0], np.float64)

    def grown(self, by: int, shape: tuple[int, ...]) -> _Box:
        return _Box(
            max(0, self.y0 - by), max(0, self.x0 - by),
            min(shape[0], self.y1 + by), min(shape[1], self.x1 + by),
        )  # fmt: skip

    def cut(self, image: NDArray[Any]) -> NDArray[Any]:
        return image[self.y0 : self.y1, self.x0 : self.x1]


def match_overlap(
    first: NDArray[Any],
    second: NDArray[Any],
    offset: Points,
    options: StitchOptions,
    numbers: tuple[int, int] = (0, 1),
) -> Seam:
    """Match two tiles (H, W) of one shape.

    Args:
        first: tile.
        second: tile.
        offset: (2,), the second's position minus the first's, as known, px.
        options: how.
        numbers: of the tiles.
    """
    edge = max(first.shape)
    radius = options.search_px or max(32, round(0.1 * edge))
    widest = max(radius, round(0.5 * edge)) if not options.search_px else radius
    while True:
        shift, score, ratio = _whole_shift(first, second, offset, radius, options)
        if (score >= _COARSE_SCORE and ratio <= _COARSE_RATIO) or radius >= widest:
            break
        radius = min(2 * radius, widest)
    if score < _COARSE_SCORE:
        return Seam.nothing(*numbers, f"no fit within {radius} px (correlation {score:.2f})")
    factor = _factor(first.shape, offset, radius)
    return _match_blocks(first, second, offset, shift, factor, options, numbers)


def _overlap_box(shape: tuple[int, ...], offset: NDArray[Any]) -> _Box:
    """In the first tile."""
    y, x = (round(float(v)) for v in offset)
    return _Box(max(0, y), max(0, x), min(shape[0], shape[0] + y), min(shape[1], shape[1] + x))


def _factor(shape: tuple[int, ...], offset: Points, radius: int) -> int:
    box = _overlap_box(shape, offset)
    return max(1, math.ceil((max(*box.shape, 1) + 2 * radius) / _COARSE_EDGE_PX))


def _whole_shift(
    first: NDArray[Any], second: NDArray[Any], offset: Points, radius: int, options: StitchOptions
) -> tuple[NDArray[np.float64], float, float]:
    """(shift off `offset`, correlation, second peak over first) of the overlap as a whole."""
    shape, factor = first.shape, _factor(first.shape, offset, radius)
    whole = np.round(offset).astype(int)
    template_box = _overlap_box(shape, -whole).grown(radius, shape)
    if min(template_box.shape) < 8 * factor:
        return np.zeros(2), 0.0, 1.0
    sigma = max(0.8, options.sigma_low_px / factor), max(3.0, options.sigma_high_px / factor)
    template = contrast_features(downsample(template_box.cut(second), factor), *sigma)
    # The window of the first tile in which the template may lie, invalid where there is no tile.
    reach = -(-radius // factor)
    size = np.array(template.shape) + 2 * reach
    corner = np.array([template_box.y0, template_box.x0]) + whole - reach * factor
    wanted = _Box(int(corner[0]), int(corner[1]), *(int(v) for v in corner + size * factor))
    inner = _Box(
        max(0, wanted.y0), max(0, wanted.x0), min(shape[0], wanted.y1), min(shape[1], wanted.x1)
    )
    at = np.array([inner.y0 - wanted.y0, inner.x0 - wanted.x0])
    lost = -at % factor  # so that the blocks of both sides fall on one grid
    cut = inner.cut(first)[lost[0] :, lost[1] :]
    at = (at + lost) // factor
    seen = contrast_features(downsample(cut, factor), *sigma)
    window, valid = np.zeros(size, np.float32), np.zeros(size, bool)
    window[at[0] : at[0] + seen.shape[0], at[1] : at[1] + seen.shape[1]] = seen
    valid[at[0] : at[0] + seen.shape[0], at[1] : at[1] + seen.shape[1]] = True
    nominal = np.prod(np.maximum(1, _overlap_box(shape, offset).shape)) / factor**2
    least = min(0.9, 0.2 * nominal / template.size)
    scores = masked_cross_correlation(template, window, np.ones(template.shape, bool), valid, least)
    shared = _shared(valid, template.shape)
    weighted = scores * np.sqrt(np.minimum(1.0, shared / nominal))
    peaks = find_peaks(weighted[None].astype(np.float32), max(3, round(4 / factor) + 2))
    found = peaks.offset[0]
    y, x = np.clip(np.round(found).astype(int), 0, np.array(scores.shape) - 1)
    ratio = float(max(peaks.p2[0], 0.0) / max(peaks.p1[0], 1e-9))
    if min(y, x) == 0 or y == scores.shape[0] - 1 or x == scores.shape[1] - 1:
        ratio = 1.0  # the top may lie outside
    return (found - reach) * factor, float(scores[y, x]), ratio


def _shared(valid: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Valid pixels under a window of `shape` at every place."""
    table = np.zeros((valid.shape[0] + 1, valid.shape[1] + 1))
    np.cumsum(np.cumsum(valid, axis=0), axis=1, out=table[1:, 1:])
    h, w = shape
    return np.asarray(table[h:, w:] - table[:-h, w:] - table[h:, :-w] + table[:-h, :-w])


def _match_blocks(
    first: NDArray[Any],
    second: NDArray[Any],
    offset: Points,
    shift: NDArray[np.float64],
    factor: int,
    options: StitchOptions,
    numbers: tuple[int, int],
) -> Seam:
    known = np.asarray(offset, np.float64) + shift
    shape = first.shape
    box = _overlap_box(shape, known)
    thin = min(box.shape)
    if thin < options.min_overlap_px // 2:
        return Seam.nothing(*numbers, f"the overlap is only {max(thin, 0)} px wide")
    size = int(np.clip(0.5 * thin, *_SIZES_PX)) // 2 * 2
    wide = max(10, 2 * factor + 6, round(0.02 * max(shape)))
    margin = wide + size // 2
    cuts = box.grown(margin, shape), _overlap_box(shape, -known).grown(margin, shape)
    sigma = options.sigma_low_px, options.sigma_high_px
    images = [
        SearchImage(contrast_features(cut.cut(tile).astype(np.float32), *sigma))
        for cut, tile in zip(cuts, (first, second), strict=True)
    ]
    wide = min(wide, (min(images[1].shape) - 8) // 2)
    origin = box.corner - cuts[0].corner
    # source (first tile's cut) -> target (second tile's cut)
    guess = Affine(np.eye(2), cuts[0].corner - known - cuts[1].corner)

    def look(map_: Affine, spacing: float, radius: int, tolerance: float) -> tuple[Found, Any]:
        points = lattice(box.shape, spacing, min(0.5 * size, (thin - 1) / 2)) + origin
        matrices = np.broadcast_to(map_.matrix, (len(points), 2, 2))
        found = search(
            images[0], images[1], Guess(points, map_(points), matrices), size, radius, _PEAKS
        )
        beside = found.target - map_(found.source)
        return found, consensus(found.source, beside, found.rejection, tolerance)

    area = float(np.prod(box.shape))
    found, reasons = look(
        guess, max(0.6 * size, math.sqrt(area / 80)), wide, 4 * options.tolerance_px
    )
    kept = reasons == 0
    if kept.sum() >= 2 * _FEWEST:
        guess = Affine.fit(found.source[kept], found.target[kept])
    elif kept.any():
        moved = np.median(found.target[kept] - guess(found.source[kept]), axis=0)
        guess = Affine(guess.matrix, guess.offset + moved)
    found, reasons = look(
        guess, max(0.4 * size, math.sqrt(area / 250)), _FINE_RADIUS_PX, options.tolerance_px
    )
    accepted = int((reasons == 0).sum())
    flag = "" if accepted >= _FEWEST else f"only {accepted} matches"
    if flag:
        reasons[reasons == 0] = Rejection.CONSENSUS
    points = found.source + cuts[0].corner, found.target + cuts[1].corner
    grey = np.stack(
        [_means(tile, at, size) for tile, at in zip((first, second), points, strict=True)], -1
    )
    return Seam(*numbers, *points, found.p1, reasons, grey, np.asarray(shift, np.float64), flag)


def _means(tile: NDArray[Any], points: Points, size: int) -> NDArray[np.float64]:
    """Mean grey value of the box of edge `size` round each point, as far as it is in the tile."""
    half = size // 2
    low = np.clip(np.round(points).astype(int) - half, 0, np.array(tile.shape) - 1)
    return np.array([float(tile[y : y + size, x : x + size].mean()) for y, x in low])
