"""Matching of a pair of sections on a triangular lattice of points.

A point's template is cut from the source through the local map found so far, so that rotation and
scale do not cost score. Two passes: wide and sparse round the coarse fit, at half the resolution;
then narrow and dense round a smooth field fitted to the first. Either pass filters its matches.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hyper_matcher.align.coarse import CoarseImage, CoarseOptions, coarse_fit
from hyper_matcher.align.filters import PeakFilter, consensus, judge_peaks
from hyper_matcher.align.geometry import (
    NOTHING_TO_MATCH,
    Affine,
    PairMatches,
    Points,
    Rejection,
    lattice,
)
from hyper_matcher.align.sampling import contrasts, downsample, sample_patches
from hyper_matcher.ncc import SearchImage, correlate_windows, integral
from hyper_matcher.peaks import find_peaks

_BARE_BOX_PX = 7  # a constant box of this edge, at the first pass's scale, is no tissue
_MOST_BARE = 0.5  # share of a template or window: what is not found there is no wrong match
_BATCH = 64  # templates correlated at once; bounds memory
_MIN_MATCHES = 100
_MAX_REJECTED = 0.35
_MIN_COARSE_SHARE = 0.22
_GOOD, _POOR = 0.8, 0.4  # of the first pass: share accepted, times how distinct they are
_DISTINCT = 0.25  # P1 - P2 that leaves no doubt


@dataclass(frozen=True, slots=True)
class MatchOptions:
    """How to match a pair; lengths in px of the array.

    Args:
        template_px: edge of a template of the first pass.
        fine_template_px: of the dense pass; 0: chosen, see `fine_scale`.
        search_px: radius of the first search; 0: chosen from the section's size.
        spacing_px: distance of the points of the dense pass.
        fine_search_px: radius of the dense pass.
        first_factor: the first pass works on sections shrunk by this.
        tolerance_px: distance from the neighbours' affine map that is still believed.
        peaks: thresholds of the dense pass.
        coarse: how to find the first guess.
    """

    template_px: int = 160
    fine_template_px: int = 0
    search_px: int = 0
    spacing_px: float = 48.0
    fine_search_px: int = 10
    first_factor: int = 2
    tolerance_px: float = 4.0
    peaks: PeakFilter = field(default_factory=PeakFilter)
    coarse: CoarseOptions = field(default_factory=CoarseOptions)

    def __post_init__(self) -> None:
        if self.template_px < 16:
            raise ValueError(f"template_px must be at least 16, not {self.template_px}")
        if self.spacing_px < 4:
            raise ValueError(f"spacing_px must be at least 4, not {self.spacing_px}")
        if self.search_px < 0 or self.fine_search_px < 3:
            raise ValueError("search radii must not be negative, nor the fine one below 3")


class PreparedSection:
    """A section with all that its matches share: integral images, shrunken copies.

    Args:
        section: (H, W), grey values or features.
        options: scales.
    """

    def __init__(self, section: NDArray[Any], options: MatchOptions) -> None:
        if section.ndim != 2:
            raise ValueError(f"a section has two axes, not shape {section.shape}")
        if min(section.shape) < options.template_px:
            raise ValueError(
                f"the template ({options.template_px} px) is larger than the section "
                f"({section.shape[0]} x {section.shape[1]} px)"
            )
        self.options = options
        self.full = SearchImage(section)
        self.shape = self.full.shape
        factor = options.first_factor
        self.first = self.full if factor == 1 else SearchImage(downsample(section, factor))
        self.coarse = CoarseImage(section, options.coarse)
        small = self.first.values
        widest = scipy.ndimage.maximum_filter(small, _BARE_BOX_PX)
        bare = widest == scipy.ndimage.minimum_filter(small, _BARE_BOX_PX)
        self._bare = integral(scipy.ndimage.maximum_filter(bare, _BARE_BOX_PX).astype(np.float64))

    def bare_share(self, points: Points, size: int) -> NDArray[np.float64]:
        """Share of the boxes (edge `size` px) round points (n, 2) that shows nothing at all."""
        factor = self.options.first_factor
        edges = np.array(self.first.shape)
        low = np.clip(np.round((points - size / 2) / factor), 0, edges - 1).astype(np.int64)
        high = np.clip(low + max(1, size // factor), 1, edges)
        (y0, x0), (y1, x1) = low.T, high.T
        t = self._bare
        total = t[y1, x1] - t[y0, x1] - t[y1, x0] + t[y0, x0]
        return np.asarray(total / ((y1 - y0) * (x1 - x0)))


@dataclass(frozen=True, slots=True)
class Guess:
    """Where n points are expected, and the local map there.

    Args:
        source: (n, 2), px.
        target: (n, 2), px.
        matrices: (n, 2, 2), source -> target near each point.
    """

    source: Points
    target: Points
    matrices: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Found:
    """Raw matches of n points: source centres really used, where they were found, and why not."""

    source: Points
    target: Points
    p1: NDArray[np.float64]
    p2: NDArray[np.float64]
    rejection: NDArray[np.uint8]


def match_pair(
    source: PreparedSection,
    target: PreparedSection,
    source_z: int,
    target_z: int,
    guess: Affine | None = None,
) -> PairMatches:
    """All matches of a pair, rejected ones included, with the pair's flag; `guess`: see the fit."""
    start = time.perf_counter()
    options = source.options
    affine, share = coarse_fit(source.coarse, target.coarse, guess)
    known, quality = _first_pass(source, target, affine, options.template_px)
    if quality < _POOR and 1.4 * options.template_px <= 0.4 * min(source.shape):
        known, quality = _first_pass(source, target, affine, round(1.4 * options.template_px))
        quality = min(quality, _POOR)
    size = options.fine_template_px or max(16, round(options.template_px * fine_scale(quality)))
    margin = 0.3 * size
    points = lattice(source.shape, options.spacing_px, margin)
    found = search(
        source.full, target.full, field_guess(known, affine, points),
        size, options.fine_search_px, options.peaks,
    )  # fmt: skip
    displacement = found.target - found.source
    beside = found.target - affine(found.source)  # a large turn is no disagreement of neighbours
    reasons = consensus(found.source, beside, found.rejection, options.tolerance_px)
    failed = (reasons != 0) & (reasons != Rejection.OUTSIDE)
    reasons[failed & (source.bare_share(found.source, size) > _MOST_BARE)] = (
        Rejection.BLANK_TEMPLATE
    )
    failed &= reasons != Rejection.BLANK_TEMPLATE
    reasons[failed & (target.bare_share(found.target, size) > _MOST_BARE)] = Rejection.BLANK_SEARCH
    if share < _MIN_COARSE_SHARE:
        reasons[reasons == 0] = Rejection.CONSENSUS  # what it started from was no fit
    flag = _flag(share, reasons)
    return PairMatches(
        source_z, target_z, affine, share, found.source, displacement, found.p1, found.p2, reasons,
        time.perf_counter() - start, flag,
    )  # fmt: skip


def fine_scale(quality: float) -> float:
    """Edge of the dense pass's templates over `template_px`.

    Small templates follow fine deformation, large ones are told apart more safely: how well
    the first pass went decides.
    """
    if quality >= _GOOD:
        return 0.65
    return 1.0 if quality > _POOR else 1.4


def _first_pass(
    source: PreparedSection, target: PreparedSection, affine: Affine, template_px: int
) -> tuple[tuple[Points, Points], float]:
    """Accepted source and target points of the wide, sparse search, and how good it was, 0..1."""
    options, factor = source.options, source.options.first_factor
    size = max(16, template_px // factor)
    radius = options.search_px or max(16, round(0.03 * max(source.shape)))
    points = lattice(source.shape, 0.6 * template_px, 0.45 * template_px)
    shift = (factor - 1) / 2
    matrices = np.broadcast_to(affine.matrix, (len(points), 2, 2))
    guess = Guess((points - shift) / factor, (affine(points) - shift) / factor, matrices)
    found = search(source.first, target.first, guess, size, -(-radius // factor), options.peaks)
    beside = found.target - (affine(found.source * factor + shift) - shift) / factor
    reasons = consensus(found.source, beside, found.rejection, 1.5 * options.tolerance_px)
    kept = reasons == 0
    known = found.source[kept] * factor + shift, found.target[kept] * factor + shift
    if not kept.any():
        return known, 0.0
    share = float(kept.sum() / (~np.isin(reasons, NOTHING_TO_MATCH)).sum())
    distinctness = float(np.median(found.p1[kept] - found.p2[kept]))
    return known, share * min(1.0, distinctness / _DISTINCT)


def field_guess(known: tuple[Points, Points], affine: Affine, points: Points) -> Guess:
    """Expected targets of points from known matches: a distance-weighted local affine map.

    Where no match is near, the pair's affine map takes over.
    """
    source, target = known
    matrices = np.broadcast_to(affine.matrix, (len(points), 2, 2)).copy()
    expected = affine(points)
    if len(source) < 6:
        return Guess(points, expected, matrices)
    count = min(10, len(source))
    distance, index = cKDTree(source).query(points, k=count)
    reach = max(float(np.median(distance[:, -1])), 1e-6)
    weight = np.exp(-2 * (distance / reach) ** 2)
    offset = (source[index] - points[:, None]) / reach
    design = np.concatenate([np.ones((*index.shape, 1)), offset], -1)
    values = target[index] - affine(source[index].reshape(-1, 2)).reshape(*index.shape, 2)
    ridge = np.diag([0.05, 0.5, 0.5])  # few or far matches: the affine map
    normal = np.einsum("nk,nki,nkj->nij", weight, design, design) + ridge
    right = np.einsum("nk,nki,nkd->nid", weight, design, values)
    fit = np.linalg.solve(normal, right)
    return Guess(points, expected + fit[:, 0], matrices + np.swapaxes(fit[:, 1:], 1, 2) / reach)


def search(
    source: SearchImage,
    target: SearchImage,
    guess: Guess,
    size: int,
    radius: int,
    options: PeakFilter,
) -> Found:
    """Look for each point's template within `radius` px of where it is expected."""
    n = len(guess.source)
    size = min(size, min(target.shape) - 2 * radius, min(source.shape))
    if size < 8:
        raise ValueError(f"no room for a search of {radius} px in a section of {target.shape}")
    half = (size - 1) / 2
    corner = np.round(guess.target - half).astype(np.int64) - radius
    limit = np.array(target.shape) - (size + 2 * radius)
    clipped = np.clip(corner, 0, limit)
    moved = np.abs(clipped - corner).max(axis=1)
    centre = clipped + radius + half
    back = np.linalg.inv(guess.matrices)
    at = guess.source + np.einsum("nij,nj->ni", back, centre - guess.target)
    edge = 0.25 * size
    inside = ((at >= edge) & (at <= np.array(source.shape) - 1 - edge)).all(axis=1)
    usable = inside & (moved <= half)
    rejection = np.where(usable, 0, int(Rejection.OUTSIDE)).astype(np.uint8)
    found, p1, p2 = np.array(centre, np.float64), np.zeros(n), np.zeros(n)
    todo = np.flatnonzero(usable)
    for first in range(0, len(todo), _BATCH):
        k = todo[first : first + _BATCH]
        templates = sample_patches(source.values, at[k], back[k], size)
        blank = contrasts(templates) < 1e-3 * max(source.scale, 1e-30)
        peaks = find_peaks(
            correlate_windows(templates, target, clipped[k], radius), max(3, min(8, radius // 2))
        )
        found[k] = centre[k] + peaks.offset - radius
        p1[k], p2[k] = peaks.p1, peaks.p2
        reasons = judge_peaks(peaks, radius, options)
        reasons[blank] = Rejection.BLANK_TEMPLATE
        rejection[k] = reasons
    return Found(np.asarray(at, np.float64), found, p1, p2, rejection)


def _flag(share: float, reasons: NDArray[np.uint8]) -> str:
    accepted = int((reasons == 0).sum())
    tried = int((~np.isin(reasons, NOTHING_TO_MATCH)).sum())
    needed = min(_MIN_MATCHES, max(6, tried // 4))
    if share < _MIN_COARSE_SHARE:
        return "no coarse fit"
    if accepted < needed:
        return f"only {accepted} matches"
    if accepted < (1 - _MAX_REJECTED) * tried:
        return f"{1 - accepted / tried:.0%} of the matches rejected"
    return ""
