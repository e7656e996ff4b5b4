from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from hyper_matcher.align import springs as springs_module
from hyper_matcher.align.facts import facts_of
from hyper_matcher.align.geometry import (
    Affine,
    PairMatches,
    Points,
    Rejection,
    lattice,
    point_pairs,
)
from hyper_matcher.align.relax import RelaxedStack, relax
from hyper_matcher.align.springs import RelaxOptions
from hyper_matcher.jobs import why_nothing

_SHAPE = (400, 500)
_OPTIONS = RelaxOptions(spacing_px=50)
Placement = Callable[[Points], Points]


def _pair(
    source_z: int, target_z: int, places: list[Placement], *, wrong: float = 0.0, noise: float = 0.0
) -> PairMatches:
    """Exact matches of two sections whose true placements are known, some made wrong."""
    points = lattice(_SHAPE, 40, 10)
    world = places[source_z](points)
    goal = places[target_z]
    if isinstance(goal, Affine):
        target = goal.inverse()(world)
    else:
        target = points.copy()
        for _ in range(30):  # invert the target's placement
            target += world - goal(target)
    rng = np.random.default_rng(100 * source_z + target_z)
    moved = target - points + rng.normal(0, noise, points.shape)
    bad = rng.random(len(points)) < wrong
    moved[bad] += rng.uniform(-30, 30, (int(bad.sum()), 2))
    n = len(points)
    return PairMatches(
        source_z, target_z, Affine.fit(points, target), 1.0, points, moved, np.full(n, 0.6),
        np.full(n, 0.2), np.zeros(n, np.uint8), 0.0,
    )  # fmt: skip


def _bent(seed: int) -> Placement:
    rng = np.random.default_rng(seed)
    rigid = Affine.rigid(rng.uniform(-0.1, 0.1), np.array([200.0, 250.0]), rng.uniform(-40, 40, 2))
    phase, size = rng.uniform(0, 6, 2), rng.uniform(2, 5, 2)

    def place(points: Points) -> Points:
        return rigid(points) + size * np.sin(points[:, ::-1] / 110 + phase)

    return place


def _disagreement(stack: RelaxedStack, places: list[Placement], a: int, b: int) -> Points:
    """How far apart the stack puts points that truly lie on each other, px."""
    pair = _pair(a, b, places)
    inside = ((pair.source > 20) & (pair.source < np.array(_SHAPE) - 20)).all(axis=1)
    ends = []
    for z, points in ((a, pair.source), (b, pair.source + pair.displacement)):
        index, weight = stack.mesh.barycentric(points[inside])
        ends.append(np.einsum("nk,nkd->nd", weight, stack.positions[z][index]))
    return np.asarray(np.linalg.norm(ends[0] - ends[1], axis=1))


def _all_pairs(places: list[Placement], **options: float) -> list[PairMatches]:
    n = len(places)
    return [_pair(a, b, places, **options) for a in range(n) for b in range(a + 1, min(n, a + 4))]


def test_meshes_meet_where_the_tissue_is_the_same() -> None:
    places = [_bent(z) for z in range(6)]
    stack = relax(_SHAPE, 6, _all_pairs(places), _OPTIONS)
    assert stack.flagged == {}
    for z in range(5):
        error = _disagreement(stack, places, z, z + 1)
        assert np.median(error) < 0.15
        assert np.percentile(error, 95) < 0.8
    assert max(float(np.median(r)) for r in stack.residuals) < 0.15


def test_a_fifth_of_wrong_matches_does_not_matter() -> None:
    places = [_bent(z) for z in range(5)]
    stack = relax(_SHAPE, 5, _all_pairs(places, wrong=0.2, noise=0.2), _OPTIONS)
    for z in range(4):
        assert np.percentile(_disagreement(stack, places, z, z + 1), 95) < 1.5


def test_the_stack_as_a_whole_keeps_its_place_and_size() -> None:
    places = [_bent(z) for z in range(5)]
    stack = relax(_SHAPE, 5, _all_pairs(places), _OPTIONS)
    fits = [Affine.fit(stack.mesh.vertices, positions).matrix for positions in stack.positions]
    assert np.mean([np.linalg.det(fit) for fit in fits]) == pytest.approx(1, abs=2e-4)
    overall = Affine.fit_rigid(stack.mesh.vertices, stack.positions.mean(axis=0))
    assert overall.angle_rad == pytest.approx(0, abs=1e-4)
    assert overall.offset == pytest.approx(np.zeros(2), abs=0.05)


def test_sections_turned_against_each_other_keep_their_size() -> None:
    center = np.array([200.0, 250.0])
    turns = (0.0, 2.9, -1.3, 0.6)
    places: list[Placement] = [
        Affine.rigid(turn, center, np.array([30.0 * k, 9.0])) for k, turn in enumerate(turns)
    ]
    stack = relax(_SHAPE, 4, _all_pairs(places), _OPTIONS)
    for z in range(3):
        assert np.median(_disagreement(stack, places, z, z + 1)) < 0.1
    for positions in stack.positions:
        matrix = Affine.fit(stack.mesh.vertices, positions).matrix
        assert np.linalg.det(matrix) == pytest.approx(1, abs=0.01)


def test_a_missing_section_is_flagged_and_bridged() -> None:
    places = [_bent(z) for z in range(6)]
    pairs = _all_pairs(places)
    lost = 3
    silent = [
        PairMatches(
            p.source_z, p.target_z, p.coarse, 0.0, p.source, p.displacement, p.p1, p.p2,
            np.full(len(p.source), 1, np.uint8), 0.0, "no coarse fit",
        ) if lost in (p.source_z, p.target_z) else p
        for p in pairs
    ]  # fmt: skip
    stack = relax(_SHAPE, 6, silent, _OPTIONS)
    assert list(stack.flagged) == [lost]
    assert "only 0 matches" in stack.flagged[lost]
    assert np.isfinite(stack.positions).all()
    assert np.percentile(_disagreement(stack, places, 2, 4), 95) < 0.8


def test_a_stack_that_falls_apart_keeps_its_parts_and_says_so() -> None:
    places = [_bent(z) for z in range(6)]
    pairs = [p for p in _all_pairs(places) if (p.source_z < 4) == (p.target_z < 4)]
    stack = relax(_SHAPE, 6, [*pairs, pairs[0]], _OPTIONS)
    assert set(stack.flagged) == {4, 5}
    assert "joins" in stack.flagged[4]
    for a, b in ((0, 1), (2, 3), (4, 5)):
        assert np.percentile(_disagreement(stack, places, a, b), 95) < 0.8


def test_without_any_match_sections_stay_where_they_are() -> None:
    stack = relax(_SHAPE, 3, [], _OPTIONS)
    assert stack.positions == pytest.approx(np.stack([stack.mesh.vertices] * 3), abs=1e-6)
    assert set(stack.flagged) == {0, 1, 2}


def test_a_factorisation_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    places = [_bent(z) for z in range(3)]
    iterated = relax(_SHAPE, 3, _all_pairs(places), _OPTIONS)
    monkeypatch.setattr(springs_module, "_SOON", 1)
    direct = relax(_SHAPE, 3, _all_pairs(places), _OPTIONS)
    assert np.abs(direct.positions - iterated.positions).max() < 0.01
    monkeypatch.setattr(springs_module, "_BAND_BYTES", 0)
    patient = relax(_SHAPE, 3, _all_pairs(places), _OPTIONS)
    assert np.abs(direct.positions - patient.positions).max() < 0.01


def test_pairs_of_which_little_was_accepted_pull_little() -> None:
    places = [_bent(z) for z in range(4)]
    pairs = _all_pairs(places)
    for index, pair in enumerate(pairs):
        if pair.target_z - pair.source_z > 1:  # an eighth accepted, and that wrongly
            rejection = np.full(len(pair.source), 4, np.uint8)
            rejection[::8] = 0
            moved = pair.displacement + np.array([6.0, -5.0])
            pairs[index] = replace(pair, rejection=rejection, displacement=moved)
    stack = relax(_SHAPE, 4, pairs, _OPTIONS)
    for z in range(3):
        assert np.median(_disagreement(stack, places, z, z + 1)) < 0.3


def test_a_stack_of_nothing_says_so_in_a_line() -> None:
    places = [_bent(z) for z in range(3)]
    strangers, blanks = (
        [replace(p, rejection=np.full(len(p.source), k, np.uint8)) for p in _all_pairs(places)]
        for k in (Rejection.LOW_PEAK, Rejection.BLANK_TEMPLATE)
    )
    flagged = relax(_SHAPE, 3, strangers, _OPTIONS).flagged
    assert "failed for low peak" in why_nothing(flagged, [facts_of(p) for p in strangers])
    assert "has any contrast" in why_nothing(flagged, [facts_of(p) for p in blanks])


def test_known_points_join_what_matches_do_not() -> None:
    places = [_bent(z) for z in range(4)]
    pairs = [pair for pair in _all_pairs(places) if pair.source_z // 2 == pair.target_z // 2]
    truth = _pair(1, 2, places)
    chosen = np.random.default_rng(0).choice(len(truth.source), 12, replace=False)
    source = truth.source[chosen]
    target = source + truth.displacement[chosen]
    rows = [(2, *t, 1, *s) for s, t in zip(source, target, strict=True)]  # either way round
    apart = relax(_SHAPE, 4, pairs, _OPTIONS)
    assert apart.flagged
    stack = relax(_SHAPE, 4, pairs, _OPTIONS, point_pairs(rows))
    assert stack.flagged == {}
    error = _disagreement(stack, places, 1, 2)
    assert np.median(error) < 4.0  # between the points nobody knows
    at = [
        np.einsum("nk,nkd->nd", weight, stack.positions[z][index])
        for z, points in ((1, source), (2, target))
        for index, weight in [stack.mesh.barycentric(points)]
    ]
    assert np.linalg.norm(at[0] - at[1], axis=1).max() < 1.0


def test_a_known_point_outweighs_the_matches_round_it() -> None:
    places: list[Placement] = [Affine.identity(), Affine.identity()]
    point = (0, 200.0, 250.0, 1, 206.0, 250.0)
    stack = relax(_SHAPE, 2, _all_pairs(places), _OPTIONS, point_pairs([point]))
    ends = []
    for z, y in ((0, 200.0), (1, 206.0)):
        index, weight = stack.mesh.barycentric(np.array([[y, 250.0]]))
        ends.append(np.einsum("nk,nkd->nd", weight, stack.positions[z][index])[0])
    assert abs(ends[0][0] - ends[1][0]) < 2.0
