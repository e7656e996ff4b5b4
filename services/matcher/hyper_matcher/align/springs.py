"""The springs that hold meshes, as sparse matrices, and the solver of their equilibrium."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.linalg import solveh_banded
from scipy.sparse.csgraph import reverse_cuthill_mckee
from scipy.sparse.linalg import cg

from hyper_matcher.align.geometry import Affine, Mesh, PairMatches, Points

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
class Springs:
    """Accepted matches as rows of a sparse matrix over all unknowns.

    Args:
        rows: (m, unknowns); source vertices' weights minus target vertices'.
        source_z: (m,).
        target_z: (m,).
        source: (m, 2), px of the section.
        target: (m, 2).
        base: (m,), their pull.
    """

    rows: sp.csr_matrix
    source_z: NDArray[np.int64]
    target_z: NDArray[np.int64]
    source: Points
    target: Points
    base: NDArray[np.float64]


def all_springs(
    mesh: Mesh,
    depth: int,
    matched: Sequence[PairMatches],
    options: RelaxOptions,
    points: Sequence[PairMatches],
) -> Springs:
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
        share = int(pair.accepted.sum()) / max(1, pair.tried)
        base.append(pull(pair, density * len(pair.rejection), share, options))
    base += [np.full(len(pair.p1), options.point) for pair in points]
    return Springs(rows, source_z, target_z, s, t, np.concatenate(base))


def pull(
    pair: PairMatches, per_vertex: float, share: float, options: RelaxOptions
) -> NDArray[np.float64]:
    """Weights of a pair's accepted matches, so that those near a vertex have about 1 together.

    Args:
        pair: of sections.
        per_vertex: how many points were matched for each vertex.
        share: of the points tried in the whole pair that was accepted.
        options: weights by distance.
    """
    far = abs(pair.target_z - pair.source_z)
    by_distance = options.distance_weights[min(far, len(options.distance_weights)) - 1]
    score = np.clip(pair.p1[pair.accepted], 0.05, 1.0)
    trust = min(1.0, share / _SOUND) ** 2
    return np.asarray(by_distance / max(per_vertex, 1e-9) * trust * score / 0.6)


def inner_springs(mesh: Mesh, options: RelaxOptions) -> sp.csr_matrix:
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


def solve(
    rows: sp.csr_matrix,
    weights: NDArray[np.float64],
    gap: NDArray[np.float64],
    inner: sp.csr_matrix,
    start: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Displacements (n, 2) that minimise the energy for these weights.

    Args:
        rows: of the matches' springs.
        weights: (m,) of them.
        gap: (m, 2), how far their ends are apart without displacement.
        inner: (n, n), stiffness of the meshes.
        start: (n, 2), where to begin.
    """
    weighted = sp.diags(weights) @ rows
    return equilibrium((rows.T @ weighted + inner).tocsr(), -(weighted.T @ gap), start)


def equilibrium(
    system: sp.csr_matrix, right: NDArray[np.float64], start: NDArray[np.float64]
) -> NDArray[np.float64]:
    """x (n, 2) with system @ x = right, from `start`."""
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


def ends(rigid: Sequence[Affine], z: NDArray[np.int64], points: Points) -> Points:
    """Points (n, 2) of sections z (n,), rigidly placed."""
    matrices = np.stack([placement.matrix for placement in rigid])
    offsets = np.stack([placement.offset for placement in rigid])
    return np.asarray(np.einsum("nij,nj->ni", matrices[z], points) + offsets[z])
