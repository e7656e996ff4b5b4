"""Registration by side: at a crack or fold, maps that are smooth on either side and tear between.

A field that follows the neighbours pixel by pixel takes over what differs between sections anyway.
An elastic mesh does not, for it is stiff, but it cannot tear. Here the map of a section, canvas to
source, is fitted anew on coarse cells, by Gauss-Newton steps on the difference of features (Lucas
and Kanade 1981) under the bending energy of a thin plate (Duchon 1977). Of that, second differences
across the middle line of the damage (the integer medial axis, Hesselink and Roerdink 2008) are left
out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Cuts = tuple[NDArray[np.bool_], NDArray[np.bool_]]
_NEGLIGIBLE = 1e-6  # of the information that the features give, so that no cell is without any
_AREA_MIN, _STRETCH_MAX = 0.2, 1.5  # of the map; beyond them the mesh was nearly folded over
_MOVE_MAX_PX = 5.0  # of one of Newton's steps


@dataclass(frozen=True, slots=True)
class SideOptions:
    """How to fit.

    Args:
        cell_px: edge of the cells, rounded up to a multiple of what features are shrunk by.
        cells_max: with more of them they are made larger.
        length_px: bends shorter than about six times this are smoothed away.
        reach_px: as far from the damage cells are fitted.
        sure_px: as far from it the fit counts alone.
        fade_px: beyond that it fades out over this much.
        steps: of Gauss and Newton, at most.
        still_px: cells that move less, in the median, have arrived.
        doubt: differences of features over so many times the usual count little.
    """

    cell_px: int = 8
    cells_max: int = 40_000
    length_px: float = 20.0
    reach_px: int = 240
    sure_px: int = 120
    fade_px: int = 80
    steps: int = 6
    still_px: float = 0.03
    doubt: float = 2.0


@dataclass(frozen=True, slots=True)
class Features:
    """What is compared, shrunk.

    Args:
        factor: by so much.
        moving: (h, w) of the section.
        crack: (h, w), where it is torn, or shows nothing.
        valid: (h, w), where it counts.
        targets: (h, w) of each neighbour.
        weights: (h, w) of each neighbour.
    """

    factor: int
    moving: NDArray[np.float32]
    crack: NDArray[np.bool_]
    valid: NDArray[np.bool_]
    targets: Sequence[NDArray[np.float32]]
    weights: Sequence[NDArray[np.float32]]


def narrow_part(mask: NDArray[np.bool_], width_px: int) -> NDArray[np.bool_]:
    """What of a mask (H, W) is a crack or a fold: places where no disc as wide as this fits in.

    What lies beyond the image counts as masked, so that the blank at a section's border is none.
    """
    if mask.all():
        return np.zeros_like(mask)
    edge, radius = width_px + 2, width_px / 2
    padded = np.pad(mask, edge, constant_values=True)
    core = scipy.ndimage.distance_transform_edt(padded) > radius
    wide = scipy.ndimage.distance_transform_edt(~core) <= radius + 1
    return np.asarray(mask & ~wide[edge:-edge, edge:-edge])


def middle_cuts(mask: NDArray[np.bool_]) -> Cuts:
    """Between which cells of a mask (h, w) its middle line runs.

    Returns:
        ((h - 1, w), (h, w - 1)): between each cell and the one below; and the one to the right.
    """
    depth, nearest = scipy.ndimage.distance_transform_edt(mask, return_indices=True)
    found = []
    for axis in (0, 1):
        one = tuple(slice(None, -1) if axis == k else slice(None) for k in (0, 1))
        other = tuple(slice(1, None) if axis == k else slice(None) for k in (0, 1))
        apart = np.hypot(*(side[one] - side[other] for side in nearest))
        across = (apart > 0.8 * (depth[one] + depth[other])) & (apart > 2)
        found.append(mask[one] & mask[other] & across)
    return found[0], found[1]


def bending(region: NDArray[np.bool_], cuts: Cuts) -> scipy.sparse.csr_matrix:
    """Second differences of the cells of a region that no cut divides: (differences, cells)."""
    number = np.full(region.shape, -1)
    number[region] = np.arange(int(region.sum()))
    below, right = cuts
    twist = np.sqrt(2.0)  # the mixed difference counts twice
    stencils = (
        ((number[:-2], number[1:-1], number[2:]), (1, -2, 1), below[:-1] | below[1:]),
        (
            (number[:, :-2], number[:, 1:-1], number[:, 2:]),
            (1, -2, 1),
            right[:, :-1] | right[:, 1:],
        ),
        (
            (number[:-1, :-1], number[:-1, 1:], number[1:, :-1], number[1:, 1:]),
            (twist, -twist, -twist, twist),
            below[:, :-1] | below[:, 1:] | right[:-1] | right[1:],
        ),
    )
    rows = []
    for cells, weights, divided in stencils:
        columns = np.stack(cells)[:, ~divided & (np.min(cells, axis=0) >= 0)]
        count = columns.shape[1]
        at = np.arange(0, columns.size + 1, len(weights))
        values = np.tile(np.array(weights, float), count)
        shape = (count, int(region.sum()))
        rows.append(scipy.sparse.csr_matrix((values, columns.T.ravel(), at), shape=shape))
    return scipy.sparse.vstack(rows).tocsr()


def register_by_side(
    features: Features,
    cracks: NDArray[np.bool_],
    damage: NDArray[np.bool_],
    maps: NDArray[np.float32],
    field: NDArray[np.float32],
    options: SideOptions | None = None,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Fit the field near the damage, or wherever else, anew.

    Args:
        features: of the section as rendered through `maps`, and of its neighbours.
        cracks: (H, W), where the rendered section shows no tissue that counts.
        damage: (H, W), what to fit the field near of: the cracks and folds, or all of it.
        maps: (H, W, 2), where each pixel lies in the source; NaN outside.
        field: (H, W, 2), px, to start from.
        options: how.

    Returns:
        The field (H, W, 2), px, and how much it counts (H, W), 0 to 1.
    """
    options = options or SideOptions()
    share = np.zeros(cracks.shape, np.float32)
    if not damage.any():
        return field, share
    fit = _Fit(features, cracks, damage, maps, options)
    if not fit.region.any():
        return field, share
    found = fit.run(field)
    far = scipy.ndimage.distance_transform_edt(~damage) - options.sure_px
    share = np.clip(1 - far / options.fade_px, 0, 1).astype(np.float32)
    return found, share


class _Fit:
    """One section's: features (h, w) at pixels `at`, and cells of `edge` x `edge` of them.

    Fields and maps are in px of the canvas and the source, axes first: (2, h, w).
    """

    def __init__(
        self,
        features: Features,
        cracks: NDArray[np.bool_],
        damage: NDArray[np.bool_],
        maps: NDArray[np.float32],
        options: SideOptions,
    ) -> None:
        self.options, self.features = options, features
        self.shape = cracks.shape
        self.maps = np.moveaxis(_extended(maps), -1, 0)
        cell_px, masked, self.region = _cells_near(cracks, damage, features.factor, options)
        self.cell_px, self.edge = cell_px, cell_px // features.factor
        self.cuts = middle_cuts(masked)
        rows, columns = masked.shape
        self.size = (rows * self.edge, columns * self.edge)
        places = [(np.arange(n) + 0.5) * features.factor - 0.5 for n in self.size]
        self.at = np.stack(np.meshgrid(*places, indexing="ij"))
        self.slopes = np.gradient(features.moving)
        plain = bending(self.region, self.cuts)
        self.stiffness = (plain.T @ plain).tocsr()

    def run(self, start: NDArray[np.float32]) -> NDArray[np.float32]:
        """The field (H, W, 2)."""
        field = _read(np.moveaxis(start, -1, 0), self.at)
        for _ in range(self.options.steps):
            before = self._cells(self._map(field))
            after = self._step(field, before)
            field = self._inverse(field, self._spread(after))
            if np.median(np.linalg.norm(after - before, axis=0)) < self.options.still_px:
                break
        h, w = self.size
        factor = self.features.factor
        y, x = ((np.arange(n) + 0.5) / factor - 0.5 for n in self.shape)
        fine = np.stack(np.meshgrid(np.minimum(y, h - 1), np.minimum(x, w - 1), indexing="ij"))
        return np.asarray(np.moveaxis(_read(field, fine), 0, -1), np.float32)

    def _map(self, field: Floats, off: Floats | float = 0.0) -> Floats:
        at = self.at + field + off
        inside = np.clip(at, 0, np.array(self.shape).reshape(2, 1, 1) - 1.0)
        return _read(self.maps, inside) + (at - inside)

    def _cells(self, values: Floats) -> Floats:
        """Means over the region's cells: (..., h, w) -> (..., cells)."""
        (h, w), edge = self.size, self.edge
        blocks = values.reshape(*values.shape[:-2], h // edge, edge, w // edge, edge)
        return np.asarray(blocks.mean((-3, -1))[..., self.region])

    def _slope_of_map(self, field: Floats) -> Floats:
        """(2, 2, h, w): by how much the map's component i changes along axis j."""
        found = np.empty((2, 2, *self.size))
        for axis in (0, 1):
            off = np.zeros((2, 1, 1))
            off[axis] = 2.0
            found[:, axis] = (self._map(field, off) - self._map(field, -off)) / 4.0
        return found

    def _step(self, field: Floats, now: Floats) -> Floats:
        """Where the cells (2, n) lie after one step."""
        metric, pull = self._evidence(field)
        inverse = _inverted(self._cells(self._slope_of_map(field)))
        metric = np.einsum("ian,ijn,jbn->abn", inverse, metric, inverse)
        pull = np.einsum("ian,in->an", inverse, pull)
        told = metric[0, 0] + metric[1, 1]
        if not (told > 0).any():
            return now
        usual = float(np.median(told[told > 0])) / 2
        stiff = self.stiffness * (usual * (self.options.length_px / self.cell_px) ** 4)
        rest = usual * _NEGLIGIBLE
        y, x = (scipy.sparse.diags(metric[k, k] + rest) + stiff for k in (0, 1))
        mixed = scipy.sparse.diags(metric[0, 1])
        matrix = scipy.sparse.bmat([[y, mixed], [mixed, x]]).tocsc()
        known = np.einsum("abn,bn->an", metric, now) + rest * now - pull
        factors = scipy.sparse.linalg.splu(
            matrix, permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True}
        )
        return np.asarray(factors.solve(known.ravel()).reshape(now.shape))

    def _evidence(self, field: Floats) -> tuple[Floats, Floats]:
        """What features say of the field in each cell, per px of the canvas: (2, 2, n), (2, n)."""
        features, (h, w) = self.features, self.size
        at = (self.at + field + 0.5) / features.factor - 0.5
        read, *slopes = _read(np.stack([features.moving, *self.slopes]), at)
        slope = np.stack(slopes) / features.factor
        seen = scipy.ndimage.map_coordinates(
            features.valid.astype(np.float32), at, order=1, cval=0.0
        )
        weight, pull = np.zeros((h, w)), np.zeros((h, w))
        for target, counts in zip(features.targets, features.weights, strict=True):
            own = counts[:h, :w] * (seen > 0.99)
            if not own.any():
                continue
            error = read - target[:h, :w]
            usual = self.options.doubt * 1.48 * float(np.median(np.abs(error[own > 0]))) + 1e-6
            own = own / (1 + (error / usual) ** 2) ** 2  # Geman and McClure
            weight, pull = weight + own, pull + own * error
        metric = np.stack([[a * b * weight for b in slope] for a in slope])
        return self._cells(metric), self._cells(slope * pull)

    def _spread(self, cells: Floats) -> Floats:
        """The map (2, h, w) from its cells (2, n); beside cuts and outside, that of the cell."""
        rows, columns = self.region.shape
        known = np.full((2, rows, columns), np.nan)
        known[:, self.region] = cells
        y, x = (np.arange(n) // self.edge for n in self.size)
        middle = (self.edge - 1) / 2
        off = np.stack(np.meshgrid(
            *((np.arange(n) % self.edge - middle) * self.features.factor for n in self.size),
            indexing="ij",
        ))  # fmt: skip
        own = known[:, y[:, None], x[None]] + off
        places = [(np.arange(n) - middle) / self.edge for n in self.size]
        between = _read(known, np.stack(np.meshgrid(*places, indexing="ij")))
        for axis, place in enumerate(places):  # beyond the outermost cells' middles
            outer = (place < 0) | (place > self.region.shape[axis] - 1)
            between[:, *(outer if axis == k else slice(None) for k in (0, 1))] = np.nan
        beside = np.zeros(self.region.shape, bool)
        below, right = self.cuts
        beside[:-1] |= below
        beside[1:] |= below
        beside[:, :-1] |= right
        beside[:, 1:] |= right
        beside = scipy.ndimage.binary_dilation(beside, np.ones((3, 3)))
        alone = beside[y[:, None], x[None]] | np.isnan(between).any(0)
        return np.where(alone, own, between)

    def _inverse(self, field: Floats, wanted: Floats) -> Floats:
        """The field under which the map is the wanted one (NaN: as it was), by Newton's steps."""
        for _ in range(3):
            missing = wanted - self._map(field)
            inverse = _inverted(self._slope_of_map(field), np.eye(2))
            move = np.einsum("ij...,j...->i...", inverse, missing)
            field = field + np.clip(np.nan_to_num(move), -_MOVE_MAX_PX, _MOVE_MAX_PX)
        return field


def _cells_near(
    cracks: NDArray[np.bool_], damage: NDArray[np.bool_], factor: int, options: SideOptions
) -> tuple[int, NDArray[np.bool_], NDArray[np.bool_]]:
    """Edge of cells, px; (rows, columns): which lie in cracks, and which are fitted."""
    step_px = -(-options.cell_px // factor) * factor
    cell_px = step_px
    while True:
        rows, columns = (edge // cell_px for edge in cracks.shape)
        masked, damaged = (
            mask[: rows * cell_px, : columns * cell_px]
            .reshape(rows, cell_px, columns, cell_px)
            .max(axis=(1, 3))
            for mask in (cracks, damage)
        )
        far = scipy.ndimage.distance_transform_edt(~damaged) * cell_px
        region = np.asarray((far <= options.reach_px) & damaged.any())
        if int(region.sum()) <= options.cells_max:
            return cell_px, masked, region
        cell_px += step_px


def _inverted(slope: Floats, otherwise: Floats | None = None) -> Floats:
    """Inverse matrices (2, 2, ...); where a map is folded over: `otherwise`, or zeros."""
    many = (2, 2, *[1] * (slope.ndim - 2))
    (a, b), (c, d) = slope
    determinant = a * d - b * c
    off = np.abs(slope - np.eye(2).reshape(many)).max((0, 1))
    fine = (determinant > _AREA_MIN) & (off < _STRETCH_MAX)
    inverse = np.stack([[d, -b], [-c, a]]) / np.where(fine, determinant, 1.0)
    fallback = np.zeros(many) if otherwise is None else otherwise.reshape(many)
    return np.where(fine, inverse, fallback)


def _read(values: NDArray[Any], at: Floats) -> Floats:
    """(k, ...) bilinear at (2, ...); the edge's values beyond it."""
    return np.stack([
        scipy.ndimage.map_coordinates(each, at, order=1, mode="nearest") for each in values
    ])  # fmt: skip


def _extended(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Maps (H, W, 2) that go on beyond where they are known, unstretched."""
    known = np.isfinite(maps).all(-1)
    grid = np.moveaxis(np.indices(known.shape), 0, -1).astype(np.float64)
    if not known.any():
        return grid
    nearest = scipy.ndimage.distance_transform_edt(
        ~known, return_distances=False, return_indices=True
    )
    return np.asarray(maps[tuple(nearest)] + grid - np.moveaxis(nearest, 0, -1))
