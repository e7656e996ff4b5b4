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
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import cg

from hyper_matcher.align.geometry import Affine, Mesh, PairMatches, Points

_MIN_PAIR = 6  # accepted matches below which a pair says nothing
_SOUND = 0.6  # share of accepted matches from which a pair has its full pull
_BAND_BYTES = 256 * 1024**2  # a wider band is not factorised: conjugate gradients must do
_TOLERANCE = 1e-7  # of the conjugate gradients' residual
_SOON, _LAST = 2000, 20_000  # of their steps: with and without a factorisation to fall back on


@dataclass(frozen=True, slots=True)
class RelaxOptions:
    """Stiffness of the springs.

    Args:
        spacing_px: of the mesh.
        stretch: stiffness against first differences of the displacement.
        bend: against second differences.
        gauge: against the distance from the rigid placement.
        distance_weights: pull of matches to z + 1, z + 2, z + 3.
        huber_px: residual above which a match's pull stops growing.
        point: pull of a pair of known points; all matches near a vertex together have about 1.
        rounds: of reweighting.
        min_matches: sections with fewer accepted matches, over all pairs, are flagged.
    """

    spacing_px: float = 40.0
    stretch: float = 0.006
    bend: float = 0.15
    gauge: float = 1e-5
    distance_weights: tuple[float, ...] = (1.0, 0.5, 0.25)
    huber_px: float = 1.0
    point: float = 8.0
    rounds: int = 6
    min_matches: int = 100


@dataclass(frozen=True, slots=True)
class RelaxedStack:
    """Where every section's mesh came to rest.

    Args:
        mesh: the same for all sections.
        positions: (Z, n, 2), the vertices in the common frame, px.
        rigid: the rigid placement of each section.
        flagged: {section: why}.
        residuals: for each pair, (m,) distance of its accepted matches after relaxation, px.
    """

    mesh: Mesh
    positions: NDArray[np.float64]
    rigid: tuple[Affine, ...]
    flagged: dict[int, str]
    residuals: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, slots=True)
class _Springs:
    """The accepted matches of all pairs as rows of sparse matrices over the unknowns."""

    rows: sp.csr_matrix  # (m, Z n): source vertices' weights minus target vertices'
    source_z: NDArray[np.int64]
    target_z: NDArray[np.int64]
    source: Points
    target: Points
    base: NDArray[np.float64]


def relax(
    shape: tuple[int, int],
    depth: int,
    pairs: Sequence[PairMatches],
    options: RelaxOptions | None = None,
    points: Sequence[PairMatches] = (),
) -> RelaxedStack:
    """Place the meshes of `depth` sections of `shape` so that their matches meet.

    Sections without enough matches are flagged; those without any keep the placement of their
    nearest neighbour. `points`, few and known to be right (`point_pairs`), pull harder than all
    matches near them, and are never doubted.
    """
    options = options or RelaxOptions()
    mesh = Mesh.over(shape, options.spacing_px)
    usable = [pair for pair in pairs if pair.accepted.sum() >= _MIN_PAIR]
    joined = [*usable, *points]
    springs = _springs(mesh, depth, usable, options, points)
    certain = np.zeros(len(springs.base), bool)
    certain[len(springs.base) - sum(len(pair.p1) for pair in points) :] = bool(points)
    rigid, part = rigid_placements(depth, joined)
    connected = part >= 0
    inner = _inner_springs(mesh, options)
    vertices = mesh.vertices
    count = len(vertices)
    positions = np.concatenate([placement(vertices) for placement in rigid])
    weights = springs.base
    for round_ in range(options.rounds):
        rest = np.concatenate([placement(vertices) for placement in rigid])
        displacement = positions - rest
        gap = _ends(rigid, springs.source_z, springs.source) - _ends(
            rigid, springs.target_z, springs.target
        )
        limit = options.huber_px * 2.0 ** max(0, 3 - round_)
        residual = np.linalg.norm(gap + springs.rows @ displacement, axis=1)
        if round_ > 0:
            doubt = np.minimum(1.0, limit / np.maximum(residual, 1e-9))
            weights = springs.base * np.where(certain, 1.0, doubt)
        displacement = _solve(springs.rows, weights, gap, inner, depth, displacement)
        positions = rest + displacement
        rigid = _refit(rigid, connected, vertices, positions.reshape(depth, count, 2))
    gap = springs.rows @ positions
    residual = np.linalg.norm(gap, axis=1)
    residuals = _by_pair(residual, usable, pairs)
    trusted = connected if connected.any() else np.ones(depth, bool)
    placed = _center(positions.reshape(depth, count, 2), vertices, trusted)
    flagged = flags(depth, pairs, options)
    for z in np.flatnonzero(part > 0).tolist():
        flagged.setdefault(z, "no pair of sections joins it to the stack's main part")
    return RelaxedStack(mesh, placed, tuple(rigid), flagged, residuals)


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


def flags(depth: int, pairs: Sequence[PairMatches], options: RelaxOptions) -> dict[int, str]:
    """Sections that cannot be trusted, and why."""
    accepted, tried = np.zeros(depth, np.int64), np.zeros(depth, np.int64)
    linked = np.zeros(depth, np.int64)
    touched = np.zeros(depth, np.int64)
    for pair in pairs:
        for z in (pair.source_z, pair.target_z):
            accepted[z] += int(pair.accepted.sum())
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


def _springs(
    mesh: Mesh,
    depth: int,
    matched: Sequence[PairMatches],
    options: RelaxOptions,
    points: Sequence[PairMatches],
) -> _Springs:
    """Of the matched pairs, then of the known points."""
    count = mesh.rows * mesh.columns
    pairs = [*matched, *points]
    source = [np.zeros((0, 2))] + [p.source[p.accepted] for p in pairs]
    target = [np.zeros((0, 2))] + [(p.source + p.displacement)[p.accepted] for p in pairs]
    sizes = [len(part) for part in source[1:]]
    source_z = np.repeat(np.array([p.source_z for p in pairs], np.int64), sizes)
    target_z = np.repeat(np.array([p.target_z for p in pairs], np.int64), sizes)
    s, t = np.concatenate(source), np.concatenate(target)
    total = len(s)
    index_s, weight_s = mesh.barycentric(s)
    index_t, weight_t = mesh.barycentric(t)
    index_s, index_t = index_s + count * source_z[:, None], index_t + count * target_z[:, None]
    columns = np.concatenate([index_s, index_t], 1)
    values = np.concatenate([weight_s, -weight_t], 1)
    rows = sp.csr_matrix(
        (values.ravel(), columns.ravel(), 6 * np.arange(total + 1)), shape=(total, depth * count)
    )
    base = [np.zeros(0)]
    density = (options.spacing_px**2) / (mesh.shape[0] * mesh.shape[1])
    for pair in matched:
        far = abs(pair.target_z - pair.source_z)
        by_distance = options.distance_weights[min(far, len(options.distance_weights)) - 1]
        score = np.clip(pair.p1[pair.accepted], 0.05, 1.0)
        share = by_distance / max(density * len(pair.rejection), 1e-9)  # the same pull a vertex
        trust = min(1.0, len(score) / max(1, pair.tried) / _SOUND) ** 2
        base.append(share * trust * score / 0.6)
    base += [np.full(len(pair.p1), options.point) for pair in points]
    return _Springs(rows, source_z, target_z, s, t, np.concatenate(base))


def _inner_springs(mesh: Mesh, options: RelaxOptions) -> sp.csr_matrix:
    """Stiffness matrix of one section's displacement: stretch, bend and gauge."""
    count = mesh.rows * mesh.columns
    edges = mesh.edges
    ones = np.ones(len(edges))
    number = np.arange(len(edges))
    first = sp.csr_matrix(
        (
            np.concatenate([ones, -ones]),
            (np.concatenate([number, number]), np.concatenate([edges[:, 0], edges[:, 1]])),
        ),
        shape=(len(edges), count),
    )
    second = sp.vstack([_second(mesh, 0), _second(mesh, 1)]).tocsr()
    stiffness = options.stretch * (first.T @ first) + options.bend * (second.T @ second)
    return (stiffness + options.gauge * sp.identity(count)).tocsr()


def _second(mesh: Mesh, axis: int) -> sp.csr_matrix:
    """Second differences along an axis of the grid."""
    grid = np.arange(mesh.rows * mesh.columns).reshape(mesh.rows, mesh.columns)
    lines = grid if axis == 0 else grid.T
    if len(lines) < 3:
        return sp.csr_matrix((0, grid.size))
    triples = np.stack([lines[:-2].ravel(), lines[1:-1].ravel(), lines[2:].ravel()], -1)
    values = np.tile([1.0, -2.0, 1.0], len(triples))
    rows = np.repeat(np.arange(len(triples)), 3)
    return sp.csr_matrix((values, (rows, triples.ravel())), shape=(len(triples), grid.size))


def _solve(
    rows: sp.csr_matrix,
    weights: NDArray[np.float64],
    gap: NDArray[np.float64],
    inner: sp.csr_matrix,
    depth: int,
    start: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Displacements (Z n, 2) that minimise the energy for these weights."""
    weighted = sp.diags(weights) @ rows
    system = (rows.T @ weighted + sp.kron(sp.identity(depth), inner)).tocsr()
    right = -(weighted.T @ gap)
    scale = sp.diags(1.0 / system.diagonal())

    def iterate(steps: int) -> tuple[NDArray[np.float64], bool]:
        columns = [
            cg(system, right[:, k], x0=start[:, k], rtol=_TOLERANCE, maxiter=steps, M=scale)
            for k in (0, 1)
        ]
        return np.stack([column for column, _ in columns], -1), all(i == 0 for _, i in columns)

    iterated, settled = iterate(_SOON)
    if settled:
        return iterated
    order = reverse_cuthill_mckee(system, symmetric_mode=True)
    band = system[order][:, order].tocoo()
    width = int((band.row - band.col).max()) + 1
    if width * system.shape[0] * 8 <= _BAND_BYTES:
        lower = band.row >= band.col
        table = np.zeros((width, system.shape[0]))
        table[band.row[lower] - band.col[lower], band.col[lower]] = band.data[lower]
        result = np.empty(right.shape)
        result[order] = solveh_banded(table, right[order], overwrite_ab=True, lower=True)
        return result
    return iterate(_LAST)[0]


def _ends(rigid: Sequence[Affine], z: NDArray[np.int64], points: Points) -> Points:
    matrices = np.stack([placement.matrix for placement in rigid])
    offsets = np.stack([placement.offset for placement in rigid])
    return np.asarray(np.einsum("nij,nj->ni", matrices[z], points) + offsets[z])


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


def _center(
    positions: NDArray[np.float64], vertices: Points, trusted: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """The stack mapped as a whole so that its mean section lies as it came, size and shape too.

    Springs along matches alone are shortest when everything shrinks; this takes that bias out. It
    is measured section by section, as the part of each that is no rotation: the mean of sections
    that are turned against each other is small, whatever their size.
    """
    stretch = np.mean(
        [_stretch(Affine.fit(vertices, p).matrix) for p in positions[trusted]], axis=0
    )
    sized = positions @ np.linalg.inv(stretch).T
    back = Affine.fit_rigid(sized[trusted].mean(axis=0), vertices)
    return back(sized)


def _stretch(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The symmetric factor of stretch @ rotation."""
    left, sizes, _ = np.linalg.svd(matrix)
    return np.asarray((left * sizes) @ left.T)
