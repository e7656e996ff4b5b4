"""Lengths kept as counts say what the lengths themselves would."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyper_matcher.align.lengths import NONE, Lengths

LISTS = st.lists(st.integers(0, 3_000).map(lambda k: k / 100), max_size=60)


@given(st.lists(LISTS, min_size=1, max_size=4), st.floats(0, 100))
def test_percentiles_are_those_of_the_list(parts: list[list[float]], share: float) -> None:
    joined = Lengths.joined([Lengths.of(part) for part in parts])
    whole = [value for part in parts for value in part]
    assert len(joined) == len(whole)
    if whole:
        assert joined.percentile(share) == pytest.approx(np.percentile(whole, share), abs=1e-9)
        assert joined.share_over(10.0) == pytest.approx(np.mean(np.array(whole) > 10.0))
    else:
        assert joined.percentile(share) is None
        assert joined.share_over(10.0) is None


@given(LISTS)
def test_they_survive_json(values: list[float]) -> None:
    there = Lengths.of(values)
    back = Lengths.from_json(json.loads(json.dumps(there.to_json())))
    assert back.px.tolist() == sorted(set(values)) == there.px.tolist()
    assert back.counts.tolist() == there.counts.tolist()
    assert Lengths.joined([NONE, there]).counts.tolist() == there.counts.tolist()


def test_a_million_take_the_room_of_a_few_thousand() -> None:
    many = Lengths.of(np.abs(np.random.default_rng(0).normal(0, 4, 1_000_000)))
    assert len(many) == 1_000_000
    assert len(many.hundredths) < 3_000
