from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.ndimage

from hyper_matcher.align.coarse import CoarseImage, coarse_fit
from hyper_matcher.align.geometry import Rejection
from hyper_matcher.align.match import MatchOptions, PreparedSection, fine_scale, match_pair
from hyper_matcher.bandpass import bandpass
from tests.support.sections import pull, real_stack, smooth_field, texture

_OPTIONS = MatchOptions(template_px=96, spacing_px=40)


@pytest.mark.parametrize(
    ("degrees", "shift"),
    [(0, (150.0, 100.0)), (-20, (0.0, 0.0)), (90, (90.0, -140.0)), (137, (-60.0, 80.0))],
)
def test_coarse_fit_finds_any_rotation_and_large_shifts(
    degrees: float, shift: tuple[float, float]
) -> None:
    world = texture((900, 900), 1)
    source = world[250:650, 250:650]
    turned, _ = pull(world, math.radians(degrees), shift)
    target = turned[250:650, 250:650]
    affine, share = coarse_fit(CoarseImage(source), CoarseImage(target))
    points = np.array([[150.0, 150.0], [250.0, 260.0], [200.0, 120.0]])
    _, where = pull(world, math.radians(degrees), shift)
    at = affine(points) + 250
    back = np.stack(
        [scipy.ndimage.map_coordinates(where[k], at.T, order=1, mode="nearest") for k in (0, 1)], -1
    )
    assert share > 0.5
    assert np.abs(back - (points + 250)).max() < 2.0


def test_coarse_fit_of_strangers_has_no_support() -> None:
    _, share = coarse_fit(CoarseImage(texture((400, 400), 1)), CoarseImage(texture((400, 400), 2)))
    assert share < 0.2


@pytest.mark.parametrize("options", [_OPTIONS, MatchOptions(template_px=64, first_factor=1)])
def test_matches_find_a_known_warp_to_a_fraction_of_a_pixel(options: MatchOptions) -> None:
    source = texture((512, 512), 3)
    target, where = pull(source, 0.05, (14, -9), smooth_field(source.shape, 4.0, 7), fill=128)
    pair = match_pair(PreparedSection(source, options), PreparedSection(target, options), 4, 5)
    assert (pair.source_z, pair.target_z, pair.flag) == (4, 5, "")
    ok = pair.accepted
    assert ok.mean() > 0.7
    found = (pair.source + pair.displacement)[ok]
    back = np.stack([scipy.ndimage.map_coordinates(where[k], found.T, order=1) for k in (0, 1)], -1)
    error = np.linalg.norm(back - pair.source[ok], axis=1)
    assert np.median(error) < 0.2
    assert np.percentile(error, 99) < 1.0


@pytest.mark.parametrize("grey", [0, 128])
def test_a_blank_section_is_flagged_and_nothing_is_accepted(grey: int) -> None:
    blank = PreparedSection(np.full((300, 300), grey, np.uint8), _OPTIONS)
    tissue = PreparedSection(texture((300, 300)), _OPTIONS)
    for source, target, reasons in (
        (blank, tissue, {Rejection.BLANK_TEMPLATE, Rejection.OUTSIDE}),
        (tissue, blank, {Rejection.BLANK_SEARCH, Rejection.OUTSIDE}),
    ):
        pair = match_pair(source, target, 0, 1)
        assert pair.flag == "no coarse fit"
        assert set(pair.rejection.tolist()) <= reasons


@pytest.mark.parametrize("degrees", [100.0, 170.0])
def test_a_large_turn_costs_no_matches(degrees: float) -> None:
    world = texture((900, 900), 6)
    turned, _ = pull(world, math.radians(degrees), (20.0, -15.0))
    cut = slice(200, 700)
    sections = [PreparedSection(image[cut, cut], _OPTIONS) for image in (world, turned)]
    pair = match_pair(*sections, 0, 1)
    assert pair.flag == ""
    assert pair.counts().get("consensus", 0) < 0.03 * pair.tried


def test_tissue_in_the_middle_of_nothing_is_matched_and_not_flagged() -> None:
    y, x = np.mgrid[:512, :512]
    island = (y - 250) ** 2 + (x - 270) ** 2 < 150**2
    world = texture((512, 512), 4)
    moved, _ = pull(world, 0.03, (20.0, -14.0), fill=128)
    sections = [
        PreparedSection(bandpass(np.where(island, section, 0), 2, 8, gain=0.02), _OPTIONS)
        for section in (world, moved)
    ]  # the outline stays where it is while the tissue moves
    pair = match_pair(*sections, 0, 1)
    assert pair.flag == ""
    assert pair.accepted.sum() > 20
    assert pair.tried < 0.6 * len(pair.rejection)
    far = np.hypot(*(pair.source[pair.accepted] - (250, 270)).T) > 250
    assert not far.any()


def test_unrelated_sections_are_flagged() -> None:
    pair = match_pair(
        PreparedSection(texture((300, 300), 1), _OPTIONS),
        PreparedSection(texture((300, 300), 2), _OPTIONS), 0, 1,
    )  # fmt: skip
    assert pair.flag
    assert not pair.accepted.any()


def test_real_neighbours_match() -> None:
    stack = [bandpass(s, 2, 10) for s in real_stack(2, (slice(200, 712), slice(200, 712)))]
    options = MatchOptions(template_px=128)
    pair = match_pair(PreparedSection(stack[0], options), PreparedSection(stack[1], options), 0, 1)
    assert pair.flag == ""
    assert pair.accepted.sum() > 60


def test_refuses_templates_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="larger than the section"):
        PreparedSection(np.zeros((90, 200), np.uint8), _OPTIONS)
    with pytest.raises(ValueError, match="at least 16"):
        MatchOptions(template_px=8)
    with pytest.raises(ValueError, match="spacing_px"):
        MatchOptions(spacing_px=0)
    with pytest.raises(ValueError, match="search radii"):
        MatchOptions(search_px=-1)
    with pytest.raises(ValueError, match="two axes"):
        PreparedSection(np.zeros((2, 90, 200), np.uint8), _OPTIONS)


def test_templates_grow_where_the_first_pass_was_doubtful() -> None:
    assert fine_scale(1.0) < fine_scale(0.7) < fine_scale(0.3)


@pytest.mark.parametrize("shape", [(1600, 220), (200, 1500)])
def test_long_narrow_sections_have_a_coarse_fit(shape: tuple[int, int]) -> None:
    plane = texture((shape[0] + 20, shape[1] + 20), seed=4)
    first, second = plane[4:-16, 6:-14], plane[10:-10, 2:-18]
    found, score = coarse_fit(CoarseImage(first), CoarseImage(second))
    assert score > 0.9
    assert found.offset == pytest.approx([-6.0, 4.0], abs=0.5)
