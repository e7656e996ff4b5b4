from __future__ import annotations

import numpy as np
import pytest

from hyper_matcher.align.geometry import Affine, Mesh
from hyper_matcher.align.render import (
    Canvas,
    choose_canvas,
    inverse_map,
    jacobians,
    kept_share,
    placed_px,
    render_section,
    tissue_kept,
)
from tests.support.sections import texture

_MESH = Mesh.over((120, 150), 30)
_SHIFT = np.array([10, -20])
_FRAME = Canvas((0, 0), (120, 150))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_identity_changes_nothing(dtype: type) -> None:
    section = texture((120, 150)).astype(dtype)
    rendered, valid = render_section(section, _MESH.vertices, _MESH, _FRAME)
    assert rendered.dtype == section.dtype
    assert (rendered == section).all()
    assert valid.all()


def test_a_shift_moves_pixels_and_leaves_no_tissue_behind() -> None:
    section = texture((120, 150))
    rendered, valid = render_section(section, _MESH.vertices + _SHIFT, _MESH, _FRAME)
    assert (rendered[10:, :130] == section[:110, 20:]).all()
    assert not valid[:10].any()
    assert not rendered[~valid].any()
    kept = tissue_kept(int(valid.sum()), placed_px(_MESH.vertices + _SHIFT, _MESH))
    assert kept == pytest.approx(110 * 130 / (119 * 149), abs=0.01)


def test_the_inverse_map_inverts() -> None:
    placement = Affine.rigid(0.1, np.array([60.0, 70.0]), np.array([3.0, 4.0]))
    maps = inverse_map(placement(_MESH.vertices), _MESH, Canvas((-40, -40), (220, 260)))
    inside = np.isfinite(maps[..., 0])
    pixels = np.argwhere(inside) - 40.0
    assert placement(maps[inside].astype(np.float64)) == pytest.approx(pixels, abs=1e-3)
    assert inside.sum() == pytest.approx(119 * 149, rel=0.01)


def test_jacobians_are_area_changes() -> None:
    assert jacobians(_MESH.vertices, _MESH) == pytest.approx(np.ones(len(_MESH.triangles)))
    assert jacobians(_MESH.vertices * (2, 0.75), _MESH) == pytest.approx(1.5)
    folded = _MESH.vertices.copy()
    folded[8, 1] += 100
    assert jacobians(folded, _MESH).min() < 0


def test_the_canvas_is_the_frame_where_that_keeps_the_tissue() -> None:
    near = np.stack([_MESH.vertices + 0.5, _MESH.vertices - 0.5])
    assert choose_canvas(near, _MESH) == _FRAME
    assert kept_share(near[0], _FRAME) == 1.0
    far = np.stack([_MESH.vertices, _MESH.vertices + np.array([15, -30])])
    canvas = choose_canvas(far, _MESH)
    assert canvas == Canvas((-1, -31), (137, 182))
    _, valid = render_section(texture((120, 150)), far[1], _MESH, canvas)
    assert valid.sum() == 120 * 150


def test_flagged_sections_do_not_decide_about_the_canvas() -> None:
    positions = np.stack([_MESH.vertices, _MESH.vertices + 500])
    assert choose_canvas(positions, _MESH, flagged=(1,)) == _FRAME
    assert choose_canvas(positions, _MESH, flagged=(0, 1)) != _FRAME
