from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.matcher.stitching import Tiles, cut_tiles, truth_errors
from hyper.images import read_section
from hyper.tile_positions import overlapping
from hyper_matcher.stitch.overlap import match_overlap
from hyper_matcher.stitch.pipeline import Stitched, stitch_tiles
from hyper_matcher.stitch.polynomials import basis, normalised, terms
from hyper_matcher.stitch.render import montage_canvas, render_montage
from hyper_matcher.stitch.solve import Shared, solve
from hyper_matcher.stitch.values import StitchOptions, TileFacts
from tests.support.sections import data_folder, texture

_PLANE = texture((700, 700), seed=3, sigma_px=2.5)


@pytest.fixture(scope="module")
def tiles() -> Tiles:
    return cut_tiles(_PLANE, 3, 0.25, 4.0, 15.0, seed=1)


@pytest.fixture(scope="module")
def stitched(tiles: Tiles) -> Stitched:
    return stitch_tiles(list(tiles.images), tiles.positions)


@pytest.mark.timeout(120)
def test_tiles_meet_and_lie_where_they_were_cut(tiles: Tiles, stitched: Stitched) -> None:
    result = stitched.result
    json.dumps(result)
    assert result["seam_residual_p95"] <= 0.5
    assert result["residual_share"] > 0.9
    assert result["failed_seams"] == [] and result["flagged_tiles"] == {}
    error = truth_errors(tiles, stitched)
    assert np.percentile(error, 95) < 3.0
    assert (stitched.section > 0).mean() > 0.9


@pytest.mark.timeout(120)
def test_what_tiles_share_is_found_in_some_sections_and_serves_the_others(
    tiles: Tiles, stitched: Stitched
) -> None:
    """Section by section with the lens of one of them: as good as with its own."""
    shared = Shared(stitched.montage.lens, stitched.montage.pattern)
    facts = {k: TileFacts.of(tile) for k, tile in enumerate(tiles.images)}
    again = solve(
        stitched.montage.shape, tiles.positions, [0] * 9, stitched.seams, facts, StitchOptions(),
        shared,
    )  # fmt: skip
    np.testing.assert_allclose(again.maps, stitched.montage.maps, atol=0.02)
    np.testing.assert_allclose(again.brightness, stitched.montage.brightness, atol=0.005)
    other = cut_tiles(texture((700, 700), seed=4, sigma_px=2.5), 3, 0.25, 4.0, 15.0, seed=2)
    alone = stitch_tiles(list(other.images), other.positions)
    facts = {k: TileFacts.of(tile) for k, tile in enumerate(other.images)}
    told = solve(
        alone.montage.shape, other.positions, [0] * 9, alone.seams, facts, StitchOptions(), shared
    )
    error = truth_errors(other, replace(alone, montage=told))
    assert np.percentile(error, 95) < 1.1 * np.percentile(truth_errors(other, alone), 95) + 0.1


@pytest.mark.timeout(120)
def test_even_brightness_whatever_the_vignette(tiles: Tiles, stitched: Stitched) -> None:
    even = stitched.montage
    points = np.array([[5.0, 5.0], [100.0, 100.0], [5.0, 180.0]])
    gains = np.stack([even.gain(k, points) for k in range(9)])
    true = 1 - 0.12 * (normalised(points, even.shape) ** 2).sum(axis=1)
    true += 0.05 * normalised(points, even.shape)[:, 1]
    shape = gains / gains.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(shape, np.tile(true / true.mean(), (9, 1)), atol=0.06)
    at = tiles.positions
    facts = {k: TileFacts.of(tile) for k, tile in enumerate(tiles.images)}
    asked = StitchOptions(illumination=False)
    raw = solve(even.shape, at, [0] * 9, stitched.seams, facts, asked)
    assert np.allclose(raw.gain(0, points), 1.0)


def test_a_place_in_the_montage_leads_back_to_its_tile(stitched: Stitched) -> None:
    montage = stitched.montage
    points = np.random.default_rng(0).uniform(0, montage.shape[0] - 1, (50, 2))
    np.testing.assert_allclose(montage.unplace(4, montage.place(4, points)), points, atol=1e-3)


def test_blocks_of_the_canvas_make_up_the_whole(tiles: Tiles, stitched: Stitched) -> None:
    montage = stitched.montage
    canvas = montage_canvas(montage)

    def render(part: object) -> NDArray[np.uint8]:
        return render_montage(montage, range(9), lambda k: tiles.images[k], part)  # type: ignore[arg-type]

    whole = render(canvas)
    (y, x), (height, width) = canvas.origin, canvas.shape
    cut = 211
    left = render(type(canvas)((y, x), (height, cut)))
    right = render(type(canvas)((y, x + cut), (height, width - cut)))
    joined = np.concatenate([left, right], axis=1)
    differing = np.abs(joined.astype(int) - whole.astype(int)) > 1
    assert differing.mean() < 1e-3  # the map is read on a grid that starts with the block


@pytest.mark.timeout(120)
def test_a_tile_without_contrast_is_flagged_and_the_rest_is_placed() -> None:
    tiles = cut_tiles(_PLANE[:500, :500], 3, 0.3, 0.0, 15.0, seed=1)
    images = tiles.images.copy()
    images[8] = 90
    stitched = stitch_tiles(list(images), tiles.positions)
    assert "blank" in stitched.montage.flagged[8]
    assert set(stitched.montage.flagged) == {8}
    assert {
        s["why"].split(" (")[0].split(" within")[0] for s in stitched.result["failed_seams"]
    } == {"no fit"}
    good = [k for k in range(9) if k != 8]
    placed = stitched.montage.positions[good] + stitched.montage.maps[good, 0]
    off = placed - tiles.true[good]
    assert np.abs(off - off.mean(axis=0)).max() < 1.5


def test_unrelated_tiles_are_not_joined() -> None:
    other = texture((300, 300), seed=9)
    seam = match_overlap(_PLANE[:300, :300], other, np.array([0.0, 240.0]), StitchOptions())
    assert seam.flag and not seam.accepted.any()


@pytest.mark.parametrize("shift", [(0.0, 0.0), (31.0, -38.0), (-60.0, 55.0)])
def test_a_shift_is_found_however_wrong_the_position(shift: tuple[float, float]) -> None:
    first, second = _PLANE[100:400, :300], _PLANE[110:410, 220:520]
    said = np.array([10.0, 220.0]) - shift
    seam = match_overlap(first, second, said, StitchOptions())
    assert seam.flag == ""
    moved = (seam.first_points - seam.second_points)[seam.accepted]
    np.testing.assert_allclose(np.median(moved, axis=0), [10, 220], atol=0.1)


def test_thin_corners_are_no_overlaps() -> None:
    positions = np.array([[0, 0], [0, 90], [90, 0], [90, 90]], float)
    assert overlapping(positions, (100, 100), [0] * 4, 16) == []
    assert overlapping(positions, (120, 120), [0, 0, 1, 1], 16) == [(0, 1), (2, 3)]


def test_the_lens_polynomials_leave_the_tile_where_it_is() -> None:
    y, x = np.meshgrid(np.linspace(0, 99, 100), np.linspace(0, 99, 100), indexing="ij")
    points = np.stack([y, x], -1).reshape(-1, 2)
    values = basis(normalised(points, (100, 100)), terms(2, 4))
    assert np.abs(values.mean(axis=0)).max() < 0.02


@pytest.mark.timeout(240)
def test_tiles_of_real_tissue() -> None:
    plane = read_section(data_folder("em/vnc_stack1") / "00.png")
    tiles = cut_tiles(plane[:800, :800], 4, 0.2, 6.0, 20.0, seed=0)
    stitched = stitch_tiles(list(tiles.images), tiles.positions)
    assert stitched.result["seam_residual_p95"] <= 1.0
    assert stitched.result["residual_share"] > 0.9
    assert stitched.result["flagged_tiles"] == {}
    assert np.percentile(truth_errors(tiles, stitched), 95) < 3.0
