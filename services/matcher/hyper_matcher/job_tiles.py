"""Tiles of a stack too large for one relaxation: what each reads of the others, and writes."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from hyper.align import blocks
from hyper_matcher.align.blocks import join_blocks
from hyper_matcher.align.facts import thin
from hyper_matcher.align.geometry import Mesh, PairMatches, Points, point_pairs
from hyper_matcher.align.levels import Tile, Tiling, near, options_at
from hyper_matcher.align.pipeline import pairs_of
from hyper_matcher.align.settle import Patch, Pulls, joined
from hyper_matcher.align.springs import RelaxOptions
from hyper_matcher.align.tiled import (
    LIMITS,
    REACH,
    ROUNDS,
    Start,
    from_coarser,
    from_patch,
    known_px,
    settle_tile,
)
from hyper_matcher.job_files import Coarse, Job, tile_file
from hyper_matcher.job_pairs import load_pair, match_file


def settle(job: Job, level: int, turn: int, number: int) -> int:
    """Relax a tile; returns how many vertices it has."""
    coarse, levels = job.load_coarse(), job.levels
    tiling = job.tiling(level, coarse.rigid)
    tile = tiling[number]
    anchor = _anchor(job, coarse, level, tiling, tile)
    start = anchor
    if turn > 1:
        start = from_patch(_read(job, tiling, level, turn - 1, tile, known_px(tiling)), tiling.mesh)
    thinned_px = None if level == len(levels) - 1 else levels[level]
    options = options_at(levels[level], RelaxOptions(spacing_px=levels[-1]))
    pulls = _pulls(job, coarse, tiling, tile, levels[level], thinned_px)
    moved = settle_tile(tiling, tile, coarse.rigid, start, anchor, pulls, options, LIMITS[turn - 1])
    job.session.write(tile_file(level, turn, number), _pack(moved))
    return len(moved.z)


def fields(job: Job, sections: range) -> NDArray[np.float64]:
    """(sections, n, 2): displacements of the finest mesh, in the common frame, px."""
    coarse = job.load_coarse()
    level = len(job.levels) - 1
    tiling = job.tiling(level, coarse.rigid)
    plane = tiling.grid[0] * tiling.grid[1]
    vertices = tiling.mesh.vertices
    moved = np.full((len(sections), len(vertices), 2), np.nan)
    for run in range(sections.start // tiling.run, (sections.stop - 1) // tiling.run + 1):
        for number in range(run * plane, (run + 1) * plane):
            patch = _unpack(job.session.read(tile_file(level, ROUNDS, number)))
            own = (patch.z >= sections.start) & (patch.z < sections.stop)
            moved[patch.z[own] - sections.start, patch.vertex[own]] = patch.displacement[own]
    for k, z in enumerate(sections):
        moved[k] = coarse.frame(coarse.rigid[z](vertices) + moved[k]) - vertices
    return moved


def _anchor(job: Job, coarse: Coarse, level: int, tiling: Tiling, tile: Tile) -> Start:
    """What the coarser mesh says."""
    if level == 1:
        return from_coarser(coarse.patch, coarse.mesh, tiling.mesh)
    before = job.tiling(level - 1, coarse.rigid)
    reach = known_px(tiling) + 3 * max(before.mesh.pitch)
    patch = _read(job, before, level - 1, ROUNDS, tile, reach)
    return from_coarser(patch, before.mesh, tiling.mesh)


def _read(job: Job, tiling: Tiling, level: int, turn: int, tile: Tile, by_px: float) -> Patch:
    """What tiles of a level have come to, near a tile of the same or a finer one."""
    sections = tiling.sections_round(tile, REACH)
    names = [tile_file(level, turn, k) for k in tiling.meeting(tile, sections, by_px)]
    return joined([_unpack(content) for content in job.read_files(names)], tiling.mesh)


def _pulls(
    job: Job, coarse: Coarse, tiling: Tiling, tile: Tile, spacing_px: float,
    thinned_px: float | None,
) -> list[Pulls]:  # fmt: skip
    """The matches that have to do with a tile, those of one pair after the other."""
    mesh, sections = tiling.mesh, tiling.sections_round(tile, REACH)
    found = []
    for a, b in pairs_of(job.shape[0], job.plan.neighbours):
        if a not in sections or b not in sections:
            continue
        pair = _near_matches(job, (a, b), mesh, near(mesh, coarse.rigid[a], tile, known_px(tiling)))
        if pair is None:
            continue
        total, tried, accepted = coarse.counts[(a, b)]
        per_vertex = spacing_px**2 / (mesh.shape[0] * mesh.shape[1]) * total
        if thinned_px is not None:
            pair, per_vertex = thin(pair, thinned_px), (spacing_px / thinned_px) ** 2
        found.append(Pulls(pair, per_vertex, accepted / max(1, tried)))
    points = point_pairs(job.settings["options"]["points"])
    return found + [Pulls(pair, 1.0, 1.0, certain=True) for pair in points]


def _near_matches(
    job: Job, pair: tuple[int, int], mesh: Mesh, vertices: NDArray[np.int64]
) -> PairMatches | None:
    """The matches whose source lies among these vertices; None where there is none to read."""
    if len(vertices) == 0:
        return None
    places = mesh.places(vertices)
    low, high = places.min(axis=0), places.max(axis=0)
    names = [
        match_file(*pair, block)
        for block, (y0, x0, y1, x1) in enumerate(blocks(job.shape))
        if y0 <= high[0] and y1 >= low[0] and x0 <= high[1] and x1 >= low[1]
    ]
    found = join_blocks([load_pair(content) for content in job.read_files(names)])
    return found.part(_between(found.source, low, high))


def _between(points: Points, low: Points, high: Points) -> NDArray[np.bool_]:
    return np.asarray(((points >= low) & (points <= high)).all(axis=1))


def _pack(patch: Patch) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer, z=patch.z.astype(np.int32), vertex=patch.vertex,
        displacement=patch.displacement.astype(np.float32),
    )  # fmt: skip
    return buffer.getvalue()


def _unpack(content: bytes) -> Patch:
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        return Patch(
            stored["z"].astype(np.int64), stored["vertex"],
            stored["displacement"].astype(np.float64),
        )  # fmt: skip
