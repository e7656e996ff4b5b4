"""A whole stack relaxed by tiles: the steps that the tasks of a job take one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.facts import facts_of, thin
from hyper_matcher.align.geometry import Affine, Mesh, PairMatches, Points
from hyper_matcher.align.levels import (
    OVERLAP,
    RING,
    Tile,
    Tiling,
    near,
    options_at,
    within,
)
from hyper_matcher.align.relax import RelaxedStack, relax
from hyper_matcher.align.settle import Patch, Pulls, finer, joined, settle
from hyper_matcher.align.springs import RelaxOptions

ROUNDS = 2  # of exchange between the tiles of a level
LIMITS = ((2.0, 1.0), (1.0, 1.0))  # of each: how far from its place a match keeps its full pull
GAUGE = 3e-3  # of the springs to what the coarser mesh says
REACH = 8  # sections: the most between the two of a pair
Start = Callable[[int, NDArray[np.int64]], Points]


def known_px(tiling: Tiling) -> float:
    """How far beyond a tile its surroundings are looked at."""
    return (OVERLAP + RING) * max(tiling.mesh.pitch)


def settle_tile(
    tiling: Tiling,
    tile: Tile,
    rigid: Sequence[Affine],
    start: Start,
    anchor: Start,
    pulls: Sequence[Pulls],
    options: RelaxOptions,
    limits: Sequence[float],
) -> Patch:
    """Where a tile's own vertices come to rest.

    Args:
        tiling: of the level.
        tile: one of them.
        rigid: placement of every section.
        start: displacements of vertices of a section, as they are now.
        anchor: as the coarser mesh has them.
        pulls: matches of pairs that have a section in the tile, with the options' weights.
        options: for the level's mesh.
        limits: see `settle`.
    """
    mesh = tiling.mesh
    moving = tiling.sections_round(tile)
    parts, held, free, own = [], [], [], []
    for z in tiling.sections_round(tile, REACH):
        vertices = near(mesh, rigid[z], tile, known_px(tiling))
        rest = rigid[z](mesh.places(vertices))
        parts.append(Patch(np.full(len(vertices), z), vertices, start(z, vertices)))
        held.append(anchor(z, vertices))
        free.append(within(rest, tile, OVERLAP * max(mesh.pitch)) & (z in moving))
        own.append(within(rest, tile) & (z in tile.sections))
    patch = joined(parts, mesh)
    moved = settle(
        mesh, rigid, patch, np.concatenate(held), np.concatenate(free), pulls,
        replace(options, gauge=GAUGE), limits,
    )  # fmt: skip
    kept = np.concatenate(own)
    return Patch(patch.z[kept], patch.vertex[kept], moved[kept])


def from_patch(patch: Patch, mesh: Mesh) -> Start:
    """Displacements out of a patch of the same mesh that has them all."""

    def start(z: int, vertices: NDArray[np.int64]) -> Points:
        at, known = patch.find(mesh, np.full(len(vertices), z), vertices)
        if not known.all():
            raise ValueError(f"{int((~known).sum())} vertices of section {z} are not known")
        return np.asarray(patch.displacement[at])

    return start


def from_coarser(patch: Patch, coarse: Mesh, mesh: Mesh) -> Start:
    """Displacements read off a coarser mesh's patch."""
    return lambda z, vertices: finer(patch, coarse, mesh, z, vertices)


def patch_of(relaxed: RelaxedStack) -> Patch:
    """A stack relaxed as one, its displacements before it was centred as a whole."""
    depth, count = relaxed.positions.shape[:2]
    places = relaxed.frame.inverse()(relaxed.positions)
    vertices = relaxed.mesh.vertices
    rest = np.stack([placement(vertices) for placement in relaxed.rigid])
    z = np.repeat(np.arange(depth), count)
    return Patch(z, np.tile(np.arange(count), depth), (places - rest).reshape(-1, 2))


def relax_tiled(
    shape: tuple[int, int],
    depth: int,
    pairs: Sequence[PairMatches],
    options: RelaxOptions | None = None,
    points: Sequence[PairMatches] = (),
    *,
    levels: Sequence[float],
    budget: int,
    rounds: int = ROUNDS,
) -> RelaxedStack:
    """`relax`, mesh by mesh and tile by tile.

    The residuals of the result are those of the coarsest mesh.

    Args:
        shape: of a section.
        depth: of the stack.
        pairs: all matches.
        options: for the finest mesh.
        points: known ones.
        levels: spacings of the meshes, the coarsest, which is relaxed as one, first.
        budget: vertices of a tile.
        rounds: of exchange between the tiles of a mesh.
    """
    options = options or RelaxOptions()
    if len(levels) == 1:
        return relax(shape, depth, pairs, options, points)
    coarse = relax(
        shape, depth, [thin(pair, levels[0]) for pair in pairs], options_at(levels[0], options),
        points, [facts_of(pair) for pair in pairs],
    )  # fmt: skip
    patch, before = patch_of(coarse), coarse.mesh
    for spacing in levels[1:]:
        mesh, at_level = Mesh.over(shape, spacing), options_at(spacing, options)
        tiling = Tiling.of(mesh, coarse.rigid, budget)
        thinned_px = None if spacing == levels[-1] else spacing
        pulls = [pulls_of(pair, mesh, spacing, thinned_px) for pair in pairs]
        pulls += [Pulls(pair, 1.0, 1.0, certain=True) for pair in points]
        start = anchor = from_coarser(patch, before, mesh)
        for round_ in range(rounds):
            limits = LIMITS[min(round_, len(LIMITS) - 1)]
            parts = [
                settle_tile(tiling, tiling[k], coarse.rigid, start, anchor, pulls, at_level, limits)
                for k in range(len(tiling))
            ]
            patch = joined(parts, mesh)
            start = from_patch(patch, mesh)
        before = mesh
    vertices = before.vertices
    rest = np.stack([placement(vertices) for placement in coarse.rigid])
    placed = coarse.frame(rest + patch.displacement.reshape(depth, -1, 2))
    return RelaxedStack(
        before, placed, coarse.rigid, coarse.flagged, coarse.residuals, coarse.frame
    )


def pulls_of(pair: PairMatches, mesh: Mesh, spacing_px: float, thinned_px: float | None) -> Pulls:
    """A whole pair's pulls, its matches thinned to cells of so many px, or as they are."""
    height, width = mesh.shape
    share = int(pair.accepted.sum()) / max(1, pair.tried)
    if thinned_px is not None:
        return Pulls(thin(pair, thinned_px), (spacing_px / thinned_px) ** 2, share)
    return Pulls(pair, spacing_px**2 / (height * width) * len(pair.rejection), share)
