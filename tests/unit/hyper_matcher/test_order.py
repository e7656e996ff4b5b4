from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hyper_matcher.align.facts import PairFacts, facts_of
from hyper_matcher.align.geometry import Affine, PairMatches, Rejection
from hyper_matcher.align.order import failed_pairs, resemblance, swapped_sections
from hyper_matcher.align.pipeline import pairs_of


def _matched(a: int, b: int, p1: float, accepted: int = 90, tried: int = 100) -> PairMatches:
    rejection = np.where(np.arange(tried) < accepted, 0, 10).astype(np.uint8)
    points = np.zeros((tried, 2))
    return PairMatches(
        a, b, Affine.identity(), 1.0, points, points, np.full(tried, p1), np.zeros(tried),
        rejection, 0.0, "" if accepted else "no coarse fit",
    )  # fmt: skip


def _pair(a: int, b: int, p1: float, accepted: int = 90, tried: int = 100) -> PairFacts:
    return facts_of(_matched(a, b, p1, accepted, tried))


def _stack(order: list[int], bad: int = -1) -> list[PairFacts]:
    """Pairs of sections that lie at the depths `order`; the `bad` one resembles all less."""
    found = []
    for a, b in pairs_of(len(order), 3):
        apart = abs(order[a] - order[b])
        found.append(_pair(a, b, 0.6 * 0.7 ** (apart - 1) * (0.6 if bad in (a, b) else 1.0)))
    return found


def test_a_stack_in_order_is_not_doubted() -> None:
    assert swapped_sections(8, _stack(list(range(8)))) == {}


@pytest.mark.parametrize("at", [1, 3, 5])
def test_two_swapped_sections_are_named(at: int) -> None:
    order = list(range(8))
    order[at], order[at + 1] = order[at + 1], order[at]
    found = swapped_sections(8, _stack(order))
    assert set(found) == {at, at + 1}
    assert f"swapped with section {at + 1}" in found[at]


@pytest.mark.parametrize("bad", range(8))
def test_a_bad_section_is_no_swap(bad: int) -> None:
    assert swapped_sections(8, _stack(list(range(8)), bad)) == {}


def test_neighbours_that_do_not_match_are_named() -> None:
    pairs = [_pair(0, 1, 0.5), _pair(1, 2, 0.0, accepted=0), _pair(2, 3, 0.5, accepted=20)]
    assert [(a, b) for a, b, _ in failed_pairs(4, pairs)] == [(1, 2), (2, 3)]
    assert failed_pairs(4, pairs)[0][2] == "no coarse fit"


def test_a_section_left_out_on_purpose_is_bridged() -> None:
    pairs = [_pair(0, 1, 0.0, accepted=0), _pair(1, 2, 0.0, accepted=0), _pair(0, 2, 0.4)]
    assert failed_pairs(3, pairs, {1: "excluded"}) == []
    assert failed_pairs(5, [], [1, 2, 3])[0][:2] == (0, 4)


def test_nothing_resembles_nothing() -> None:
    assert resemblance(_pair(0, 1, 0.5, accepted=0)) == 0.0


def test_a_small_overlap_that_few_blocks_agree_on_is_no_proof() -> None:
    pair = _matched(0, 1, 0.5, accepted=20, tried=20)
    far = np.concatenate([pair.rejection, np.full(80, Rejection.OUTSIDE, np.uint8)])
    few = facts_of(replace(pair, rejection=far, p1=np.full(100, 0.5), coarse_score=0.4))
    assert "share 20% alone" in failed_pairs(2, [few])[0][2]
    assert failed_pairs(2, [replace(few, coarse_score=0.8)]) == []
