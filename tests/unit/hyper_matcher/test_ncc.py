from __future__ import annotations

import cv2
import numpy as np
import pytest
import scipy.ndimage
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper_matcher.fft import SIZES
from hyper_matcher.ncc import (
    SearchImage,
    choose_tiling,
    correlate_windows,
    masked_cross_correlation,
    normalized_cross_correlation,
    spatial_is_cheaper,
)
from hyper_matcher.peaks import find_peaks
from tests.support.sections import texture


@pytest.mark.parametrize(
    ("template", "search"), [((5, 7), (19, 16)), ((40, 40), (90, 100)), ((160, 160), (220, 210))]
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_agrees_with_opencv(
    template: tuple[int, int], search: tuple[int, int], dtype: type
) -> None:
    rng = np.random.default_rng(0)  # OpenCV itself is less exact where windows are smooth
    image = rng.integers(0, 256, search).astype(dtype)
    piece = rng.integers(0, 256, template).astype(dtype)
    expected = cv2.matchTemplate(image, piece, cv2.TM_CCOEFF_NORMED)
    found = normalized_cross_correlation(piece, image)
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("template", "search"),
    [((30, 41), (31, 41)), ((16, 16), (700, 90)), ((50, 40), (333, 517)), ((90, 25), (90, 300))],
)
def test_tiles_and_shared_transforms_agree_with_float64(
    template: tuple[int, int], search: tuple[int, int]
) -> None:
    image = texture(search, 8).astype(np.float32)
    pieces = [texture(template, seed) for seed in range(3)]  # odd: the last one goes alone
    searched = SearchImage(image)
    expected = [SearchImage(image).correlate(piece, "direct") for piece in pieces]
    alone = [searched.correlate(piece, "fft") for piece in pieces]
    together = list(searched.correlate_each(pieces, "fft"))
    for exact, one, shared in zip(expected, alone, together, strict=True):
        assert one.shape == shared.shape == tuple(np.subtract(search, template) + 1)
        assert np.abs(one - exact).max() < 2e-6
        assert np.abs(shared - exact).max() < 2e-6


@settings(deadline=None, max_examples=30)
@given(
    st.integers(2, 60), st.integers(2, 60), st.integers(0, 300), st.integers(0, 300),
    st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_ffts_agree_with_direct_sums(h: int, w: int, more_y: int, more_x: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(h + more_y, w + more_x))
    pieces = rng.normal(size=(2, h, w))
    searched = SearchImage(image)
    for piece, shared in zip(pieces, searched.correlate_each(pieces, "fft"), strict=True):
        exact = searched.correlate(piece, "direct")
        assert np.abs(shared - exact).max() < 5e-6
        assert np.abs(searched.correlate(piece, "fft") - exact).max() < 5e-6


def test_faint_windows_beside_bright_ones_are_exact() -> None:
    image = texture((300, 300), 9).astype(np.float64)
    image[:, 150:] = 1e4 * image[:, 150:] + 1e6  # float32 has no digits left for the other half
    piece = texture((80, 80), 10)
    exact = SearchImage(image).correlate(piece, "direct")
    searched = SearchImage(image)
    assert np.abs(searched.correlate(piece, "fft") - exact).max() < 1e-6
    assert np.abs(next(searched.correlate_each([piece], "fft")) - exact).max() < 1e-6


@pytest.mark.parametrize("kind", ["wave", "ramp", "step", "spot", "blank"])
@pytest.mark.parametrize("edge", [12, 60])
def test_ffts_are_exact_on_awkward_images(kind: str, edge: int) -> None:
    y, x = np.mgrid[:200, :200]
    image = {
        "wave": np.sin(0.8 * x),
        "ramp": y / 200,
        "step": np.where(y > 120, 1.0, 0.0),
        "spot": 50.0 * ((abs(y - 90) < 5) & (x < 9)),
        "blank": np.where(y > 60, texture((200, 200), 16), 77.0),
    }[kind]
    rng = np.random.default_rng(17)
    if kind != "blank":
        image = image + 2e-3 * rng.normal(size=image.shape)
    pieces = [image[90 : 90 + edge, 5 : 5 + edge], rng.normal(size=(edge, edge))]
    searched = SearchImage(image)
    for piece, shared in zip(pieces, searched.correlate_each(pieces, "fft"), strict=True):
        exact = searched.correlate(piece, "direct")
        assert np.abs(searched.correlate(piece, "fft") - exact).max() < 5e-6
        assert np.abs(shared - exact).max() < 5e-6


def test_edges_beyond_the_largest_fft() -> None:
    image = texture((30, SIZES[-1] + 40), 13)
    for width in (20, SIZES[-1] + 10):
        piece = texture((12, width), 14)
        exact = SearchImage(image).correlate(piece, "direct")
        assert np.abs(SearchImage(image).correlate(piece, "fft") - exact).max() < 2e-6


def test_tiles_cover_every_place_once() -> None:
    for template, image in [((160, 160), (1024, 900)), ((20, 300), (5000, 310)), ((9, 9), (9, 9))]:
        for paired in (True, False):
            tiling = choose_tiling(template, image, paired)
            seen = np.zeros(np.subtract(image, template) + 1, int)
            for y, x in tiling.places(image):
                seen[y : y + tiling.step[0], x : x + tiling.step[1]] += 1
            assert (seen == 1).all()


def test_templates_correlated_together_have_one_shape() -> None:
    searched = SearchImage(texture((90, 90)))
    with pytest.raises(ValueError, match="one shape"):
        list(searched.correlate_each([texture((40, 40)), texture((40, 30))]))


def test_keeps_no_reference_to_the_callers_array() -> None:
    image = texture((120, 120), 11)
    searched, piece = SearchImage(image), texture((40, 40), 12)
    expected = SearchImage(image.copy()).correlate(piece, "direct")
    image[:] = 0
    assert np.array_equal(searched.correlate(piece, "direct"), expected)


def test_both_ways_of_computing_are_used() -> None:
    assert spatial_is_cheaper((5, 5), (20, 20))
    assert not spatial_is_cheaper((160, 160), (360, 360))


@settings(deadline=None, max_examples=40)
@given(
    st.integers(2, 20), st.integers(2, 20), st.integers(0, 30), st.integers(0, 30),
    st.integers(0, 2**32 - 1), st.floats(0.01, 100), st.floats(-1000, 1000),
)  # fmt: skip
def test_is_bounded_and_does_not_see_gain_and_offset(
    h: int, w: int, more_y: int, more_x: int, seed: int, gain: float, offset: float
) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(h + more_y, w + more_x))
    template = image[more_y // 2 :, more_x // 2 :][:h, :w]
    scores = normalized_cross_correlation(template, image)
    assert scores.shape == (more_y + 1, more_x + 1)
    assert np.abs(scores).max() <= 1.0
    assert scores[more_y // 2, more_x // 2] == pytest.approx(1.0, abs=1e-6)
    again = normalized_cross_correlation(gain * template + offset, image)
    assert np.abs(again - scores).max() < 1e-6


@pytest.mark.parametrize("grey", [0, 77, 255])
@pytest.mark.parametrize("edge", [4, 60])
def test_windows_and_templates_without_contrast_score_zero(grey: int, edge: int) -> None:
    image = texture((128, 128))
    image[:, 40:] = grey
    scores = normalized_cross_correlation(texture((edge, edge), 5), image)
    assert (scores[:, 40:] == 0).all()
    assert not normalized_cross_correlation(np.full((9, 9), grey, np.uint8), image).any()


def test_bright_images_lose_no_precision() -> None:
    image = texture((80, 80)).astype(np.float64) + 1e6
    scores = normalized_cross_correlation(image[20:50, 20:50], image)
    assert scores[20, 20] == pytest.approx(1.0, abs=1e-6)
    assert np.unravel_index(scores.argmax(), scores.shape) == (20, 20)


def test_refuses_what_cannot_be_searched() -> None:
    with pytest.raises(ValueError, match="larger than the image"):
        normalized_cross_correlation(np.zeros((9, 9)), np.zeros((8, 20)))
    for worst in (np.nan, np.inf):
        image = np.ones((8, 8))
        image[3, 4], image[5, 5] = worst, -worst
        with pytest.raises(ValueError, match="image has values that are not finite"):
            SearchImage(image)
        with pytest.raises(ValueError, match="template has values that are not finite"):
            SearchImage(texture((99, 99))).correlate(image)
    for shape in ((3,), (0, 5), (2, 8, 8)):
        with pytest.raises(ValueError, match="template has two axes"):
            SearchImage(np.zeros((9, 9))).correlate(np.zeros(shape))
    with pytest.raises(ValueError, match="two axes"):
        SearchImage(np.zeros((2, 8, 8)))


def test_masked_equals_plain_where_all_is_valid() -> None:
    image, piece = texture((90, 80), 1), texture((30, 20), 2)
    everything = np.ones(piece.shape, bool), np.ones(image.shape, bool)
    plain = normalized_cross_correlation(piece, image)
    assert np.abs(masked_cross_correlation(piece, image, *everything) - plain).max() < 1e-6


def test_masked_pixels_have_no_say() -> None:
    image = texture((120, 120), 3)
    piece = image[30:90, 40:100].copy()
    piece_valid, image_valid = np.ones(piece.shape, bool), np.ones(image.shape, bool)
    piece[:20], piece_valid[:20] = 255, False
    spoiled = image.copy()
    spoiled[60:70, :], image_valid[60:70, :] = 0, False
    scores = masked_cross_correlation(piece, spoiled, piece_valid, image_valid)
    assert np.unravel_index(scores.argmax(), scores.shape) == (30, 40)
    assert scores.max() == pytest.approx(1.0, abs=1e-6)
    nothing = masked_cross_correlation(piece, spoiled, np.zeros_like(piece_valid), image_valid)
    assert not nothing.any()


def test_batches_agree_with_single_templates() -> None:
    image = texture((200, 220), 4)
    search = SearchImage(image)
    corners = np.array([[0, 0], [30, 50], [200 - 76, 220 - 76]])
    templates = np.stack([texture((60, 60), k) for k in range(3)]).astype(np.float32)
    scores = correlate_windows(templates, search, corners, 8)
    for k, (y, x) in enumerate(corners.tolist()):
        alone = normalized_cross_correlation(templates[k], image[y : y + 76, x : x + 76])
        assert np.abs(scores[k] - alone).max() < 1e-4


@pytest.mark.parametrize("shift", [(0.0, 0.0), (0.25, -0.4), (-0.5, 0.1)])
def test_peaks_are_found_between_pixels(shift: tuple[float, float]) -> None:
    image = texture((160, 160), 6).astype(np.float32)
    moved = scipy.ndimage.shift(image, shift, order=3, mode="nearest")
    scores = SearchImage(moved).correlate(image[40:120, 40:120])
    peaks = find_peaks(scores[None, 30:51, 30:51], 6)
    assert np.abs(peaks.offset[0] - (10 + np.array(shift))).max() < 0.08
    assert peaks.p1[0] > 0.95 > peaks.p2[0] + 0.3


def test_second_peak_lies_outside_the_box() -> None:
    scores = np.zeros((2, 21, 21), np.float32)
    scores[0, 5, 5], scores[0, 6, 6], scores[0, 15, 15] = 0.9, 0.8, 0.5
    scores[1, 10, 10] = 0.7
    peaks = find_peaks(scores, 4)
    assert peaks.p1.tolist() == pytest.approx([0.9, 0.7])
    assert peaks.p2.tolist() == pytest.approx([0.5, 0.0])
    assert find_peaks(scores, 30).p2.tolist() == [0.0, 0.0]
