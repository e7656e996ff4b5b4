"""A stack relaxed by tiles is the stack relaxed as one."""

from __future__ import annotations

import itertools
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyper.align import (
    RELAX_FACTOR,
    RELAX_TURNS,
    AlignOptions,
    matches_every_px,
    mesh_spacing_px,
    mesh_spacings,
    relax_levels,
)
from hyper_matcher.align.facts import facts_of, join_facts, thin
from hyper_matcher.align.geometry import (
    Affine,
    Mesh,
    PairMatches,
    Rejection,
    lattice,
    point_pairs,
)
from hyper_matcher.align.levels import Tiling, near, within
from hyper_matcher.align.relax import RelaxedStack, relax
from hyper_matcher.align.springs import RelaxOptions
from hyper_matcher.align.tiled import ROUNDS, relax_tiled

_SHAPE = (700, 900)


def _place(z: int, points: np.ndarray) -> np.ndarray:
    """Where tissue of a section lies in the world: turned, moved, and smoothly bent."""
    rng = np.random.default_rng(z)
    turn = Affine.rigid(rng.uniform(-0.05, 0.05), np.array([350.0, 450.0]), rng.uniform(-20, 20, 2))
    phase, size = rng.uniform(0, 6, 2), rng.uniform(2, 5, 2)
    return np.asarray(turn(points) + size * np.sin(points[:, ::-1] / 90 + phase))


def _back(z: int, world: np.ndarray) -> np.ndarray:
    points = world.copy()
    for _ in range(25):
        points += world - _place(z, points)
    return points


def _pair(a: int, b: int, wrong: float = 0.1) -> PairMatches:
    points = lattice(_SHAPE, 18, 6)
    moved = _back(b, _place(a, points)) - points
    rng = np.random.default_rng(50 * a + b)
    moved += rng.normal(0, 0.2, points.shape)
    bad = rng.random(len(points)) < wrong
    moved[bad] += rng.uniform(-20, 20, (int(bad.sum()), 2))
    n = len(points)
    return PairMatches(
        a, b, Affine.fit(points, points + moved), 1.0, points, moved, np.full(n, 0.6),
        np.full(n, 0.2), np.zeros(n, np.uint8), 0.0,
    )  # fmt: skip


def _pairs(depth: int) -> list[PairMatches]:
    return [_pair(a, b) for a in range(depth) for b in range(a + 1, min(depth, a + 3))]


def _apart(stack: RelaxedStack, depth: int) -> np.ndarray:
    """(depth - 1, n): how far apart the same tissue is on neighbouring sections."""
    y, x = np.meshgrid(np.linspace(60, 640, 30), np.linspace(60, 840, 30), indexing="ij")
    world = np.stack([y.ravel(), x.ravel()], -1)
    places = []
    for z in range(depth):
        corner, weight = stack.mesh.barycentric(_back(z, world))
        places.append(np.einsum("nk,nkd->nd", weight, stack.positions[z][corner]))
    return np.asarray(np.linalg.norm(np.diff(np.stack(places), axis=0), axis=-1))


@pytest.mark.parametrize(("spacing_px", "budget", "levels"), [(20.0, 1500, 2), (20.0, 60, 3)])
def test_tiles_come_to_rest_where_the_whole_does(
    spacing_px: float, budget: int, levels: int
) -> None:
    depth, options = 4, RelaxOptions(spacing_px=spacing_px)
    meshes = mesh_spacings((depth, *_SHAPE), spacing_px, budget)
    assert len(meshes) == levels
    pairs = _pairs(depth)
    whole = relax(_SHAPE, depth, pairs, options)
    tiled = relax_tiled(_SHAPE, depth, pairs, options, levels=meshes, budget=budget)
    assert tiled.mesh == whole.mesh and tiled.flagged == whole.flagged
    for percent in (50, 95, 100):
        limit = 1.1 * np.percentile(_apart(whole, depth), percent) + 0.02
        assert np.percentile(_apart(tiled, depth), percent) < limit
    # and the stack lies where it came, at its size
    fit = Affine.fit(whole.positions.reshape(-1, 2), tiled.positions.reshape(-1, 2))
    assert np.abs(fit.matrix - np.eye(2)).max() < 0.01


def test_a_known_point_pulls_in_its_tile() -> None:
    options, pairs = RelaxOptions(spacing_px=20.0), [_pair(0, 1, wrong=0.0)]
    points = point_pairs([(0, 350.0, 450.0, 1, 380.0, 450.0)])
    free, held = (
        relax_tiled(_SHAPE, 2, pairs, options, known, levels=(60.0, 20.0), budget=900)
        for known in ([], points)
    )

    def off(stack: RelaxedStack) -> float:
        ends = []
        for z, place in ((0, (350.0, 450.0)), (1, (380.0, 450.0))):
            corner, weight = stack.mesh.barycentric(np.array([place]))
            ends.append(weight[0] @ stack.positions[z][corner[0]])
        return float(np.linalg.norm(ends[0] - ends[1]))

    assert off(held) < 0.7 * off(free)


def test_a_small_stack_is_relaxed_as_one() -> None:
    pairs, options = _pairs(3), RelaxOptions(spacing_px=60.0)
    whole = relax(_SHAPE, 3, pairs, options)
    np.testing.assert_array_equal(
        relax_tiled(_SHAPE, 3, pairs, options, levels=(60.0,), budget=10_000).positions,
        whole.positions,
    )


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 600), st.integers(60, 4000), st.integers(60, 2500),
    st.integers(40, 4000),
)  # fmt: skip
def test_every_vertex_belongs_to_one_tile(
    seed: int, depth: int, height: int, width: int, budget: int
) -> None:
    rng = np.random.default_rng(seed)
    mesh = Mesh.over((height, width), 40.0)
    rigid = [
        Affine.rigid(rng.uniform(-3, 3), np.array([height / 2, width / 2]), rng.normal(0, 200, 2))
        for _ in range(depth)
    ]
    tiling = Tiling.of(mesh, rigid, budget)
    z = int(rng.integers(depth))
    found = []
    plane = tiling.grid[0] * tiling.grid[1]
    for k in range(z // tiling.run * plane, (z // tiling.run + 1) * plane):
        tile = tiling[k]
        assert z in tile.sections
        vertices = near(mesh, rigid[z], tile, 0.0)
        found.append(vertices)
        # its surroundings are in the tiles it meets
        wide = near(mesh, rigid[z], tile, 300.0)
        rest = rigid[z](mesh.places(wide))
        met = tiling.meeting(tile, range(z, z + 1), 300.0)
        assert np.any([within(rest, tiling[m]) for m in met], axis=0).all()
    assert sorted(np.concatenate(found).tolist()) == list(range(mesh.rows * mesh.columns))
    assert sum(len(tiling[k].sections) for k in range(0, len(tiling), plane)) == depth


@settings(max_examples=200, deadline=None)
@given(
    st.integers(2, 10_000), st.integers(96, 200_000), st.integers(96, 200_000),
    st.sampled_from([0.0, 8.0, 48.0, 300.0]), st.integers(1000, 10**7),
)  # fmt: skip
def test_a_recipe_has_stages_for_all_meshes(
    depth: int, height: int, width: int, spacing_px: float, budget: int
) -> None:
    assert RELAX_TURNS == ROUNDS
    shape = (depth, height, width)
    options = AlignOptions(spacing_px=spacing_px, relax_vertices=budget)
    mesh_px = mesh_spacing_px(spacing_px or matches_every_px(160))
    found = mesh_spacings(shape, mesh_px, budget)
    assert len(found) - 1 <= relax_levels(shape, asdict(options))
    assert found[-1] == pytest.approx(mesh_px)
    assert all(a / b <= RELAX_FACTOR + 1e-6 for a, b in itertools.pairwise(found))


def test_a_cell_says_what_most_of_its_matches_say() -> None:
    pair = _pair(0, 1)
    pair.rejection[pair.source[:, 1] > 800] = Rejection.LOW_PEAK
    few = thin(pair, 100.0)
    assert len(few.source) == 7 * 9
    ok = few.accepted
    assert ok[few.source[:, 1] < 800].all() and not ok[few.source[:, 1] > 800].any()
    assert few.counts() == {"low_peak": 7}
    target = few.source + few.displacement
    off = np.linalg.norm(_place(1, target) - _place(0, few.source), axis=1)[ok]
    assert np.median(off) < 0.6 and off.max() < 2.5  # tissue bends within a cell
    nothing = thin(pair.part(np.zeros(len(pair.source), bool)), 100.0)
    assert len(nothing.source) == 0


def test_the_facts_of_blocks_add_up() -> None:
    pair = _pair(0, 1)
    pair.rejection[:30] = Rejection.LOW_PEAK
    pair.rejection[30:35] = Rejection.OUTSIDE
    left = pair.source[:, 1] < 400
    parts = [facts_of(pair.part(left)), facts_of(pair.part(~left))]
    assert join_facts(parts) == facts_of(pair)
    flagged = [facts_of(pair), *(join_facts([p]) for p in parts)]
    assert join_facts(flagged).flag == ""
