"""What stitching hands from stage to stage. Axes (y, x), px of a tile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Points, Rejection
from hyper_matcher.align.sampling import downsample

GRID = 8  # a tile's brightness is looked at in so many boxes each way


@dataclass(frozen=True, slots=True)
class StitchOptions:
    """How to stitch.

    Args:
        search_px: how far a tile may lie from where its position says, against its neighbour; 0: a
            tenth of the tile, widened up to half of it where nothing is found.
        min_overlap_px: overlaps that the positions say are thinner are not looked at.
        lens_degree: of the polynomial all tiles share; 0: none; -1: as the overlaps allow, up to 5.
        illumination: even out a brightness pattern that all tiles share, and tiles' own brightness.
        tolerance_px: how far a match may lie from its neighbours' affine map.
        sigma_low_px: narrow Gaussian of the band-pass that is matched.
        sigma_high_px: wide one.
    """

    search_px: int = 0
    min_overlap_px: int = 16
    lens_degree: int = -1
    illumination: bool = True
    tolerance_px: float = 3.0
    sigma_low_px: float = 1.5
    sigma_high_px: float = 8.0

    def __post_init__(self) -> None:
        if self.search_px < 0 or self.min_overlap_px < 8:
            raise ValueError("the search must not be negative, and overlaps at least 8 px")
        if not -1 <= self.lens_degree <= 7:
            raise ValueError(f"the lens polynomial's degree is -1 to 7, not {self.lens_degree}")


@dataclass(frozen=True, slots=True)
class TileFacts:
    """What is known of one tile's brightness.

    Args:
        grid: (GRID, GRID) mean grey values of its boxes.
        blank: whether it has no contrast at all.
    """

    grid: NDArray[np.float64]
    blank: bool

    @classmethod
    def of(cls, tile: NDArray[Any]) -> TileFacts:
        """Look at a tile (H, W)."""
        edge = min(tile.shape)
        small = downsample(tile, max(1, edge // 64)).astype(np.float64)
        rows = np.array_split(small, GRID, axis=0)
        grid = [[float(box.mean()) for box in np.array_split(row, GRID, axis=1)] for row in rows]
        return cls(np.array(grid), bool(tile.min() == tile.max()))


@dataclass(frozen=True, slots=True)
class Seam:
    """What matching found in the overlap of two tiles, rejected matches included.

    Args:
        first: number of a tile.
        second: number of the other.
        first_points: (n, 2), in the first tile.
        second_points: (n, 2), where the same tissue is in the second.
        score: (n,) correlation.
        rejection: (n,) `Rejection` numbers.
        grey: (n, 2) mean grey value round the point in either tile.
        shift: (2,) px by which the whole overlap is off from what the positions say.
        flag: empty, or why nothing is known of this overlap.
    """

    first: int
    second: int
    first_points: Points
    second_points: Points
    score: NDArray[np.float64]
    rejection: NDArray[np.uint8]
    grey: NDArray[np.float64]
    shift: NDArray[np.float64]
    flag: str = ""

    @classmethod
    def nothing(cls, first: int, second: int, flag: str) -> Seam:
        """An overlap of which nothing is known."""
        none = np.zeros((0, 2))
        return cls(
            first, second, none, none, np.zeros(0), np.zeros(0, np.uint8), none, np.zeros(2), flag
        )

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(n,) which matches count."""
        return np.asarray(self.rejection == Rejection.ACCEPTED)

    def counts(self) -> dict[str, int]:
        """Rejected matches by reason, in lower case."""
        numbers = np.bincount(self.rejection, minlength=len(Rejection))
        return {r.name.lower(): int(numbers[r]) for r in Rejection if r and numbers[r]}
