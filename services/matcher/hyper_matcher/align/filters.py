"""Which matches to believe: thresholds on the correlogram's shape, and the neighbours' opinion.

Every rejection keeps its reason. Peak filters look at one match alone; the consensus filter fits
an affine map to a match's nearest accepted neighbours and rejects it if it lies too far off.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from hyper_matcher.align.geometry import Points, Rejection
from hyper_matcher.peaks import Peaks


@dataclass(frozen=True, slots=True)
class PeakFilter:
    """Thresholds on one correlogram.

    Args:
        min_peak: lowest first peak.
        min_distinctness: lowest P1 - P2.
        max_ratio: highest P2 / P1.
        min_dynamic_range: lowest spread of the scores.
        max_kurtosis: highest kurtosis; a lone spike, one pixel wide, is dust (a sharp match of
            band-passed features reaches 50).
        max_width: highest share of the surface above half of the peak.
        edge: share of the search radius beyond which a displacement is not trusted.
    """

    min_peak: float = 0.08
    min_distinctness: float = 0.05
    max_ratio: float = 0.95
    min_dynamic_range: float = 0.15
    max_kurtosis: float = 120.0
    max_width: float = 0.5
    edge: float = 0.8


def judge_peaks(peaks: Peaks, radius: int, options: PeakFilter) -> NDArray[np.uint8]:
    """A `Rejection` number for each correlogram of a search of `radius` px; 0 is accepted."""
    reasons = np.zeros(len(peaks.p1), np.uint8)
    off = np.abs(peaks.offset - radius).max(axis=1)
    ratio = np.maximum(peaks.p2, 0) / np.maximum(peaks.p1, 1e-9)
    for failed, reason in (
        (peaks.dynamic_range <= 0, Rejection.BLANK_SEARCH),
        (peaks.p1 < options.min_peak, Rejection.LOW_PEAK),
        (peaks.p1 - peaks.p2 < options.min_distinctness, Rejection.LOW_DISTINCTNESS),
        (ratio > options.max_ratio, Rejection.PEAK_RATIO),
        (peaks.dynamic_range < options.min_dynamic_range, Rejection.DYNAMIC_RANGE),
        (peaks.kurtosis > options.max_kurtosis, Rejection.KURTOSIS),
        (peaks.width > options.max_width, Rejection.WIDE_PEAK),
        (off > options.edge * radius, Rejection.EDGE_OF_SEARCH),
    ):
        reasons[(reasons == 0) & failed] = reason
    return reasons


def consensus(
    source: Points,
    displacement: Points,
    rejection: NDArray[np.uint8],
    tolerance_px: float,
    neighbours: int = 12,
    rounds: int = 3,
) -> NDArray[np.uint8]:
    """Reject what disagrees with the affine map of its accepted neighbours, worst first.

    Args:
        source: (n, 2), px.
        displacement: (n, 2), px.
        rejection: (n,) so far.
        tolerance_px: distance from the neighbours' prediction that is still believed.
        neighbours: how many to ask.
        rounds: each round trusts what the round before left.

    Returns:
        (n,) with `CONSENSUS` added; everything is rejected where fewer than four remain.
    """
    reasons = rejection.copy()
    open_ = np.flatnonzero(rejection == 0)
    trusted = open_
    for round_ in range(rounds):
        if len(trusted) < 4:
            reasons[open_] = Rejection.CONSENSUS
            return reasons
        limit = tolerance_px * 2 ** (rounds - 1 - round_)
        error = leave_one_out(source, displacement, open_, trusted, neighbours)
        trusted = open_[error <= limit]
    reasons[np.setdiff1d(open_, trusted)] = Rejection.CONSENSUS
    return reasons


def leave_one_out(
    source: Points,
    displacement: Points,
    asked: NDArray[Any],
    trusted: NDArray[Any],
    neighbours: int,
) -> NDArray[np.float64]:
    """Distance of each asked match from the robust affine map of its nearest trusted others, px."""
    if len(asked) == 0:
        return np.zeros(0)
    count = min(neighbours + 1, len(trusted))
    _, nearest = cKDTree(source[trusted]).query(source[asked], k=count)
    index = trusted[nearest.reshape(len(asked), count)]
    weight = np.where(index == asked[:, None], 0.0, 1.0)
    offset = (source[index] - source[asked][:, None]) / 100.0
    design = np.concatenate([np.ones((*index.shape, 1)), offset], -1)
    values = displacement[index]
    ridge = np.diag([1e-9, 0.3, 0.3])  # few or collinear neighbours: closer to their mean
    prediction = np.median(values, axis=1)
    residual = np.linalg.norm(values - prediction[:, None], axis=-1)
    for _ in range(3):
        scale = np.maximum(np.median(residual, axis=1, keepdims=True), 0.5)
        robust = weight / (1 + (residual / (2 * scale)) ** 2)
        normal = np.einsum("nk,nki,nkj->nij", robust, design, design) + ridge
        right = np.einsum("nk,nki,nkd->nid", robust, design, values)
        fit = np.linalg.solve(normal, right)
        prediction = fit[:, 0]
        residual = np.linalg.norm(values - design @ fit, axis=-1)
    return np.asarray(np.linalg.norm(displacement[asked] - prediction, axis=1))
