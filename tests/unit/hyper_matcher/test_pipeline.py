from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.ndimage
from numpy.typing import NDArray

from hyper_matcher.align.facts import facts_of
from hyper_matcher.align.geometry import Affine
from hyper_matcher.align.match import MatchOptions
from hyper_matcher.align.metrics import chunked_correlation
from hyper_matcher.align.order import failed_pairs
from hyper_matcher.align.pipeline import AlignedStack, AlignOptions, align_stack, pairs_of
from hyper_matcher.align.springs import RelaxOptions
from tests.support.sections import pull, real_stack, smooth_field, texture

_SMALL = AlignOptions(
    sigma_low_px=1.0, sigma_high_px=6.0,
    match=MatchOptions(template_px=96, spacing_px=32), relax=RelaxOptions(spacing_px=32),
)  # fmt: skip


def _slices(depth: int, edge: int, seed: int = 0) -> NDArray[np.uint8]:
    """Sections through one three-dimensional texture: neighbours resemble each other."""
    rng = np.random.default_rng(seed)
    solid = scipy.ndimage.gaussian_filter(rng.normal(size=(depth, edge, edge)), (2.0, 3.5, 3.5))
    return (127.5 + 100 * np.tanh(solid / solid.std())).astype(np.uint8)


def _errors(stack: AlignedStack, wheres: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Distance, px, of the sections' common points from their mean place in the aligned stack."""
    mesh = stack.relaxed.mesh
    _, height, width = wheres[0].shape
    y, x = np.meshgrid(np.linspace(60, height - 61, 12), np.linspace(60, width - 61, 12))
    true = np.stack([y.ravel(), x.ravel()], -1)
    places = []
    for z, where in enumerate(wheres):
        at = true.copy()
        for _ in range(25):  # where the section shows the true point
            seen = [scipy.ndimage.map_coordinates(w, at.T, order=1, mode="nearest") for w in where]
            at += true - np.stack(seen, -1)
        index, weight = mesh.barycentric(at)
        places.append(np.einsum("nk,nkd->nd", weight, stack.relaxed.positions[z][index]))
    stacked = np.stack(places)
    return np.asarray(np.linalg.norm(stacked - np.median(stacked, axis=0), axis=-1))


def _warped(
    volume: NDArray[np.uint8], rms_px: float
) -> tuple[NDArray[np.uint8], list[NDArray[np.float64]]]:
    rng = np.random.default_rng(5)
    pulled = [
        pull(
            section, rng.uniform(-0.02, 0.02), tuple(rng.uniform(-12, 12, 2)),
            smooth_field(section.shape, rms_px, z),
        )
        for z, section in enumerate(volume)
    ]  # fmt: skip
    return np.stack([section for section, _ in pulled]), [where for _, where in pulled]


def test_pairs_reach_over_neighbours() -> None:
    assert pairs_of(4, 2) == [(0, 1), (0, 2), (1, 2), (1, 3), (2, 3)]


@pytest.mark.timeout(240)
def test_known_smooth_warps_are_undone() -> None:
    warped, wheres = _warped(np.maximum(_slices(5, 400), 1), 6.0)
    stack = align_stack(warped, _SMALL)
    error = _errors(stack, wheres)
    assert np.median(error) < 0.8
    assert np.percentile(error, 95) < 2.0
    result = stack.result
    json.dumps(result)
    assert result["cpc94"] > result["cpc94_before"] + 0.3
    assert result["tissue_kept"] >= 0.95
    assert 0.5 < result["jacobian_min"] <= result["jacobian_max"] < 2
    assert result["residual_over_10px"] == 0
    assert result["flagged_sections"] == []


@pytest.mark.timeout(240)
def test_a_missing_and_a_folded_section_harm_nobody_else() -> None:
    volume = np.maximum(_slices(6, 320), 1)
    warped, wheres = _warped(volume, 3.0)
    warped[2] = 0  # missing
    folded = warped[4].copy()
    folded[:, 150:] = np.roll(warped[4], -40, axis=1)[:, 150:]
    folded[:, -40:] = 0
    folded[:, 146:154] = 20
    warped[4] = folded
    stack = align_stack(warped, _SMALL, measure=False)
    assert 2 in stack.relaxed.flagged
    assert not stack.sections[2].any()
    good = [0, 1, 3, 5]
    error = _errors(stack, wheres)[good]
    assert np.percentile(error, 95) < 3.0
    assert np.isfinite(stack.relaxed.positions).all()


@pytest.mark.timeout(240)
def test_swapped_and_turned_sections_of_real_tissue_are_named_and_aligned() -> None:
    volume = np.maximum(real_stack(7, (slice(300, 720), slice(300, 720))), 1)
    volume[[2, 3]] = volume[[3, 2]]
    volume[5] = pull(volume[5], np.deg2rad(170))[0]
    stack = align_stack(volume, _SMALL, measure=False)
    assert set(stack.relaxed.flagged) == {2, 3}
    assert "looks swapped with section 3" in stack.relaxed.flagged[2]
    assert failed_pairs(7, [facts_of(pair) for pair in stack.pairs]) == []
    turn = Affine.fit_rigid(stack.relaxed.mesh.vertices, stack.relaxed.positions[5]).angle_rad
    others = Affine.fit_rigid(stack.relaxed.mesh.vertices, stack.relaxed.positions[4]).angle_rad
    assert abs(np.cos(turn - others)) > 0.95 and np.cos(turn - others) < 0
    middle = np.s_[120:300, 120:300]
    scores = [
        chunked_correlation(stack.sections[a][middle], stack.sections[b][middle], 90).mean()
        for a, b in ((4, 5), (5, 6))
    ]
    assert min(scores) > 0.35


def test_a_shallow_stack_and_sixteen_bit_sections_work() -> None:
    volume = _slices(2, 256).astype(np.uint16) * 200
    options = AlignOptions(
        match=MatchOptions(template_px=64, spacing_px=32), relax=RelaxOptions(spacing_px=32)
    )
    stack = align_stack(volume, options, measure=False)
    assert stack.sections.dtype == np.uint16
    assert stack.sections.max() > 20_000


def test_refuses_what_is_no_stack() -> None:
    with pytest.raises(ValueError, match="two sections"):
        align_stack(np.zeros((1, 300, 300), np.uint8))
    with pytest.raises(ValueError, match="two sections"):
        align_stack(texture((300, 300)))


@pytest.mark.timeout(600)
def test_the_real_stack_is_aligned_better_than_its_own_aligner_does_it() -> None:
    stack = align_stack(real_stack(4))
    result = stack.result
    assert result["cpc94_before"] < 0.05
    assert result["cpc94"] >= 0.56
    assert result["residual_z1_p95"] <= 1.0
    assert result["residual_z2_p99"] <= 1.5
    assert result["residual_over_10px"] == 0
    assert result["tissue_kept"] >= 0.95
    assert 0.5 < result["jacobian_min"] <= result["jacobian_max"] < 2
    assert result["sharpness"] > 0.75
    assert result["flagged_sections"] == []
    assert min(pair.coverage for pair in stack.after) >= 0.9
