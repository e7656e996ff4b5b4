"""Where tiles lie: a sparse, robust least-squares fit over the overlaps of sections.

A point p of tile k lies at position_k + p + A_k u + L(u), u being p from -1 to 1. A_k, of six
numbers, is the tile's own shift and affine map; L, the lens, a polynomial without linear terms that
all tiles share (a smooth one, so few numbers, determined by all overlaps at once). Both axes have
the same matrix. Weak springs hold shifts to the positions and affine maps to none, so that what
overlaps cannot tell (the whole montage's place, size and shape) stays as the positions say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import splu

from hyper_matcher.align.geometry import Points
from hyper_matcher.stitch.polynomials import basis, normalised, terms
from hyper_matcher.stitch.values import Seam, StitchOptions, TileFacts

_HOLD_SHIFT = 1e-6  # weight of a spring from a tile to its position, against a match's 1
_HOLD_AFFINE = 0.3  # per px at the tile's edge
# Of its quadratic terms; each further degree, 4 times that: overlaps show a tile's border alone,
# where a high term and a low one can stand for each other.
_HOLD_LENS = 0.3
_HUBER_PX = 0.5
_ROUNDS = 6
_SEAMS_OF_DEGREE = ((4, 3), (12, 5))  # from so many overlaps on, a lens of this degree is told
_HOLD_BRIGHTNESS = 0.3
_PATTERN_DEGREE = 4
_HUBER_GREY = 0.05  # of the logarithm
_MEDIAN_WEIGHT = 0.3  # of what the tiles' common brightness says, a tile


@dataclass(frozen=True, slots=True)
class Lens:
    """A distortion that all tiles share.

    Args:
        products: degrees of its terms.
        coefficients: (terms, 2), px.
    """

    products: tuple[tuple[int, int], ...]
    coefficients: NDArray[np.float64]

    def __call__(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Displacement (n, 2) px at normalised points (n, 2)."""
        return np.asarray(basis(points, list(self.products)) @ self.coefficients)


@dataclass(frozen=True, slots=True)
class Shared:
    """What all tiles have in common.

    Args:
        lens: distortion.
        pattern: (terms,) logarithm of the brightness.
    """

    lens: Lens
    pattern: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Montage:
    """Where tiles lie.

    Args:
        shape: (H, W) of a tile.
        positions: (T, 2), as they came.
        maps: (T, 3, 2): shift, and displacement a step of u in y and in x, px.
        lens: of all tiles.
        pattern: (terms,) logarithm of the brightness that all tiles share.
        brightness: (T,) logarithm of each tile's own.
        part: (T,) which connected part of its section a tile is in; 0 is the largest.
        flagged: {tile: why}.
    """

    shape: tuple[int, int]
    positions: Points
    maps: NDArray[np.float64]
    lens: Lens
    pattern: NDArray[np.float64]
    brightness: NDArray[np.float64]
    part: NDArray[np.int64]
    flagged: Mapping[int, str]

    def place(self, tile: int, points: Points) -> Points:
        """Where points (n, 2) of a tile lie in the common frame."""
        u = normalised(points, self.shape)
        moved = _affine_design(u) @ self.maps[tile] + self.lens(u)
        return np.asarray(points + self.positions[tile] + moved)

    def unplace(self, tile: int, places: Points) -> Points:
        """The points (n, 2) of a tile that lie at places of the common frame."""
        start = places - self.positions[tile]
        points = start - self.maps[tile][0]
        edge = np.array(self.shape, np.float64)
        for _ in range(12):
            u = normalised(np.clip(points, -0.2 * edge, 1.2 * edge), self.shape)
            points = start - (_affine_design(u) @ self.maps[tile] + self.lens(u))
        return np.asarray(points)

    def gain(self, tile: int, points: Points) -> NDArray[np.float64]:
        """(n,) by what grey values at points (n, 2) of a tile are to be divided."""
        u = normalised(points, self.shape)
        shared = basis(u, terms(1, _PATTERN_DEGREE)) @ self.pattern
        return np.asarray(np.exp(shared + self.brightness[tile]))


def _affine_design(u: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([np.ones((len(u), 1)), u], axis=1)


def solve(
    shape: tuple[int, int],
    positions: Points,
    section: Sequence[int],
    seams: Sequence[Seam],
    facts: Mapping[int, TileFacts],
    options: StitchOptions,
    shared: Shared | None = None,
) -> Montage:
    """Place tiles, of one or of several sections at once.

    Args:
        shape: (H, W) of a tile.
        positions: (T, 2) px, as known.
        section: (T,) which section each tile is of.
        seams: of all overlaps.
        facts: of the tiles.
        options: lens and illumination.
        shared: what is known of all tiles already; None: it is found out of these.
    """
    count = len(positions)
    good = [seam for seam in seams if not seam.flag and seam.accepted.any()]
    first = _gather([np.full(int(s.accepted.sum()), s.first) for s in good]).astype(np.int64)
    second = _gather([np.full(int(s.accepted.sum()), s.second) for s in good]).astype(np.int64)
    p = _gather2([s.first_points[s.accepted] for s in good])
    q = _gather2([s.second_points[s.accepted] for s in good])
    u, v = normalised(p, shape), normalised(q, shape)
    own = _tile_rows(first, _affine_design(u), count) - _tile_rows(second, _affine_design(v), count)
    gap = (p + positions[first]) - (q + positions[second])
    own_hold = np.tile([_HOLD_SHIFT, _HOLD_AFFINE, _HOLD_AFFINE], count)
    if shared is None:
        products = terms(2, _degree(options.lens_degree, len(good)))
        common = sp.csr_matrix(basis(u, products) - basis(v, products))
        design = sp.hstack([own, common]).tocsr()
        lens_hold = [_HOLD_LENS * 4.0 ** (i + j - 2) for i, j in products]
        found = _robust(design, -gap, np.concatenate([own_hold, lens_hold]), _HUBER_PX)
        lens = Lens(tuple(products), found[3 * count :])
    else:
        lens = shared.lens
        found = _robust(own.tocsr(), lens(v) - lens(u) - gap, own_hold, _HUBER_PX)
    maps = found[: 3 * count].reshape(count, 3, 2)
    part, flagged = _parts(count, section, good, seams, facts)
    known = None if shared is None else shared.pattern
    pattern, brightness = _brightness(
        shape, count, good, first, second, u, v, facts, options, known
    )  # fmt: skip
    return Montage(shape, positions, maps, lens, pattern, brightness, part, flagged)


def _degree(asked: int, seams: int) -> int:
    if asked >= 0:
        return asked
    return max((degree for least, degree in _SEAMS_OF_DEGREE if seams >= least), default=0)


def _gather(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(0), *parts])


def _gather2(parts: list[Points]) -> Points:
    return np.concatenate([np.zeros((0, 2)), *parts])


def _tile_rows(tile: NDArray[np.int64], values: NDArray[np.float64], count: int) -> sp.csr_matrix:
    """Rows (m, count k) with a tile's k values in its own columns."""
    m, k = values.shape
    columns = tile[:, None] * k + np.arange(k)
    return sp.csr_matrix(
        (values.ravel(), columns.ravel(), k * np.arange(m + 1)), shape=(m, count * k)
    )


def _robust(
    design: sp.csr_matrix,
    right: NDArray[np.float64],
    hold: NDArray[np.float64],
    huber: float,
    fixed: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """argmin of Huber(design x - right) + hold x^2, (unknowns, columns); `fixed`: row weights."""
    base = np.ones(design.shape[0]) if fixed is None else fixed
    weights = base
    found = np.zeros((design.shape[1], right.shape[1]))
    for round_ in range(_ROUNDS):
        weighted = sp.diags(weights) @ design
        system = (design.T @ weighted + sp.diags(hold)).tocsc()
        found = np.asarray(splu(system).solve(np.ascontiguousarray(weighted.T @ right)))
        residual = np.linalg.norm(design @ found - right, axis=1)
        limit = huber * 2.0 ** max(0, 2 - round_)
        weights = base * np.minimum(1.0, limit / np.maximum(residual, 1e-12))
    return found


def _parts(
    count: int,
    section: Sequence[int],
    good: Sequence[Seam],
    seams: Sequence[Seam],
    facts: Mapping[int, TileFacts],
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Connected parts of each section, by size, and the tiles that no overlap places."""
    links = sp.coo_matrix(
        (np.ones(len(good)), ([s.first for s in good], [s.second for s in good])),
        shape=(count, count),
    )
    _, label = connected_components(links, directed=False)
    why: dict[int, str] = {}
    for seam in seams:
        for tile in (seam.first, seam.second):
            if seam.flag:
                why.setdefault(tile, seam.flag)
    part, flagged = np.zeros(count, np.int64), {}
    for z in np.unique(np.asarray(section)):
        members = np.flatnonzero(np.asarray(section) == z)
        sizes = np.bincount(label[members])
        ranked = np.argsort(-sizes, kind="stable")
        rank = np.empty_like(ranked)
        rank[ranked] = np.arange(len(ranked))
        part[members] = rank[label[members]]
        for tile in members[part[members] > 0].tolist():
            reason = why.get(tile, "its overlaps lead to no other tile")
            flagged[tile] = f"placed by its position alone: {reason}"
    for tile, fact in facts.items():
        if fact.blank:
            flagged[tile] = "blank: placed by its position alone"
    return part, flagged


def _brightness(
    shape: tuple[int, int],
    count: int,
    good: Sequence[Seam],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
    u: NDArray[np.float64],
    v: NDArray[np.float64],
    facts: Mapping[int, TileFacts],
    options: StitchOptions,
    known: NDArray[np.float64] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The pattern that all tiles share and each tile's own brightness, as logarithms.

    The same tissue in two tiles tells what differs between two places of a tile, whatever the
    tissue; the median of all tiles, weakly, tells the middle, which overlaps do not reach.
    """
    products = terms(1, _PATTERN_DEGREE)
    shown = {tile: fact for tile, fact in facts.items() if not fact.blank}
    if not options.illumination or len(shown) < 2 or len(first) == 0:
        return np.zeros(len(products)) if known is None else known, np.zeros(count)
    grey = np.log(np.maximum(_gather2([s.grey[s.accepted] for s in good]), 1.0))
    own = _tile_rows(first, np.ones((len(u), 1)), count) - _tile_rows(
        second, np.ones((len(v), 1)), count
    )
    common = basis(u, products) - basis(v, products)
    between = grey[:, 0] - grey[:, 1]
    if known is not None:
        right = (between - common @ known)[:, None]
        found = _robust(own.tocsr(), right, np.full(count, _HOLD_BRIGHTNESS), _HUBER_GREY)[:, 0]
        return known, found
    rows = sp.hstack([own, sp.csr_matrix(common)])
    grids = np.log(np.maximum(np.stack([fact.grid for fact in shown.values()]), 1.0))
    usual = np.median(grids - grids.mean(axis=(1, 2), keepdims=True), axis=0)
    places = [
        (np.arange(n) + 0.5) / n * edge - 0.5 for n, edge in zip(usual.shape, shape, strict=True)
    ]
    points = np.stack(np.meshgrid(*places, indexing="ij"), -1).reshape(-1, 2)
    seen = basis(normalised(points, shape), products)
    seen -= seen.mean(axis=0)
    below = sp.hstack([sp.csr_matrix((len(points), count)), sp.csr_matrix(seen)])
    design = sp.vstack([rows, below]).tocsr()
    right = np.concatenate([between, usual.ravel()])[:, None]
    trust = np.concatenate(
        [np.ones(len(u)), np.full(len(points), _MEDIAN_WEIGHT * len(shown) / 36)]
    )
    hold = np.concatenate([np.full(count, _HOLD_BRIGHTNESS), np.full(len(products), 1e-3)])
    found = _robust(design, right, hold, _HUBER_GREY, trust)[:, 0]
    return found[count:], found[:count]
