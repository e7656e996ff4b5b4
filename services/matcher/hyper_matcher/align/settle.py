"""Relaxation of one tile of a stack, held at its borders by what lies round it.

Tiles overlap, and each keeps of its answer only its own vertices (restricted additive Schwarz; Cai
and Sarkis, SIAM J. Sci. Comput. 21, 1999). What tiles do not see of each other is smooth, and a
coarser mesh, relaxed before, knows it; so after two or three rounds of exchange the tiles' answers
are that of the whole stack.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Affine, Mesh, PairMatches, Points
from hyper_matcher.align.springs import RelaxOptions, ends, equilibrium, pull


@dataclass(frozen=True, slots=True)
class Patch:
    """Vertices of several sections, in order of section and number.

    Args:
        z: (n,) sections.
        vertex: (n,) numbers in a section's mesh.
        displacement: (n, 2), from the rigid placement, px of the common frame.
    """

    z: NDArray[np.int64]
    vertex: NDArray[np.int64]
    displacement: Points

    def find(self, mesh: Mesh, z: Any, vertex: Any) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where vertices are in this patch, and which of them are in it at all."""
        size = mesh.rows * mesh.columns
        keys, wanted = self.z * size + self.vertex, z * size + vertex
        if len(keys) == 0:
            return np.zeros(wanted.shape, np.int64), np.zeros(wanted.shape, bool)
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        return at, keys[at] == wanted


def joined(patches: Sequence[Patch], mesh: Mesh) -> Patch:
    """Patches that have no vertex in common, as one."""
    z = np.concatenate([np.zeros(0, np.int64), *(p.z for p in patches)])
    vertex = np.concatenate([np.zeros(0, np.int64), *(p.vertex for p in patches)])
    moved = np.concatenate([np.zeros((0, 2)), *(p.displacement for p in patches)])
    order = np.argsort(z * (mesh.rows * mesh.columns) + vertex)
    return Patch(z[order], vertex[order], moved[order])


def finer(patch: Patch, coarse: Mesh, mesh: Mesh, z: int, vertices: NDArray[np.int64]) -> Points:
    """(n, 2) displacements of a finer mesh's vertices in section z, read off the coarser mesh.

    Raises:
        ValueError: the patch lacks what is round one of them.
    """
    corner, weight = coarse.barycentric(mesh.places(vertices))
    at, known = patch.find(coarse, np.full(corner.shape, z), corner)
    if not (known | (weight == 0)).all():
        raise ValueError(f"the coarser mesh of section {z} is not known round all vertices")
    return np.asarray(np.einsum("nk,nkd->nd", weight, patch.displacement[at]))


@dataclass(frozen=True, slots=True)
class Pulls:
    """A pair's matches near a tile, and what of their pull the whole pair decides.

    Args:
        pair: the matches.
        per_vertex: how many points were matched for each vertex.
        share: of all points tried in the pair that was accepted.
        certain: they are known to be right, and never doubted.
    """

    pair: PairMatches
    per_vertex: float
    share: float
    certain: bool = False


def settle(
    mesh: Mesh,
    rigid: Sequence[Affine],
    patch: Patch,
    anchor: Points,
    free: NDArray[np.bool_],
    pulls: Sequence[Pulls],
    options: RelaxOptions,
    limits: Sequence[float],
) -> Points:
    """(n, 2) displacements of a patch at rest.

    Args:
        mesh: of every section.
        rigid: placement of every section.
        patch: where its vertices are now.
        anchor: (n, 2), what the coarser mesh says, to which `gauge` holds them: it knows better
            than a tile what all sections do together, which matches say nothing about.
        free: (n,) those that may move; the others stay.
        pulls: matches; those that reach beyond the patch are left out.
        options: stiffness, for vertices of this mesh.
        limits: of each round, in `huber_px`: residuals from which a match's pull stops growing.
    """
    rows, gap, base, certain = _rows(mesh, rigid, patch, pulls, options)
    inner = _inner(mesh, patch, options)
    moved = patch.displacement.copy()
    for limit in limits:
        residual = np.linalg.norm(gap + rows @ moved, axis=1)
        doubt = np.minimum(1.0, limit * options.huber_px / np.maximum(residual, 1e-9))
        weighted = sp.diags(base * np.where(certain, 1.0, doubt)) @ rows
        system = (rows.T @ weighted + inner).tocsr()[free]
        held = np.where(free[:, None], 0.0, moved)
        right = options.gauge * anchor[free] - (weighted.T @ gap)[free] - system @ held
        moved[free] = equilibrium(system[:, free].tocsr(), right, moved[free])
    return moved


def _rows(
    mesh: Mesh,
    rigid: Sequence[Affine],
    patch: Patch,
    pulls: Sequence[Pulls],
    options: RelaxOptions,
) -> tuple[sp.csr_matrix, Points, NDArray[np.float64], NDArray[np.bool_]]:
    """Springs along matches: rows over the patch, gaps of their ends, pulls, which are certain."""
    columns, values = [np.zeros((0, 6), np.int64)], [np.zeros((0, 6))]
    gaps, base, certain = [np.zeros((0, 2))], [np.zeros(0)], [np.zeros(0, bool)]
    for each in pulls:
        pair = each.pair
        ok = pair.accepted
        source = pair.source[ok]
        target = source + pair.displacement[ok]
        index_s, weight_s = mesh.barycentric(source)
        index_t, weight_t = mesh.barycentric(target)
        at_s, known_s = patch.find(mesh, np.full(index_s.shape, pair.source_z), index_s)
        at_t, known_t = patch.find(mesh, np.full(index_t.shape, pair.target_z), index_t)
        kept = known_s.all(axis=1) & known_t.all(axis=1)
        columns.append(np.concatenate([at_s, at_t], 1)[kept])
        values.append(np.concatenate([weight_s, -weight_t], 1)[kept])
        first, second = np.full(len(source), pair.source_z), np.full(len(source), pair.target_z)
        gaps.append((ends(rigid, first, source) - ends(rigid, second, target))[kept])
        if each.certain:
            base.append(np.full(int(kept.sum()), options.point))
        else:
            base.append(pull(pair, each.per_vertex, each.share, options)[kept])
        certain.append(np.full(int(kept.sum()), each.certain))
    column, value = np.concatenate(columns), np.concatenate(values)
    total = len(column)
    rows = sp.csr_matrix(
        (value.ravel(), column.ravel(), 6 * np.arange(total + 1)), shape=(total, len(patch.z))
    )
    return rows, np.concatenate(gaps), np.concatenate(base), np.concatenate(certain)


def _inner(mesh: Mesh, patch: Patch, options: RelaxOptions) -> sp.csr_matrix:
    """The springs inside sections, of which all ends are in the patch."""
    size = len(patch.z)
    stiffness = options.gauge * sp.identity(size, format="csr")
    row, column = np.divmod(patch.vertex, mesh.columns)

    def neighbour(down: int, right: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        y, x = row + down, column + right
        inside = (y >= 0) & (y < mesh.rows) & (x >= 0) & (x < mesh.columns)
        at, known = patch.find(mesh, patch.z, np.where(inside, y * mesh.columns + x, 0))
        return at, known & inside

    def add(weight: float, parts: Sequence[tuple[tuple[int, int], float]]) -> None:
        nonlocal stiffness
        found = [(neighbour(*step), factor) for step, factor in parts]
        whole = np.all([known for (_, known), _ in found], axis=0)
        index = np.stack([at[whole] for (at, _), _ in found], -1)
        factors = np.tile([factor for _, factor in found], len(index))
        difference = sp.csr_matrix(
            (factors, index.ravel(), len(parts) * np.arange(len(index) + 1)),
            shape=(len(index), size),
        )
        stiffness = stiffness + weight * (difference.T @ difference)

    for step in ((0, 1), (1, 0), (1, -1)):  # along rows, columns, and the cells' diagonals
        add(options.stretch, [((0, 0), -1.0), (step, 1.0)])
    for y, x in ((0, 1), (1, 0)):
        add(options.bend, [((-y, -x), 1.0), ((0, 0), -2.0), ((y, x), 1.0)])
    return stiffness.tocsr()
