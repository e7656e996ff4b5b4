"""Slices taken apart, against numpy."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper.arrays import Selection

SHAPE = (5, 7, 4)
MODEL = np.arange(5 * 7 * 4).reshape(SHAPE)
bounds = st.none() | st.integers(-9, 9)
steps = st.none() | st.integers(-4, 4).filter(bool)
axis_keys = st.integers(-4, 3) | st.builds(slice, bounds, bounds, steps)
keys = st.lists(axis_keys, max_size=3).flatmap(
    lambda parts: (
        st.integers(0, len(parts)).map(lambda at: (*parts[:at], Ellipsis, *parts[at:]))
        | st.just(tuple(parts))
    )
)


@given(keys)
def test_reading_is_numpys(key: tuple[Any, ...]) -> None:
    selection = Selection.of(key, SHAPE)
    expected = MODEL[key]
    np.testing.assert_array_equal(selection.finish(MODEL[selection.forward]), expected)
    assert selection.shape == expected.shape
    assert selection.empty == (expected.size == 0)


@given(keys)
def test_writing_is_numpys(key: tuple[Any, ...]) -> None:
    selection = Selection.of(key, SHAPE)
    value = np.random.default_rng(0).integers(0, 99, selection.shape)
    expected, found = MODEL.copy(), MODEL.copy()
    expected[key] = value
    found[selection.forward] = selection.begin(value)
    np.testing.assert_array_equal(found, expected)


@given(keys, st.tuples(*(st.integers(1, n + 2) for n in SHAPE)))
def test_shards_are_touched_and_covered(key: tuple[Any, ...], lengths: tuple[int, ...]) -> None:
    selection = Selection.of(key, SHAPE)
    if selection.empty:
        return
    chosen = np.zeros(SHAPE, bool)
    chosen[key] = True
    covers = selection.covers(lengths, SHAPE)
    touched = set(itertools.product(*selection.shards(lengths)))
    grid = [range(-(-n // s)) for n, s in zip(SHAPE, lengths, strict=True)]
    stepped = any(r.step != 1 for r in selection.ranges)
    whole = True
    for index in itertools.product(*grid):
        box = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, lengths, strict=True))
        covered, full = covers("c/" + "/".join(map(str, index))), bool(chosen[box].all())
        assert full or not covered
        assert covered or stepped or not full  # of stepped axes it need not know
        if chosen[box].any():
            assert index in touched
            whole &= bool(chosen[box].all())
    assert not selection.whole(lengths, SHAPE) or whole


@pytest.mark.parametrize(
    "key", [5, -6, (0, 0, 0, 0), (..., ...), "x", 1.5, None, [0, 1], np.array([0])]
)
def test_what_cannot_select(key: Any) -> None:
    with pytest.raises((IndexError, TypeError)):
        Selection.of(key, SHAPE)
