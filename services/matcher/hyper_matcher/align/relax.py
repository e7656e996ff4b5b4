"""Relaxation of a whole stack of meshes.

Every section carries a triangular mesh. Springs inside a section hold its displacement from a rigid
placement smooth (first differences) and unbent (second differences); springs along the accepted
matches pull the two places of the same tissue together, with Huber weights that are computed again
each round, so that a wrong match loses its pull. The gauge is fixed by very weak springs to the
rigid placements, which are themselves fitted again to the meshes each round. The system is linear
and the same for y and x: conjugate gradients from where the round before ended, or one banded
factorisation where they do not come to an end soon and the band is narrow enough.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hyper_matcher.align.facts import PairFacts, facts_of
from hyper_matcher.align.geometry import Affine, Mesh, PairMatches, Points
from hyper_matcher.align.springs import RelaxOptions, all_springs, ends, inner_springs, solve

_MIN_PAIR = 6  # accepted matches below which a pair says nothing


@dataclass(frozen=True, slots=True)
class RelaxedStack:
    """Where every section's mesh came to rest.

    Args:
        mesh: the same for all sections.
        positions: (Z, n, 2), the vertices in the common frame, px.
        rigid: the rigid placement of each section.
        flagged: {section: why}.
        residuals: for each pair, (m,) distance of its accepted matches after relaxation, px.
        frame: what was done to the stack as a whole at the end: `positions` are its image.
    """

    mesh: Mesh
    positions: NDArray[np.float64]
    rigid: tuple[Affine, ...]
    flagged: dict[int, str]
    residuals: tuple[NDArray[np.float64], ...]
    frame: Affine = field(default_factory=Affine.identity)


def relax(
    shape: tuple[int, int],
    depth: int,
    pairs: Sequence[PairMatches],
    options: RelaxOptions | None = None,
    points: Sequence[PairMatches] = (),
    facts: Sequence[PairFacts] = (),
) -> RelaxedStack:
    """Place the meshes of `depth` sections of `shape` so that their matches meet.

    Sections without enough matches are flagged; those without any keep the placement of their
    nearest neighbour. `points`, few and known to be right (`point_pairs`), pull harder than all
    matches near them, and are never doubted. `facts` are of the pairs before they were thinned out.
    """
    options = options or RelaxOptions()
    mesh = Mesh.over(shape, options.spacing_px)
    usable = [pair for pair in pairs if pair.accepted.sum() >= _MIN_PAIR]
    joined = [*usable, *points]
    springs = all_springs(mesh, depth, usable, options, points)
    certain = np.zeros(len(springs.base), bool)
    certain[len(springs.base) - sum(len(pair.p1) for pair in points) :] = bool(points)
    rigid, part = rigid_placements(depth, joined)
    connected = part >= 0
    inner = sp.kron(sp.identity(depth), inner_springs(mesh, options))
    vertices = mesh.vertices
    count = len(vertices)
    positions = np.concatenate([placement(vertices) for placement in rigid])
    weights = springs.base
    for round_ in range(options.rounds):
        rest = np.concatenate([placement(vertices) for placement in rigid])
        displacement = positions - rest
        gap = ends(rigid, springs.source_z, springs.source) - ends(
            rigid, springs.target_z, springs.target
        )
        limit = options.huber_px * 2.0 ** max(0, 3 - round_)
        residual = np.linalg.norm(gap + springs.rows @ displacement, axis=1)
        if round_ > 0:
            doubt = np.minimum(1.0, limit / np.maximum(residual, 1e-9))
            weights = springs.base * np.where(certain, 1.0, doubt)
        displacement = solve(springs.rows, weights, gap, inner, displacement)
        positions = rest + displacement
        rigid = _refit(rigid, connected, vertices, positions.reshape(depth, count, 2))
    gap = springs.rows @ positions
    residual = np.linalg.norm(gap, axis=1)
    residuals = _by_pair(residual, usable, pairs)
    trusted = connected if connected.any() else np.ones(depth, bool)
    frame = _center(positions.reshape(depth, count, 2), vertices, trusted)
    placed = frame(positions).reshape(depth, count, 2)
    flagged = flags(depth, facts or [facts_of(pair) for pair in pairs], options)
    for z in np.flatnonzero(part > 0).tolist():
        flagged.setdefault(z, "no pair of sections joins it to the stack's main part")
    return RelaxedStack(mesh, placed, tuple(rigid), flagged, residuals, frame)


def rigid_placements(
    depth: int, pairs: Sequence[PairMatches]
) -> tuple[list[Affine], NDArray[np.int64]]:
    """Rigid placements along the strongest tree of pairs, and the part of the stack each is in.

    The tree is grown from the middle of the sections that have matches. Where the stack falls into
    parts that no pair joins, each further part (from 1 on) starts at its nearest placed neighbour's
    placement, and so does a section without any match (-1). Rigid, so that neither scale nor shear
    drifts along the stack.
    """
    links: dict[int, list[tuple[float, int, Affine]]] = {}
    for p in pairs:
        ok = p.accepted
        found = p.source[ok] + p.displacement[ok]
        strength = float(ok.sum()) / abs(p.target_z - p.source_z)
        fit = Affine.fit_rigid(p.source[ok], found, p.p1[ok])
        links.setdefault(p.source_z, []).append((strength, p.target_z, fit.inverse()))
        links.setdefault(p.target_z, []).append((strength, p.source_z, fit))
    placed: dict[int, Affine] = {}
    part = np.full(depth, -1, np.int64)
    order = itertools.count()  # decides between equals
    for root in sorted(links, key=lambda z: abs(z - depth // 2)):
        if root in placed:
            continue
        start = _nearest(placed, root)
        number = int(part.max()) + 1
        heap: list[tuple[float, int, int, Affine]] = [(0.0, next(order), root, start)]
        while heap:
            _, _, z, placement = heapq.heappop(heap)
            if z in placed:
                continue
            placed[z], part[z] = placement, number
            for strength, other, step in links[z]:
                if other not in placed:
                    heapq.heappush(heap, (-strength, next(order), other, step.then(placement)))
    return [placed[z] if z in placed else _nearest(placed, z) for z in range(depth)], part


def _nearest(placed: dict[int, Affine], z: int) -> Affine:
    if not placed:
        return Affine.identity()
    return placed[min(placed, key=lambda other: abs(other - z))]


def flags(depth: int, pairs: Sequence[PairFacts], options: RelaxOptions) -> dict[int, str]:
    """Sections that cannot be trusted, and why."""
    accepted, tried = np.zeros(depth, np.int64), np.zeros(depth, np.int64)
    linked = np.zeros(depth, np.int64)
    touched = np.zeros(depth, np.int64)
    for pair in pairs:
        for z in (pair.source_z, pair.target_z):
            accepted[z] += pair.accepted
            tried[z] += pair.tried
            linked[z] += pair.flag == ""
            touched[z] += 1
    found = {}
    for z in range(depth):
        if not touched[z]:
            found[z] = "no pair was matched"
        elif accepted[z] < min(options.min_matches, max(6, tried[z] // 8)):
            found[z] = f"only {accepted[z]} matches"
        elif not linked[z]:
            found[z] = f"{1 - accepted[z] / tried[z]:.0%} of its matches rejected"
    return found


def _refit(
    rigid: list[Affine], connected: NDArray[np.bool_], vertices: Points, positions: NDArray[Any]
) -> list[Affine]:
    return [
        Affine.fit_rigid(vertices, positions[z]) if connected[z] else rigid[z]
        for z in range(len(rigid))
    ]


def _by_pair(
    residual: NDArray[np.float64], usable: Sequence[PairMatches], pairs: Sequence[PairMatches]
) -> tuple[NDArray[np.float64], ...]:
    ends = np.cumsum([0] + [int(p.accepted.sum()) for p in usable])
    parts = {id(p): residual[ends[k] : ends[k + 1]] for k, p in enumerate(usable)}
    return tuple(parts.get(id(p), np.zeros(0)) for p in pairs)


def _center(positions: NDArray[np.float64], vertices: Points, trusted: NDArray[np.bool_]) -> Affine:
    """Maps the stack as a whole so that its mean section lies as it came, size and shape too.

    Springs along matches alone are shortest when everything shrinks; this takes that bias out. It
    is measured section by section, as the part of each that is no rotation: the mean of sections
    that are turned against each other is small, whatever their size.
    """
    stretch = np.mean(
        [_stretch(Affine.fit(vertices, p).matrix) for p in positions[trusted]], axis=0
    )
    sized = Affine(np.asarray(np.linalg.inv(stretch), np.float64), np.zeros(2))
    return sized.then(Affine.fit_rigid(sized(positions[trusted].mean(axis=0)), vertices))


def _stretch(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric factor of stretch @ rotation."""
    left, sizes, _ = np.linalg.svd(matrix)
    return np.asarray((left * sizes) @ left.T)
