from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

pytest.importorskip("torch", reason="the deep refinement needs torch")

from hyper_matcher.align.deep import (
    DeepOptions,
    crack_mask,
    refine_section,
    warp_by,
)
from hyper_matcher.align.fading import compose
from tests.support.sections import texture

_FAST = DeepOptions(factors=(8, 4, 2), steps=40)


def test_a_smooth_displacement_is_found_without_the_truth() -> None:
    plane = texture((160, 160), seed=1, sigma_px=2.5)
    y, x = np.mgrid[:160, :160].astype(np.float32)
    true = np.stack([4 * np.sin(x / 60), 3 * np.cos(y / 50)], -1).astype(np.float32)
    moved = np.clip(warp_by(plane, -true), 1, 255).astype(np.uint8)
    field = refine_section(moved, [(1, plane)], _FAST)
    inner = np.s_[30:-30, 30:-30]
    before = np.linalg.norm(true[inner], axis=-1)
    after = np.linalg.norm((field - true)[inner], axis=-1)
    assert np.median(after) < 0.4 * np.median(before)
    assert np.percentile(after, 90) < np.percentile(before, 90)


def test_nothing_moves_where_nothing_is_off() -> None:
    plane = texture((130, 130), seed=2)
    noisy = np.clip(plane + np.random.default_rng(0).normal(0, 4, plane.shape), 1, 255)
    field = refine_section(noisy.astype(np.uint8), [(1, plane)], _FAST)
    assert np.percentile(np.linalg.norm(field, axis=-1), 95) < 0.5


def test_a_torn_section_is_put_back_on_either_side() -> None:
    plane = np.maximum(texture((320, 320), seed=3, sigma_px=2.0), 60)
    y, x = np.mgrid[:320, :320].astype(float)
    side = x - 160 - 8 * np.sin(y / 50)
    torn = scipy.ndimage.map_coordinates(
        plane.astype(float), [y, x - np.sign(side) * 6], order=1, mode="reflect"
    )
    torn[np.abs(side) < 6] = 0
    field = refine_section(np.rint(torn).astype(np.uint8), [(1, plane)], _FAST)
    off = np.linalg.norm(field - np.stack([0 * x, 6 * np.sign(side)], -1), axis=-1)
    clear = (np.abs(side) > 8) & (np.minimum(y, x) > 30) & (np.maximum(y, x) < 290)
    assert np.median(off[clear]) < 0.3
    assert np.percentile(off[clear], 90) < 1.5


def test_blank_sections_stay_as_they_are() -> None:
    plane = texture((120, 120))
    assert not refine_section(np.zeros_like(plane), [(1, plane)], _FAST).any()
    assert not refine_section(plane, [(1, np.zeros_like(plane))], _FAST).any()
    assert not refine_section(plane, [(3, plane)], _FAST).any()


def test_cracks_and_folds_are_seen_and_vessels_are_not() -> None:
    plane = np.maximum(texture((300, 300), seed=4), 60)
    assert crack_mask(plane).mean() < 0.05
    cracked = plane.copy()
    cracked[:, 140:150] = 0
    mask = crack_mask(cracked, widen_px=4)
    assert mask[:, 140:150].all() and mask.mean() < 0.15
    folded = plane.copy()
    folded[200:208] = 8
    assert crack_mask(folded, widen_px=4)[202:206, 20:-20].all()


def test_maps_are_read_through_the_field() -> None:
    maps = np.mgrid[:50, :60].astype(np.float32).transpose(1, 2, 0) + 3
    maps[:, :5] = np.nan
    field = np.full((50, 60, 2), (1.5, -2.0), np.float32)
    joined = compose(maps, field)
    np.testing.assert_allclose(joined[10, 20], [10 + 3 + 1.5, 20 + 3 - 2.0])
    assert np.isnan(joined[10, 5]).all() and np.isnan(joined[-1]).all()
    ramp = np.arange(3000, dtype=np.float32).reshape(50, 60)
    assert warp_by(ramp, field)[10, 20] == pytest.approx(60 * 11.5 + 18)
