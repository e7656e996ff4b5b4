"""How good an alignment is: correlation of tiles, fresh matches, sharpness.

Sections are scored as they are rendered, 8-bit and unfiltered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.ndimage
from numpy.typing import NDArray

from hyper_matcher.align.filters import PeakFilter
from hyper_matcher.align.geometry import Affine, Points
from hyper_matcher.align.match import Found, Guess, search
from hyper_matcher.ncc import SearchImage

CPC_TILE_PX = 94
_MAX_ZEROS = 0.01


def chunked_correlation(
    first: NDArray[Any], second: NDArray[Any], tile_px: int = CPC_TILE_PX
) -> NDArray[np.float64]:
    """Pearson correlation of two sections tile by tile: (tiles,); CPC is their mean.

    Tiles with more than 1% of zeros in either section, or without contrast, are skipped.
    """
    if first.shape != second.shape:
        raise ValueError(f"sections of {first.shape} and {second.shape} cannot be compared")
    a, b = _tiles(first, tile_px), _tiles(second, tile_px)
    zeros = np.maximum((a == 0).mean(axis=1), (b == 0).mean(axis=1))
    a, b = a[zeros <= _MAX_ZEROS].astype(np.float64), b[zeros <= _MAX_ZEROS].astype(np.float64)
    a -= a.mean(axis=1, keepdims=True)
    b -= b.mean(axis=1, keepdims=True)
    norm = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    products = (a * b).sum(axis=1)
    return np.asarray(products[norm > 0] / norm[norm > 0])


def _tiles(section: NDArray[Any], tile_px: int) -> NDArray[Any]:
    rows, columns = section.shape[0] // tile_px, section.shape[1] // tile_px
    cut = section[: rows * tile_px, : columns * tile_px]
    tiles = cut.reshape(rows, tile_px, columns, tile_px).swapaxes(1, 2)
    return tiles.reshape(rows * columns, tile_px * tile_px)


@dataclass(frozen=True, slots=True)
class Residuals:
    """Fresh matches between two rendered sections.

    Args:
        points: (n, 2), where they were measured.
        vectors: (n, 2), how far off the content lies there, px.
        tried: how many points there were.
        coverage: share of the common tissue within a template of the grid.
    """

    points: Points
    vectors: Points
    tried: int
    coverage: float

    @property
    def lengths(self) -> NDArray[np.float64]:
        """(n,) px."""
        return np.asarray(np.linalg.norm(self.vectors, axis=1))


RESIDUAL_FILTER = PeakFilter(
    min_peak=0.1, min_distinctness=0.07, max_ratio=1.0, min_dynamic_range=0.2, max_width=1.0,
    edge=1.0, max_kurtosis=float("inf"),
)  # fmt: skip
_TISSUE, _TISSUE_AROUND = 0.99, 0.8  # of a template, of where it is searched
_FILL_PX, _COARSE, _WORTH = (
    16,
    8,
    0.08,
)  # of tries to cover the rest; steps of px; share that is new
_CERTAIN = 0.15  # P1 - P2 of a near match that needs no second look
_NEAR = 0.6  # of the near radius: what lies further off is looked at again


def fresh_residuals(
    first: NDArray[Any],
    second: NDArray[Any],
    *,
    template_px: int = 160,
    radius_px: int = 16,
    far_px: int = 48,
    spacing_px: int = 61,
    whole_pixels: bool = False,
    within: NDArray[np.bool_] | None = None,
) -> Residuals:
    """Match 160-px templates afresh on a grid of its own; peak filters only, no consensus.

    Templates whose near match is missing or not certain are looked for again further off, and that
    verdict stands: a place that is 40 px off shows as such, at the price of the doubtful few.
    A template is used where all but a hundredth of it, and 80% of the window it is searched in, is
    tissue: the edge of the tissue would match itself.

    Args:
        first: (H, W), rendered, 0 where there is no tissue.
        second: the same.
        template_px: edge.
        radius_px: of the first look.
        far_px: of the second one: largest displacement seen (less where sections are small).
        spacing_px: of the grid.
        whole_pixels: round displacements to pixels, as matching without refinement gives them.
        within: (H, W), where the sections are themselves; elsewhere they are mirrored.
    """
    height, width = first.shape
    half = template_px // 2
    margin = half + radius_px
    if min(height, width) < 2 * margin:
        raise ValueError(f"sections of {first.shape} have no room for {template_px}-px templates")
    tissue = (first > 0) & (second > 0)
    if within is not None:
        tissue &= within
    table = np.zeros((height + 1, width + 1))
    np.cumsum(np.cumsum(tissue, axis=0), axis=1, out=table[1:, 1:])

    def usable(step_px: int) -> NDArray[np.int64]:
        """Of a grid of such steps the points that can be matched."""
        counts = [max(1, -(-(edge - 2 * margin) // step_px)) + 1 for edge in (height, width)]
        ys = np.linspace(margin, height - margin, counts[0]).round().astype(int)
        xs = np.linspace(margin, width - margin, counts[1]).round().astype(int)
        grid = np.stack(np.meshgrid(ys, xs, indexing="ij"), -1).reshape(-1, 2)
        own, around = (_share(table, grid, extent) for extent in (half, margin))
        return np.asarray(grid[(own >= _TISSUE) & (around >= _TISSUE_AROUND)])

    corners, coverage = _cover(tissue, usable(spacing_px), usable(_FILL_PX), half)
    points = np.asarray(corners - 0.5, np.float64)
    if len(points) == 0:
        return Residuals(np.zeros((0, 2)), np.zeros((0, 2)), 0, 0.0)
    images = SearchImage(first), SearchImage(second)
    near = _look(images, points, template_px, radius_px)
    far_px = min(far_px, (min(height, width) - template_px) // 2)
    off = np.abs(near.target - near.source).max(axis=1)
    certain = (near.rejection == 0) & (near.p1 - near.p2 >= _CERTAIN) & (off <= _NEAR * radius_px)
    parts = [(near, certain)]
    if far_px > radius_px and not certain.all():
        far = _look(images, points[~certain], template_px, far_px)
        parts.append((far, far.rejection == 0))
    else:
        parts.append((near, ~certain & (near.rejection == 0)))
    places = np.concatenate([found.source[kept] for found, kept in parts])
    vectors = np.concatenate([(found.target - found.source)[kept] for found, kept in parts])
    return Residuals(places, np.rint(vectors) if whole_pixels else vectors, len(points), coverage)


def _share(table: NDArray[np.float64], grid: NDArray[np.int64], extent: int) -> Any:
    """(n,) of boxes round points of the grid: how much of each is tissue, by its integral image."""
    y0, x0 = np.maximum(grid - extent, 0).T
    y1, x1 = np.minimum(grid + extent, np.array(table.shape) - 1).T
    inside = table[y1, x1] - table[y0, x1] - table[y1, x0] + table[y0, x0]
    return inside / (2 * extent) ** 2


def _cover(
    tissue: NDArray[np.bool_], grid: NDArray[np.int64], more: NDArray[np.int64], half: int
) -> tuple[NDArray[np.int64], float]:
    """The grid, and those of `more` that reach tissue that no template has shown; and the coverage.

    A grid leaves out the strips along edges that are not parallel to it.
    """
    bare = tissue[::_COARSE, ::_COARSE].copy()  # not yet covered
    everything = max(1, int(bare.sum()))
    reach = half // _COARSE
    places = [tuple(point) for point in grid.tolist()]

    def box(y: int, x: int) -> Any:
        top, left = max(0, y // _COARSE - reach), max(0, x // _COARSE - reach)
        return np.s_[top : y // _COARSE + reach, left : x // _COARSE + reach]

    for place in places:
        bare[box(*place)] = False
    for y, x in more.tolist():
        if bare[box(y, x)].sum() >= _WORTH * (2 * reach) ** 2:
            places.append((y, x))
            bare[box(y, x)] = False
    chosen = np.array(places, np.int64).reshape(-1, 2)
    return chosen, 1.0 - int(bare.sum()) / everything if tissue.any() else 0.0


def _look(
    images: tuple[SearchImage, SearchImage], points: Points, template_px: int, radius_px: int
) -> Found:
    identity = np.broadcast_to(Affine.identity().matrix, (len(points), 2, 2))
    guess = Guess(points, points, identity)
    return search(*images, guess, template_px, radius_px, RESIDUAL_FILTER)


def mean_gradient(section: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> float:
    """Mean length of the grey values' gradient over valid pixels whose neighbours are valid.

    By Scharr's 3 x 3 operator, whose answer depends least on the gradient's direction. Bilinear
    rendering at random fractions of a pixel keeps 0.83 of it on the ten sections of
    `em/aligntk_raw`; of Sobel's 0.84, of plain central differences 0.78.
    """
    grey = section.astype(np.float32)
    down, across = grey[2:] - grey[:-2], grey[:, 2:] - grey[:, :-2]
    gy = (3 * down[:, :-2] + 10 * down[:, 1:-1] + 3 * down[:, 2:]) / 32
    gx = (3 * across[:-2] + 10 * across[1:-1] + 3 * across[2:]) / 32
    length = np.sqrt(gy * gy + gx * gx)
    if valid is None:
        return float(length.mean())
    inner = scipy.ndimage.binary_erosion(valid, np.ones((3, 3)))[1:-1, 1:-1]
    return float(length[inner].mean()) if inner.any() else 0.0
