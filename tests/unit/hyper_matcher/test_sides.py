from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from hyper_matcher.align.coarse import contrast_features
from hyper_matcher.align.sides import (
    Features,
    SideOptions,
    bending,
    middle_cuts,
    narrow_part,
    register_by_side,
)
from tests.support.sections import texture

EDGE, LEFT, RIGHT = 320, 150, 170  # a crack from LEFT to RIGHT


def identity(edge: int = EDGE) -> NDArray[np.float32]:
    return np.moveaxis(np.indices((edge, edge)), 0, -1).astype(np.float32)


def strip(top: int = 0, bottom: int = EDGE) -> NDArray[np.bool_]:
    mask = np.zeros((EDGE, EDGE), bool)
    mask[top:bottom, LEFT:RIGHT] = True
    return mask


def test_cracks_are_narrow_and_what_lies_beyond_the_section_is_not() -> None:
    mask = strip()
    mask[:40] = mask[-25:] = mask[:, :70] = True  # the canvas round the section
    mask[200:260, 250:310] = True  # a hole
    damage = narrow_part(mask, 50)
    assert damage[60:270, LEFT:RIGHT].all()  # it runs out of the section, and is a crack
    assert not damage[:, :70].any() and not damage[:30].any()
    assert not damage[210:250, 260:300].any()
    assert not (damage & ~mask).any()
    assert not narrow_part(np.ones((30, 40), bool), 50).any()
    assert not narrow_part(np.zeros((30, 40), bool), 50).any()


def test_the_middle_line_divides_the_cells_on_either_side_of_a_crack() -> None:
    mask = np.zeros((30, 40), bool)
    mask[5:25, 18:24] = True
    below, right = middle_cuts(mask)
    assert (np.flatnonzero(right[10:20].any(axis=0)) == [20]).all()
    assert right[10:20, 20].all()
    assert not below[10:20].any()
    assert not right[:4].any()  # it ends, and tissue is whole beyond


def test_planes_bend_nothing_and_steps_at_the_middle_line_bend_nothing() -> None:
    region = np.ones((30, 40), bool)
    region[:3, :5] = False
    y, x = np.mgrid[:30, :40]
    cuts = np.zeros((29, 40), bool), np.zeros((30, 39), bool)
    cuts[1][:, 20] = True
    energy = bending(region, cuts)
    plane = (0.3 * y - 0.2 * x + 7.0)[region]
    step = np.where(x > 20, 10.0, 0.0)[region]
    assert np.abs(energy @ plane).max() < 1e-9
    assert np.abs(energy @ step).max() < 1e-9
    whole = bending(region, (cuts[0], np.zeros_like(cuts[1])))
    assert np.abs(whole @ plane).max() < 1e-9
    assert np.abs(whole @ step).max() >= 10
    assert np.abs(energy @ ((x * y)[region].astype(float))).max() > 1


def torn(open_px: float) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """A neighbour, the section that is torn open, and its crack: tissue has moved apart."""
    whole = texture((EDGE, EDGE), seed=3, sigma_px=2.0).astype(np.float32)
    y, x = np.mgrid[:EDGE, :EDGE].astype(float)
    side = x - 160 - 8 * np.sin(y / 50)
    gap = np.abs(side) < open_px / 2
    section = scipy.ndimage.map_coordinates(
        whole, [y, x - np.sign(side) * open_px / 2], order=1, mode="reflect"
    ).astype(np.float32)
    section[gap] = 0
    return whole, section, np.asarray(scipy.ndimage.distance_transform_edt(~gap) <= 6)


def features(
    section: NDArray[np.float32], whole: NDArray[np.float32], crack: NDArray[np.bool_]
) -> Features:
    moving, target = (contrast_features(each, 0.8, 4.0) for each in (section, whole))
    return Features(1, moving, crack, ~crack, [target], [np.ones_like(target)])


@pytest.mark.parametrize("sheared", [False, True])
def test_tissue_is_put_back_on_either_side_of_a_crack(sheared: bool) -> None:
    whole, section, crack = torn(8.0)
    y, x = np.mgrid[:EDGE, :EDGE].astype(float)
    side = x - 160 - 8 * np.sin(y / 50)
    true = np.stack([np.zeros_like(x), np.sign(side) * 4.0], -1)
    maps = identity()
    if sheared:  # the section is what another map of the source shows
        maps[..., 0] += 0.05 * maps[..., 1]
    rough = true + np.random.default_rng(0).normal(0, 0.3, true.shape)
    start = scipy.ndimage.gaussian_filter(rough, (6, 6, 0)).astype(np.float32)  # smeared
    field, share = register_by_side(features(section, whole, crack), crack, crack, maps, start)
    off = np.linalg.norm(field - true, axis=-1)
    away = np.abs(side)
    clear = (away > 6) & (away < 100) & (np.minimum(y, x) > 20) & (np.maximum(y, x) < 300)
    assert np.median(off[clear]) < 0.1
    assert np.percentile(off[clear], 95) < 0.5
    before = np.linalg.norm(start - true, axis=-1)
    near = clear & (away < 14)
    assert np.median(off[near]) < 0.3 * np.median(before[near])
    assert share[160, 160] == share[160, 60] == 1 and 0 < share[160, 5] < 1


def test_cells_are_made_larger_rather_than_too_many() -> None:
    whole, section, crack = torn(8.0)
    few = SideOptions(cells_max=500)
    seen = features(section, whole, crack)
    start = np.zeros((EDGE, EDGE, 2), np.float32)
    field, share = register_by_side(seen, crack, crack, identity(), start, few)
    assert np.isfinite(field).all() and share.max() == 1
    assert np.median(np.abs(field[100:220, 190:260, 1] - 4)) < 0.5


def test_without_damage_or_evidence_the_field_stays() -> None:
    whole, section, crack = torn(8.0)
    start = np.full((EDGE, EDGE, 2), 0.7, np.float32)
    none = np.zeros_like(crack)
    seen = features(section, whole, crack)
    field, share = register_by_side(seen, none, none, identity(), start)
    assert not share.any() and (field == start).all()
    blind = Features(1, seen.moving, crack, np.zeros_like(crack), seen.targets, seen.weights)
    field, _ = register_by_side(blind, crack, crack, identity(), start)
    np.testing.assert_allclose(field, start, atol=0.01)
    unknown = np.full((EDGE, EDGE, 2), np.nan, np.float32)
    field, _ = register_by_side(seen, crack, crack, unknown, start)
    assert np.isfinite(field).all()
