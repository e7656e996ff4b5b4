from __future__ import annotations

import numpy as np
import pytest

from hyper_matcher.align.filters import PeakFilter, consensus, judge_peaks
from hyper_matcher.align.geometry import Rejection, lattice
from hyper_matcher.peaks import Peaks

_GOOD = {
    "offset": (10.0, 10.0), "p1": 0.6, "p2": 0.2, "dynamic_range": 0.9, "kurtosis": 6.0,
    "width": 0.05,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, Rejection.ACCEPTED),
        ({"dynamic_range": 0.0}, Rejection.BLANK_SEARCH),
        ({"p1": 0.05, "p2": 0.0}, Rejection.LOW_PEAK),
        ({"p2": 0.57}, Rejection.LOW_DISTINCTNESS),
        ({"p1": 1.0, "p2": 0.945, "dynamic_range": 2.0}, Rejection.PEAK_RATIO),
        ({"dynamic_range": 0.1}, Rejection.DYNAMIC_RANGE),
        ({"kurtosis": 900.0}, Rejection.KURTOSIS),
        ({"width": 0.7}, Rejection.WIDE_PEAK),
        ({"offset": (10.0, 19.0)}, Rejection.EDGE_OF_SEARCH),
    ],
)
def test_every_peak_filter_names_its_reason(change: dict[str, object], reason: Rejection) -> None:
    peaks = Peaks(**{key: np.array([value]) for key, value in {**_GOOD, **change}.items()})
    options = PeakFilter(max_ratio=0.94)
    assert judge_peaks(peaks, 10, options).tolist() == [reason]


def test_consensus_rejects_what_disagrees_with_its_neighbours() -> None:
    points = lattice((1000, 1000), 60, 20)
    rng = np.random.default_rng(0)
    bend = np.stack([8 * np.sin(points[:, 1] / 200), 6 * np.cos(points[:, 0] / 250)], -1)
    moved = bend + rng.normal(0, 0.3, bend.shape)
    wrong = rng.choice(len(points), len(points) // 5, replace=False)
    moved[wrong] += rng.uniform(10, 20, (len(wrong), 2)) * rng.choice([-1, 1], (len(wrong), 2))
    reasons = consensus(points, moved, np.zeros(len(points), np.uint8), 3.0)
    assert (reasons[wrong] == Rejection.CONSENSUS).all()
    good = np.setdiff1d(np.arange(len(points)), wrong)
    assert (reasons[good] == 0).mean() > 0.97


def test_consensus_keeps_earlier_reasons_and_needs_company() -> None:
    points = np.random.default_rng(1).uniform(0, 100, (5, 2))
    before = np.array([3, 3, 0, 0, 0], np.uint8)
    reasons = consensus(points, np.zeros((5, 2)), before, 3.0)
    assert reasons.tolist() == [3, 3, *[Rejection.CONSENSUS] * 3]
