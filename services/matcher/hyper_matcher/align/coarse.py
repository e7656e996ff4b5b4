"""Coarse fit of a pair: any rotation, any shift up to half a field, then an affine map.

First the band-passed, shrunken source is turned through small angles, and through all where those
lead nowhere, and correlated with the target by FFT; the score of a shift is the correlation over
the square root of the overlap, which is what noise would give, so that small overlaps neither win
nor lose by themselves. Then blocks are matched round the rigid guess, from wide to narrow, and an
affine map is fitted to those that agree.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
import scipy.ndimage
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Affine, Points, lattice
from hyper_matcher.align.sampling import contrasts, downsample, sample_patches
from hyper_matcher.ncc import SearchImage, correlate_windows
from hyper_matcher.peaks import find_peaks

_SURE = 0.6  # of the blocks: where so many agree, no other angle is looked at
_BARE = 0.15  # a block's standard deviation below which it shows no tissue; tissue has about 0.6
_TRIALS = 200  # pairs of blocks of which each proposes a rigid map
# Long narrow sections are shrunk less: to so much across, for blocks and the search over angles,
_SHORT_BLOCKS_PX, _SHORT_SEARCH_PX, _LONG_SEARCH_PX = 128, 32, 512  # and at most so much along
_FEWEST_BLOCKS = 0.35  # of all: where the overlap holds fewer, the rest counts as disagreeing


@dataclass(frozen=True, slots=True)
class CoarseOptions:
    """How to find the first guess.

    Args:
        search_edge_px: edge to which sections are shrunk for the search over angles.
        angle_step_deg: of that search.
        likely_angle_deg: rotations looked for first.
        max_angle_deg: largest rotation looked for; 180: all.
        min_overlap: smallest share of a section that the two have in common.
        block_px: edge of the blocks of the affine fit, at its scale.
        block_edge_px: edge to which sections are shrunk for the affine fit.
        tolerance_px: how far a block may lie from the affine map, at that scale.
    """

    search_edge_px: int = 128
    angle_step_deg: float = 3.0
    likely_angle_deg: float = 12.0
    max_angle_deg: float = 180.0
    min_overlap: float = 0.2
    block_px: int = 56
    block_edge_px: int = 384
    tolerance_px: float = 4.0


class CoarseImage:
    """A section's shrunken features, made once for all its pairs.

    Args:
        section: (H, W), grey values or features.
        options: scales.
    """

    def __init__(self, section: NDArray[Any], options: CoarseOptions | None = None) -> None:
        self.options = options or CoarseOptions()
        self.shape: tuple[int, int] = (section.shape[0], section.shape[1])
        short, edge = min(self.shape), max(self.shape)
        room = short // _SHORT_BLOCKS_PX, max(short // _SHORT_SEARCH_PX, edge // _LONG_SEARCH_PX)
        self.block_factor = max(1, min(round(edge / self.options.block_edge_px), room[0]))
        self.search_factor = max(
            self.block_factor, min(math.ceil(edge / self.options.search_edge_px), room[1])
        )
        self.blocks = contrast_features(downsample(section, self.block_factor), 1.2, 6.0)
        self.search = contrast_features(downsample(section, self.search_factor), 0.8, 4.0)
        self.block_search = SearchImage(self.blocks)


def coarse_fit(
    source: CoarseImage, target: CoarseImage, guess: Affine | None = None
) -> tuple[Affine, float]:
    """The affine map source -> target in px of the sections, and the share of blocks behind it.

    Args:
        source: whose blocks are matched.
        target: where they are looked for.
        guess: looked at first, and alone if enough blocks agree.
    """
    options = source.options
    if not (source.search.any() and target.search.any()):
        return Affine.identity(), 0.0
    guessed = (Affine.identity(), 0.0)
    if guess is not None:
        guessed = refine_affine(source, target, guess)
        if guessed[1] >= _SURE:
            return guessed
    likely = min(options.likely_angle_deg, options.max_angle_deg)
    correlator = _Correlator(target.search, options.min_overlap)
    found = refine_affine(source, target, _search_rotation(source, correlator, likely))
    found = max(guessed, found, key=lambda fit: fit[1])
    if found[1] >= _SURE or likely == options.max_angle_deg:
        return found
    rigid = _search_rotation(source, correlator, options.max_angle_deg)
    return max(found, refine_affine(source, target, rigid), key=lambda fit: fit[1])


def refine_affine(source: CoarseImage, target: CoarseImage, guess: Affine) -> tuple[Affine, float]:
    """Block matching round a guess, from wide to narrow; (map, share of blocks that agree).

    The last search is wider than its tolerance again, so that chance alone finds little agreement.
    """
    options = source.options
    factor = source.block_factor
    current, share = _to_factor(guess, factor), 0.0
    best = current
    for radius in (max(16, round(1.6 * source.search_factor / factor) + 12), 10, 16):
        points = lattice(source.blocks.shape, options.block_px * 0.6, options.block_px * 0.5)
        found, displacement, p1, tried = _match_blocks(source, target, current, points, radius)
        if len(found) < 6:
            return from_factor(best, factor), 0.0
        fitted, inliers = _robust_affine(found, found + displacement, p1, options.tolerance_px)
        share = float(inliers.sum()) / max(tried, _FEWEST_BLOCKS * len(points))
        if inliers.sum() < 6:
            return from_factor(best, factor), 0.0
        current = best = fitted
    return from_factor(best, factor), share


def contrast_features(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    """Band-passed (sigmas `low` to `high`, px), local contrast made equal, bounded: (H, W)."""
    narrow = scipy.ndimage.gaussian_filter(image, low, mode="nearest")
    band = narrow - scipy.ndimage.gaussian_filter(image, high, mode="nearest")
    energy = scipy.ndimage.gaussian_filter(band * band, 2 * high, mode="nearest")
    floor = 0.05 * float(np.sqrt(energy.mean())) + 1e-6
    return np.asarray(np.tanh(band / (np.sqrt(np.maximum(energy, 0)) + floor)), np.float32)


def _search_rotation(source: CoarseImage, correlator: _Correlator, limit_deg: float) -> Affine:
    """The rigid map, of rotations up to a limit, under which the sections resemble most."""
    step = math.radians(source.options.angle_step_deg)
    count = int(math.radians(limit_deg) / step + 1e-9)
    angles = step * np.arange(-count, count + 1)
    if count * step >= math.pi - 1e-6:
        angles = angles[1:]
    best = _best_angle(source, correlator, angles.tolist())
    nearby = [best[2] + step * part for part in (-0.5, -0.25, 0.25, 0.5)]
    _, shift, angle = max(best, _best_angle(source, correlator, nearby), key=lambda fit: fit[0])
    center = (np.array(source.search.shape) - 1) / 2
    return from_factor(Affine.rigid(angle, center, shift), source.search_factor)


def _best_angle(
    source: CoarseImage, correlator: _Correlator, angles: Sequence[float]
) -> tuple[float, Points, float]:
    """Score, shift and angle of the best of some angles."""
    scored = [(*correlator.best_shift(source.search, angle), angle) for angle in angles]
    return max(scored, key=lambda fit: fit[0])


class _Correlator:
    """Correlates turned sources with one target; scores are in standard deviations of noise."""

    def __init__(self, target: NDArray[np.float32], min_overlap: float) -> None:
        self.shape: tuple[int, int] = (target.shape[0], target.shape[1])
        self.size = _doubled(self.shape)
        self.spectrum = scipy.fft.rfft2(target, self.size)
        self.min_overlap = min_overlap

    def best_shift(self, source: NDArray[np.float32], angle: float) -> tuple[float, Points]:
        turn = _turn_back(source.shape, angle)
        turned = scipy.ndimage.affine_transform(source, turn.matrix, turn.offset, order=1)
        spectrum = self.spectrum * np.conj(scipy.fft.rfft2(turned, self.size))
        score = scipy.fft.irfft2(spectrum, self.size)
        score *= _overlap_weights(self.shape, source.shape, angle, self.min_overlap)
        y, x = np.unravel_index(int(np.argmax(score)), score.shape)
        shift = np.array([y, x], np.float64)
        shift[shift > np.array(self.size) / 2] -= np.array(self.size)[
            shift > np.array(self.size) / 2
        ]
        return float(score[y, x]), shift


@functools.lru_cache(maxsize=160)  # the angles of one search; 0.25 MB each
def _overlap_weights(
    target: tuple[int, int], source: tuple[int, int], angle: float, min_overlap: float
) -> NDArray[np.float32]:
    """1 / sqrt(pixels that a turned source and the target share), by shift; 0 where too few."""
    size = _doubled(target)
    turn = _turn_back(source, angle)
    frame = np.ones(source, np.float32)
    inside = scipy.ndimage.affine_transform(frame, turn.matrix, turn.offset, order=0)
    whole = scipy.fft.rfft2(np.ones(target, np.float32), size)
    overlap = scipy.fft.irfft2(whole * np.conj(scipy.fft.rfft2(inside, size)), size)
    enough = overlap >= min_overlap * frame.size
    return np.where(enough, 1 / np.sqrt(np.maximum(overlap, 1.0)), 0.0).astype(np.float32)


def _turn_back(shape: tuple[int, ...], angle: float) -> Affine:
    return Affine.rigid(angle, (np.array(shape) - 1) / 2, np.zeros(2)).inverse()


def _doubled(shape: tuple[int, int]) -> tuple[int, int]:
    """A size in which a section and a turned one correlate without wrapping round."""
    edge = scipy.fft.next_fast_len(2 * max(shape), real=True)
    return edge, edge


def _match_blocks(
    source: CoarseImage, target: CoarseImage, guess: Affine, points: Points, radius: int
) -> tuple[Points, Points, NDArray[np.float64], int]:
    """Blocks with a peak: places, displacements, scores; and how many were tried."""
    size = source.options.block_px
    expected = guess(points)
    corner = np.round(expected - (size - 1) / 2).astype(np.int64) - radius
    limit = np.array(target.blocks.shape) - (size + 2 * radius)
    corner = np.clip(corner, np.maximum(-radius, 0), np.maximum(limit, 0))
    if (limit < 0).any():
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 0
    centre = np.asarray(corner + radius + (size - 1) / 2, np.float64)
    back = guess.inverse()
    centres = back(centre)  # what the middle of each window shows, if the guess is right
    inside = (np.abs(centre - expected).max(axis=1) <= 0.5 * size) & (
        (centres >= 0.2 * size) & (centres <= np.array(source.blocks.shape) - 1 - 0.2 * size)
    ).all(axis=1)
    centres, corner, centre = centres[inside], corner[inside], centre[inside]
    if len(centres) == 0:
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 0
    matrices = np.broadcast_to(back.matrix, (len(centres), 2, 2)).copy()
    templates = sample_patches(source.blocks, centres, matrices, size)
    shown = contrasts(templates) > _BARE
    if not shown.any():
        return np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), 0
    centres, corner, centre, templates = (v[shown] for v in (centres, corner, centre, templates))
    peaks = find_peaks(correlate_windows(templates, target.block_search, corner, radius), 4)
    keep = (peaks.p1 > 0.1) & (peaks.p1 - peaks.p2 > 0.02)
    found = centre + peaks.offset - radius
    return centres[keep], (found - centres)[keep], peaks.p1[keep], len(centres)


def _robust_affine(
    source: Points, target: Points, weights: NDArray[np.float64], tolerance_px: float
) -> tuple[Affine, NDArray[np.bool_]]:
    """Affine map with most support among pairs (fixed seed), then reweighted least squares."""
    best = _best_rigid(source, target, weights, 3 * tolerance_px)
    for scale in (2.0, 1.5, 1.0, 1.0):
        error = np.linalg.norm(best(source) - target, axis=1)
        near = error < scale * tolerance_px
        if near.sum() < 6:
            break
        robust = weights * near / (1 + (error / tolerance_px) ** 2)
        best = Affine.fit(source, target, robust)
    return best, np.linalg.norm(best(source) - target, axis=1) < tolerance_px


def _best_rigid(
    source: Points, target: Points, weights: NDArray[np.float64], reach_px: float
) -> Affine:
    """The rigid map through two pairs of points that most others agree with.

    Points are taken as complex numbers y + ix: a rotation is then a factor of length 1.
    """
    rng = np.random.default_rng(0)
    s, t = source @ np.array([1, 1j]), target @ np.array([1, 1j])
    first = rng.integers(0, len(s), _TRIALS)
    second = (first + rng.integers(1, len(s), _TRIALS)) % len(s)
    apart = s[second] - s[first]
    ratio = (t[second] - t[first]) / np.where(apart == 0, 1, apart)
    wide = (np.abs(apart) >= 0.2 * np.linalg.norm(np.ptp(source, axis=0))) & (np.abs(ratio) > 0)
    if not wide.any():
        return Affine.fit_rigid(source, target, weights)
    turn = ratio[wide] / np.abs(ratio[wide])
    shift = 0.5 * (t[first] + t[second])[wide] - turn * 0.5 * (s[first] + s[second])[wide]
    error = np.abs(turn[:, None] * s + shift[:, None] - t)
    support = np.maximum(0, 1 - (error / reach_px) ** 2) @ weights
    k = int(np.argmax(support))
    matrix = np.array([[turn[k].real, -turn[k].imag], [turn[k].imag, turn[k].real]])
    return Affine(matrix, np.array([shift[k].real, shift[k].imag]))


def from_factor(map_: Affine, factor: int) -> Affine:
    """A map between sections shrunk by `factor` (block means) as one between full sections."""
    shift = (factor - 1) / 2  # the middle of block 0
    return Affine(
        map_.matrix, map_.offset * factor + shift - map_.matrix @ np.array([shift, shift])
    )


def _to_factor(map_: Affine, factor: int) -> Affine:
    """The way back."""
    shift = (factor - 1) / 2
    return Affine(
        map_.matrix, (map_.offset - shift + map_.matrix @ np.array([shift, shift])) / factor
    )
