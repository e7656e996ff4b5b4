from __future__ import annotations

import json

import numpy as np
import pytest

from hyper_matcher.align.metrics import chunked_correlation, fresh_residuals, mean_gradient
from hyper_matcher.align.quality import Facts, PairQuality, measure_pair, result_object
from tests.support.sections import pull, texture

_KEYS = [
    "cpc94_before", "cpc94", "residual_z1_p50", "residual_z1_p95", "residual_z1_p99",
    "residual_z2_p95", "residual_z2_p99", "residual_over_10px", "tissue_kept", "sharpness",
    "jacobian_min", "jacobian_max", "matches", "rejected", "flagged_sections", "seconds",
    "cpu_seconds", "peak_rss_mb", "array", "array_url", "report",
]  # fmt: skip
_FACTS = Facts(0.99, 0.83, 0.9, 1.1, 10, {"low_peak": 2}, {3: "x"}, 5.0, 6.0, 100.0, "a/b/c")


def test_correlation_of_tiles() -> None:
    section = texture((300, 300))
    same = chunked_correlation(section, section)
    assert same == pytest.approx(np.ones(9))
    assert chunked_correlation(section, 255 - section) == pytest.approx(-np.ones(9), abs=1e-2)
    other = chunked_correlation(section, texture((300, 300), 1))
    assert abs(float(other.mean())) < 0.2


def test_tiles_with_holes_are_skipped() -> None:
    section = np.maximum(texture((300, 300)), 1)
    holed = section.copy()
    holed[:20, :94] = 0
    assert len(chunked_correlation(section, holed)) == 8
    assert len(chunked_correlation(np.zeros_like(section), section)) == 0
    with pytest.raises(ValueError, match="cannot be compared"):
        chunked_correlation(section, section[:-1])


def test_fresh_residuals_see_a_shift_and_cover_the_tissue() -> None:
    section = np.maximum(texture((600, 620), 2), 1)
    shifted, _ = pull(section, 0.0, (2.0, -3.0), fill=100)
    fresh = fresh_residuals(section, shifted)
    assert fresh.tried == len(fresh.lengths)
    assert fresh.coverage > 0.88  # a search's width along the edges is left out
    assert measure_pair(section, section, 0, 1).coverage > 0.98
    assert fresh.vectors == pytest.approx(np.tile([-2.0, 3.0], (fresh.tried, 1)), abs=0.05)
    whole = fresh_residuals(section, shifted, whole_pixels=True)
    assert whole.lengths == pytest.approx(np.full(fresh.tried, np.hypot(2, 3)))


def test_a_miss_of_forty_pixels_shows_as_such() -> None:
    section = np.maximum(texture((600, 620), 2), 1)
    shifted, _ = pull(section, 0.0, (30.0, -26.0), fill=100)
    fresh = fresh_residuals(section, shifted)
    assert len(fresh.lengths) > 0.9 * fresh.tried
    assert np.median(fresh.lengths) == pytest.approx(np.hypot(30, 26), abs=0.1)
    quality = measure_pair(section, shifted, 0, 1)
    assert result_object([], [quality], _FACTS)["residual_over_10px"] > 0.95


def test_tissue_that_lies_askew_is_covered_by_templates_of_tissue_alone() -> None:
    section, _ = pull(np.maximum(texture((700, 700), 2), 1), 0.2, (0.0, 0.0), fill=0)
    fresh = measure_pair(section, section, 0, 1)
    assert fresh.coverage > 0.9
    # black beside the tissue is the same in both, and moves neither
    moved = section.copy()
    inside = section > 0
    moved[inside] = np.roll(section, 3, axis=1)[inside]
    lengths = measure_pair(section, moved, 0, 1).residuals
    assert (lengths.percentile(5) or 0.0) > 2.5


def test_fresh_residuals_need_tissue_and_room() -> None:
    blank = np.zeros((400, 400), np.uint8)
    assert fresh_residuals(blank, blank).tried == 0
    with pytest.raises(ValueError, match="no room"):
        fresh_residuals(blank[:100], blank[:100])
    small = measure_pair(blank[:100], blank[:100], 0, 1)
    assert (small.cpc, small.tried) == (None, 0)


def test_blur_lowers_the_gradient() -> None:
    section = texture((100, 100)).astype(np.float32)
    blurred = (section + np.roll(section, 1, 0) + np.roll(section, 1, 1)) / 3
    assert mean_gradient(blurred) < mean_gradient(section)
    assert mean_gradient(section, np.zeros(section.shape, bool)) == 0.0


def test_the_gradient_of_a_ramp_is_its_slope() -> None:
    y, x = np.mgrid[:40, :50]
    assert mean_gradient(3.0 * y + 4.0 * x) == pytest.approx(5.0)
    holed = np.where(x < 25, 3.0 * y, 0)
    assert mean_gradient(holed, x < 25) == pytest.approx(3.0)


def test_the_result_object_has_its_keys_and_is_plain() -> None:
    section = np.maximum(texture((400, 400)), 1)
    after = [measure_pair(section, section, 0, 1), measure_pair(section, section, 0, 2)]
    assert [PairQuality.from_json(json.loads(json.dumps(p.to_json()))).cpc for p in after] == [1, 1]
    result = result_object([PairQuality(0, 1, 0.25, 9)], after, _FACTS)
    assert list(result) == _KEYS
    assert json.loads(json.dumps(result)) == result
    assert (result["cpc94_before"], result["cpc94"]) == (0.25, 1.0)
    assert result["residual_z1_p95"] == pytest.approx(0, abs=0.02)
    assert result["flagged_sections"] == [3]


def test_what_was_not_measured_is_none() -> None:
    result = result_object([], [], _FACTS)
    assert result["cpc94"] is None
    assert result["residual_z1_p95"] is None
    assert result["residual_over_10px"] is None
