"""Fields that are made tile by tile join without a seam."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.align import blocks
from hyper_matcher.align import fading
from hyper_matcher.align.blocks import Span, grown
from tests.support.sections import texture


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fading, "RAMP_PX", 12)


def smooth(shape: tuple[int, int]) -> np.ndarray:
    """A field (H, W, 2) that a grid of every second pixel can hold."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([3 * np.sin(y / 40) + x / 50, 2 * np.cos(x / 30) - y / 70], -1).astype("f4")


@given(st.integers(60, 400), st.integers(60, 400), st.data())
@settings(max_examples=40)
def test_a_field_comes_back_whole(height: int, width: int, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fading, "RAMP_PX", 12)
        shape, field = (height, width), smooth((height, width))
        tiles = []
        for core in blocks((1, *shape), 50):
            window = grown(core, 20, shape)
            y0, x0, y1, x1 = window
            tiles.append(fading.keep(core, window, field[y0:y1, x0:x1], shape))
        ends = [sorted(data.draw(st.lists(st.integers(0, edge), min_size=2, max_size=2,
                                          unique=True))) for edge in shape]  # fmt: skip
        part: Span = (ends[0][0], ends[1][0], ends[0][1], ends[1][1])
        found = fading.faded(tiles, part, shape)
    expected = field[part[0] : part[2], part[1] : part[3]]
    np.testing.assert_allclose(found, expected, atol=0.12)


def test_tiles_that_disagree_fade(small_tiles: None) -> None:
    shape = (40, 200)
    ones = np.ones((*shape, 2), np.float32)
    cores = [(0, 0, 40, 100), (0, 100, 40, 200)]
    tiles = [
        fading.keep(core, (0, 0, *shape), (k + 1) * ones, shape) for k, core in enumerate(cores)
    ]
    line = fading.faded(tiles, (0, 0, *shape), shape)[20, :, 0]
    assert line[:88] == pytest.approx(1) and line[112:] == pytest.approx(2)
    assert np.diff(line).max() < 0.05 and (np.diff(line) > -1e-6).all()


def test_refined_tile_by_tile_a_section_lies_where_it_lies_as_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    deep = pytest.importorskip("hyper_matcher.align.deep", reason="needs torch")
    monkeypatch.setattr(fading, "RAMP_PX", 32)
    plane = np.maximum(texture((480, 480), seed=5), 1)
    true = smooth(plane.shape) / 2
    moved = np.maximum(deep.warp_by(plane, true), 1).astype(np.uint8)
    options = deep.DeepOptions(factors=(8, 4, 2), steps=40)
    whole = deep.refine_section(moved, [(1, plane)], options)
    tiles = []
    for core in blocks((1, 480, 480), 240):
        y0, x0, y1, x1 = window = grown(core, 96, (480, 480))
        field = deep.refine_section(moved[y0:y1, x0:x1], [(1, plane[y0:y1, x0:x1])], options)
        tiles.append(fading.keep(core, window, field, (480, 480)))
    assert len(tiles) == 4
    joined = fading.faded(tiles, (0, 0, 480, 480), (480, 480))
    off = np.linalg.norm(joined - whole, axis=-1)[40:-40, 40:-40]
    assert np.median(np.linalg.norm(whole, axis=-1)) > 0.8
    assert np.percentile(off, 99) < 0.3, np.percentile(off, [50, 95, 99])
    steps = np.abs(np.diff(joined, axis=1))[40:-40, 232:247].max()
    assert steps < 1.5 * np.abs(np.diff(whole, axis=1))[40:-40, 40:-40].max()
