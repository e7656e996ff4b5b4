from __future__ import annotations

import numpy as np
import pytest

from hyper.align import blocks
from hyper_matcher.align.blocks import Means, grown, join_blocks, render_window, within_block
from hyper_matcher.align.geometry import Affine, Mesh, PairMatches
from hyper_matcher.align.quality import join_quality, measure_pair, measure_windows
from hyper_matcher.align.render import Canvas, inverse_map, render_section
from tests.support.sections import texture


def _matches(points: np.ndarray, flag: str = "") -> PairMatches:
    n = len(points)
    return PairMatches(
        0, 1, Affine.rigid(0.1, np.zeros(2), np.array([3.0, 4.0])), 0.5, points,
        np.tile([1.0, 2.0], (n, 1)), np.ones(n), np.zeros(n), np.zeros(n, np.uint8), 0.1, flag,
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(1, 1024, 1024), (2, 3072, 500), (1, 8192, 9000), (1, 96, 96)])
def test_blocks_cover_a_section_once(shape: tuple[int, int, int]) -> None:
    cover = np.zeros((-(-shape[1] // 4), -(-shape[2] // 4)), int)
    for y0, x0, y1, x1 in blocks(shape):
        cover[-(-y0 // 4) : -(-y1 // 4), -(-x0 // 4) : -(-x1 // 4)] += 1
        assert max(y1 - y0, x1 - x0) <= 3072
    assert (cover == 1).all()


def test_each_match_belongs_to_one_block_and_maps_are_of_the_section() -> None:
    shape = (8192, 8192)
    every = np.random.default_rng(0).uniform(0, 8191, (400, 2))
    parts = []
    for core in blocks((1, *shape)):
        window = grown(core, 400, shape)
        low, high = np.array(window[:2]), np.array(window[2:])
        seen = every[((every >= low) & (every < high)).all(axis=1)]
        parts.append(within_block(_matches(seen - low), window, core))
        true = Affine.rigid(0.1, np.zeros(2), np.array([3.0, 4.0]))
        np.testing.assert_allclose(parts[-1].coarse(low + 10.0), true(np.array([10.0, 10])) + low)
    joined = join_blocks(parts)
    assert len(joined.source) == len(every)
    order = np.lexsort(joined.source.T), np.lexsort(every.T)
    np.testing.assert_allclose(joined.source[order[0]], every[order[1]])


def test_a_pair_is_flagged_where_most_of_its_blocks_are() -> None:
    points = np.zeros((3, 2))
    good, bad = _matches(points), _matches(points, "no coarse fit")
    assert join_blocks([good, good, bad]).flag == ""
    assert join_blocks([good, bad, bad]).flag == "2 of 3 blocks: no coarse fit"


def test_parts_of_the_canvas_are_those_of_the_whole() -> None:
    section = np.maximum(texture((300, 280)), 1)
    mesh = Mesh.over(section.shape, 40)
    rng = np.random.default_rng(1)
    turned = Affine.rigid(0.1, np.array([150.0, 140.0]), np.array([8.0, -5.0]))
    positions = turned(mesh.vertices) + rng.normal(0, 2, mesh.vertices.shape)
    canvas = Canvas((-10, -12), (320, 310))
    whole, valid = render_section(section, positions, mesh, canvas)
    for y, x, h, w in ((0, 0, 100, 100), (100, 0, 220, 150), (0, 200, 320, 110)):
        part = Canvas((canvas.origin[0] + y, canvas.origin[1] + x), (h, w))
        cut, known = render_window(
            inverse_map(positions, mesh, part), mesh.shape, "uint8", lambda a, b: section[a, b]
        )
        np.testing.assert_array_equal(known, valid[y : y + h, x : x + w])
        off = np.abs(cut.astype(int) - whole[y : y + h, x : x + w])
        assert off.max() <= 1
    nowhere = inverse_map(positions, mesh, Canvas((5000, 5000), (20, 20)))
    pixels, known = render_window(nowhere, mesh.shape, "uint16", lambda a, b: section[a, b])
    assert not known.any() and pixels.dtype == np.uint16


def test_quality_by_windows_is_that_of_the_whole() -> None:
    plane = texture((94 * 26, 300), seed=3)
    stack = np.stack([plane, np.roll(plane, 1, axis=0)])
    read = lambda z, y, x: stack[z, y, x]  # noqa: E731
    tall = lambda z, y, x: np.concatenate([stack[z], stack[z]])[y, x]  # noqa: E731
    by_windows = measure_windows((94 * 26, 300), read, 0, 1)
    whole = measure_pair(stack[0], stack[1], 0, 1)
    assert by_windows.cpc == pytest.approx(whole.cpc) and by_windows.tiles == whole.tiles
    assert by_windows.coverage > whole.coverage - 0.03
    assert by_windows.residuals.percentile(50) == pytest.approx(1.0, abs=0.05)
    shares = [measure_windows((94 * 52, 300), tall, 0, 1, share=(k, 2)) for k in (0, 1)]
    joined, at_once = join_quality(shares), measure_windows((94 * 52, 300), tall, 0, 1)
    assert joined.cpc == pytest.approx(at_once.cpc) and joined.tiles == at_once.tiles
    assert joined.residuals.to_json() == at_once.residuals.to_json()
    assert joined.tried == at_once.tried and joined.coverage == pytest.approx(
        at_once.coverage, abs=0.02
    )
    large = measure_windows(
        (94 * 60, 300), lambda z, y, x: np.resize(plane, (94 * 60, 300))[y, x], 0, 1
    )
    assert large.tiles == 60 * 3


def test_means_gather() -> None:
    mean = Means()
    assert mean.mean == 0.0
    mean.add(2.0, 1)
    mean.add(5.0, 3)
    assert mean.mean == pytest.approx(4.25)
