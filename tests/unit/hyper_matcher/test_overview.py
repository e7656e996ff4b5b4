"""Large sections shrunk, part by part, and fitted to each other as a whole."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage

from hyper_matcher.align import overview
from hyper_matcher.align.geometry import Affine
from tests.support.sections import texture


def shrunk(section: np.ndarray, edge: int = 0) -> np.ndarray:
    """The overview of a section, made in parts of this edge."""
    height, width = section.shape
    factor, step = overview.factor_of(section.shape), edge or max(section.shape)
    parts = [
        overview.shrink(
            lambda y, x: section[y, x],
            (y, x, min(y + step, height), min(x + step, width)),
            factor,
        )
        for y in range(0, height, step)
        for x in range(0, width, step)
    ]
    return overview.joined(parts, section.shape, factor)


@pytest.mark.parametrize(
    ("shape", "factor"), [((900, 100), 1), ((3300, 1000), 4), ((92_000, 187_000), 256)]
)
def test_overviews_are_small(shape: tuple[int, int], factor: int) -> None:
    assert overview.factor_of(shape) == factor
    assert 512 < max(shape) / factor <= 1024


def test_parts_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    section = np.maximum(texture((2111, 1300), seed=1), 1)
    whole = shrunk(section)
    np.testing.assert_array_equal(shrunk(section, 512), whole)
    monkeypatch.setattr(overview, "_BAND_PX", 40_000)
    np.testing.assert_array_equal(shrunk(section), whole)
    factor = overview.factor_of(section.shape)
    assert whole[3, 5] == pytest.approx(
        section[3 * factor : 4 * factor, 5 * factor : 6 * factor].mean(), rel=1e-5
    )


def test_where_there_is_no_tissue_an_overview_is_even() -> None:
    section = np.maximum(texture((1400, 1400), seed=1), 1)
    section[:, 700:] = 0
    small = shrunk(section)
    assert np.ptp(small[:, 360:]) == 0
    assert small[0, -1] == pytest.approx(small[:, :340].mean(), rel=0.01)
    assert not shrunk(np.zeros((1400, 1400), np.uint8)).any()


@pytest.mark.parametrize(
    ("degrees", "shift"), [(0, (0, 0)), (170, (0, 0)), (3, (500, -400)), (-100, (300, -200))]
)
def test_any_rotation_and_large_shifts(degrees: float, shift: tuple[int, int]) -> None:
    plane = np.maximum(texture((3000, 2600), seed=1), 1)
    source = plane[600:2300, 500:2000]
    middle = (np.array(source.shape) - 1) / 2
    there = Affine.rigid(np.radians(degrees), middle, np.array(shift, float))
    back = np.linalg.inv(there.matrix)
    target = scipy.ndimage.affine_transform(
        plane, back, np.array([600, 500]) - back @ there.offset, output_shape=source.shape, order=1
    )
    factor = overview.factor_of(source.shape)
    found, share = overview.fit(shrunk(source), shrunk(target), factor)
    points = middle + np.array([[-300, -300], [300, 200], [0, 350]])
    assert share > 0.6
    assert np.linalg.norm(found(points) - there(points), axis=1).max() < 3
