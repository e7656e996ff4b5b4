"""Boxes against numpy's own idea of slices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_voxels import Box

SIZE = 8


@st.composite
def boxes(draw: st.DrawFn, ndim: int = 3) -> Box:
    edges = [
        sorted(draw(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)))) for _ in range(ndim)
    ]
    return Box(tuple(low for low, _ in edges), tuple(high for _, high in edges))


def mask(box: Box) -> np.ndarray:
    """The box painted into an array."""
    array = np.zeros((SIZE,) * box.ndim, bool)
    array[box.slices] = True
    return array


@given(boxes())
def test_shape_voxels_and_slices_agree(box: Box) -> None:
    painted = mask(box)
    assert painted.sum() == box.voxels
    assert painted[box.slices].shape == box.shape
    assert box.empty == (not painted.any())
    assert Box.at(box.start, box.shape) == box


@given(boxes(), boxes())
def test_intersection_is_what_both_paint(a: Box, b: Box) -> None:
    both = mask(a) & mask(b)
    assert (mask(a.intersect(b)) == both).all()
    assert a.overlaps(b) == bool(both.any())
    assert a.intersect(b).voxels == b.intersect(a).voxels
    assert a.covers(a.intersect(b))


@given(boxes(), boxes())
def test_covering_is_painting_over(a: Box, b: Box) -> None:
    assert a.covers(b) == bool((mask(a) >= mask(b)).all())


@given(boxes(), st.tuples(*[st.integers(0, SIZE - 1)] * 3))
def test_membership(box: Box, index: tuple[int, ...]) -> None:
    assert (index in box) == bool(mask(box)[index])


@given(st.lists(boxes(), min_size=1, max_size=4))
def test_bounding_covers_all_and_is_tight(many: list[Box]) -> None:
    bounds = Box.bounding(many)
    assert all(bounds.covers(box) for box in many)
    assert bounds.start == tuple(np.min([box.start for box in many], axis=0))
    assert bounds.stop == tuple(np.max([box.stop for box in many], axis=0))


@given(boxes(), st.tuples(*[st.integers(-5, 5)] * 3))
def test_moving_there_and_back(box: Box, offset: tuple[int, ...]) -> None:
    assert box.translate(offset).relative_to(offset) == box
    assert box.translate(offset).shape == box.shape


@given(boxes(), st.tuples(*[st.integers(0, 5)] * 3), st.tuples(*[st.integers(0, 5)] * 3))
def test_growing_there_and_back(box: Box, before: tuple[int, ...], after: tuple[int, ...]) -> None:
    grown = box.grow(before, after)
    assert grown.covers(box)
    assert grown.grow([-i for i in before], [-i for i in after]) == box


def test_what_is_not_a_box() -> None:
    with pytest.raises(ValueError, match="stops before it starts"):
        Box((3,), (2,))
    with pytest.raises(ValueError, match="1 starts and 2 stops"):
        Box((3,), (4, 5))
    with pytest.raises(ValueError, match="argument 2"):
        Box((0,), (1,)).intersect(Box((0, 0), (1, 1)))
    assert (1,) not in Box((0, 0), (2, 2))


def test_text() -> None:
    assert str(Box((0, 5), (3, 9))) == "0:3, 5:9"
    assert Box.of_shape(np.zeros((2, 3)).shape) == Box((0, 0), (2, 3))
