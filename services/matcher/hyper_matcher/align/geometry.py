"""Affine maps, triangular meshes, and what matching hands to relaxation. Axes (y, x), px."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]


class Rejection(IntEnum):
    """Why a match was not accepted; the numbers of `hyperapi.matcher.v1.Rejection`."""

    ACCEPTED = 0
    BLANK_TEMPLATE = 1
    BLANK_SEARCH = 2
    LOW_PEAK = 3
    LOW_DISTINCTNESS = 4
    PEAK_RATIO = 5
    DYNAMIC_RANGE = 6
    KURTOSIS = 7
    WIDE_PEAK = 8
    EDGE_OF_SEARCH = 9
    CONSENSUS = 10
    OUTSIDE = 11


# Points that say nothing about a fit: they do not count as tried.
NOTHING_TO_MATCH = (Rejection.BLANK_TEMPLATE, Rejection.BLANK_SEARCH, Rejection.OUTSIDE)


@dataclass(frozen=True, slots=True)
class Affine:
    """target = matrix @ source + offset.

    Args:
        matrix: (2, 2), rows and columns (y, x).
        offset: (2,), px.
    """

    matrix: NDArray[np.float64]
    offset: NDArray[np.float64]

    @classmethod
    def identity(cls) -> Affine:
        """The map that changes nothing."""
        return cls(np.eye(2), np.zeros(2))

    @classmethod
    def rigid(cls, angle_rad: float, center: Points, shift: Points) -> Affine:
        """Rotation about `center`, then `shift`; a positive angle turns y towards x."""
        c, s = math.cos(angle_rad), math.sin(angle_rad)
        matrix = np.array([[c, -s], [s, c]])
        return cls(matrix, np.asarray(center) + np.asarray(shift) - matrix @ np.asarray(center))

    @classmethod
    def fit(cls, source: Points, target: Points, weights: NDArray[Any] | None = None) -> Affine:
        """Weighted least squares over n >= 3 pairs of points (n, 2)."""
        w = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
        total = w.sum()
        mean_s = np.asarray((w[:, None] * source).sum(0) / total, np.float64)
        mean_t = np.asarray((w[:, None] * target).sum(0) / total, np.float64)
        s, t = source - mean_s, target - mean_t
        normal = (w[:, None] * s).T @ s + 1e-9 * np.eye(2)
        matrix = np.asarray(np.linalg.solve(normal, (w[:, None] * s).T @ t).T, np.float64)
        return cls(matrix, np.asarray(mean_t - matrix @ mean_s, np.float64))

    @classmethod
    def fit_rigid(
        cls, source: Points, target: Points, weights: NDArray[Any] | None = None
    ) -> Affine:
        """The best rotation and shift (Kabsch) over n >= 2 pairs of points (n, 2)."""
        w = np.ones(len(source)) if weights is None else np.asarray(weights, np.float64)
        total = w.sum()
        mean_s, mean_t = (w[:, None] * source).sum(0) / total, (w[:, None] * target).sum(0) / total
        u, _, vt = np.linalg.svd((w[:, None] * (target - mean_t)).T @ (source - mean_s))
        turn = u @ np.diag([1.0, np.sign(np.linalg.det(u @ vt)) or 1.0]) @ vt
        return cls(np.asarray(turn, np.float64), mean_t - turn @ mean_s)

    def __call__(self, points: Points) -> Points:
        """Map (n, 2) points."""
        return np.asarray(points @ self.matrix.T + self.offset)

    def then(self, second: Affine) -> Affine:
        """`second` after this one."""
        return Affine(second.matrix @ self.matrix, second.matrix @ self.offset + second.offset)

    def inverse(self) -> Affine:
        """The way back."""
        back = np.asarray(np.linalg.inv(self.matrix), np.float64)
        return Affine(back, -back @ self.offset)

    def scaled(self, factor: float) -> Affine:
        """The same map where every pixel has become `factor` pixels."""
        return Affine(self.matrix, self.offset * factor)

    @property
    def angle_rad(self) -> float:
        """Of its rotation."""
        m = self.matrix
        return math.atan2(m[1, 0] - m[0, 1], m[0, 0] + m[1, 1])


@dataclass(frozen=True, slots=True)
class PairMatches:
    """Everything matching found between two sections, rejected points included.

    Args:
        source_z: section the templates come from.
        target_z: section searched.
        coarse: source -> target, what the fine search started from.
        coarse_score: share of the coarse blocks that agree with it, 0..1.
        source: (n, 2) template centres in the source, px.
        displacement: (n, 2); the content of `source` lies at `source + displacement`.
        p1: (n,) first peak.
        p2: (n,) highest score outside a box round it.
        rejection: (n,) `Rejection` numbers.
        compute_s: seconds it took.
        flag: empty, or why the pair as a whole cannot be trusted.
    """

    source_z: int
    target_z: int
    coarse: Affine
    coarse_score: float
    source: Points
    displacement: Points
    p1: NDArray[np.float64]
    p2: NDArray[np.float64]
    rejection: NDArray[np.uint8]
    compute_s: float
    flag: str = ""

    @property
    def accepted(self) -> NDArray[np.bool_]:
        """(n,) which matches count."""
        return np.asarray(self.rejection == Rejection.ACCEPTED)

    def part(self, chosen: NDArray[np.bool_]) -> PairMatches:
        """Some of its points, (n,)."""
        return replace(
            self, source=self.source[chosen], displacement=self.displacement[chosen],
            p1=self.p1[chosen], p2=self.p2[chosen], rejection=self.rejection[chosen],
        )  # fmt: skip

    @property
    def tried(self) -> int:
        """How many points had tissue to be matched in both sections."""
        return int((~np.isin(self.rejection, NOTHING_TO_MATCH)).sum())

    def counts(self) -> dict[str, int]:
        """Rejected matches by reason, in lower case."""
        numbers = np.bincount(self.rejection, minlength=len(Rejection))
        return {r.name.lower(): int(numbers[r]) for r in Rejection if r and numbers[r]}


def point_pairs(points: Sequence[Sequence[float]]) -> list[PairMatches]:
    """Pairs of points that a person knows to be the same tissue, as matches, section by section.

    Args:
        points: (z, y, x, z, y, x) each, px.
    """
    by_pair: dict[tuple[int, int], list[tuple[float, ...]]] = {}
    for z0, y0, x0, z1, y1, x1 in points:
        forward = (int(z0), int(z1), y0, x0, y1, x1)
        a, b, *ends = forward if z0 < z1 else (int(z1), int(z0), y1, x1, y0, x0)
        by_pair.setdefault((int(a), int(b)), []).append(tuple(ends))
    found = []
    for (a, b), ends_of_pair in sorted(by_pair.items()):
        ends_array = np.array(ends_of_pair, np.float64)
        source, target = ends_array[:, :2], ends_array[:, 2:]
        count = len(source)
        rigid = Affine.fit_rigid(source, target)
        certain, accepted = np.ones(count), np.zeros(count, np.uint8)
        displacement, none = target - source, np.zeros(count)
        found.append(
            PairMatches(a, b, rigid, 1.0, source, displacement, certain, none, accepted, 0.0)
        )
    return found


@dataclass(frozen=True, slots=True)
class Mesh:
    """A regular triangular mesh over a section: a grid whose cells are cut in two.

    Args:
        shape: (height, width) of the section, px.
        rows: vertices down.
        columns: vertices across.
    """

    shape: tuple[int, int]
    rows: int
    columns: int

    @classmethod
    def over(cls, shape: tuple[int, int], spacing_px: float) -> Mesh:
        """Vertices about `spacing_px` apart, the outermost on the section's border."""
        if spacing_px <= 0:
            raise ValueError(f"the mesh's spacing must be above 0, not {spacing_px}")
        rows = max(2, round((shape[0] - 1) / spacing_px) + 1)
        return cls(shape, rows, max(2, round((shape[1] - 1) / spacing_px) + 1))

    @property
    def pitch(self) -> tuple[float, float]:
        """Distance of neighbouring vertices, (y, x)."""
        return (self.shape[0] - 1) / (self.rows - 1), (self.shape[1] - 1) / (self.columns - 1)

    @property
    def vertices(self) -> Points:
        """(n, 2), row by row."""
        y = np.linspace(0, self.shape[0] - 1, self.rows)
        x = np.linspace(0, self.shape[1] - 1, self.columns)
        return np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)

    def places(self, numbers: NDArray[np.int64]) -> Points:
        """(n, 2) of some vertices."""
        return np.asarray(np.stack(np.divmod(numbers, self.columns), -1) * np.array(self.pitch))

    @property
    def triangles(self) -> NDArray[np.int64]:
        """(2 (rows - 1) (columns - 1), 3) vertex numbers."""
        i, j = np.meshgrid(np.arange(self.rows - 1), np.arange(self.columns - 1), indexing="ij")
        corner = (i * self.columns + j).ravel()
        down, right = corner + self.columns, corner + 1
        return np.concatenate(
            [np.stack([corner, right, down], -1), np.stack([down + 1, down, right], -1)]
        )

    @property
    def edges(self) -> NDArray[np.int64]:
        """(m, 2) vertex numbers: along rows, along columns, and the cells' diagonals."""
        n = np.arange(self.rows * self.columns).reshape(self.rows, self.columns)
        return np.concatenate(
            [
                np.stack([n[:, :-1].ravel(), n[:, 1:].ravel()], -1),
                np.stack([n[:-1].ravel(), n[1:].ravel()], -1),
                np.stack([n[:-1, 1:].ravel(), n[1:, :-1].ravel()], -1),
            ]
        )

    def barycentric(self, points: Points) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Vertex numbers (n, 3) and weights (n, 3) of points; outside ones extrapolate."""
        pitch = self.pitch
        y, x = points[:, 0] / pitch[0], points[:, 1] / pitch[1]
        i = np.clip(np.floor(y), 0, self.rows - 2).astype(np.int64)
        j = np.clip(np.floor(x), 0, self.columns - 2).astype(np.int64)
        u, v = y - i, x - j
        corner = i * self.columns + j
        right, down = corner + 1, corner + self.columns
        upper = u + v <= 1
        first = np.where(upper, corner, down + 1)
        weights = np.stack(
            [
                np.where(upper, 1 - u - v, u + v - 1),
                np.where(upper, v, 1 - u),
                np.where(upper, u, 1 - v),
            ],
            -1,
        )
        second, third = np.where(upper, right, right), np.where(upper, down, down)
        return np.stack([first, second, third], -1), weights


def lattice(shape: tuple[int, int], spacing_px: float, margin_px: float) -> Points:
    """Points of an equilateral triangular lattice, `margin_px` off the border: (n, 2)."""
    step_y = spacing_px * math.sqrt(3) / 2
    room = [max(0.0, edge - 1 - 2 * margin_px) for edge in shape]
    rows = int(room[0] // step_y) + 1
    columns = int(room[1] // spacing_px) + 1
    y0 = margin_px + (room[0] - (rows - 1) * step_y) / 2
    x0 = margin_px + (room[1] - (columns - 1) * spacing_px) / 2
    points = []
    for row in range(rows):
        odd = row % 2
        x = x0 + (np.arange(columns - odd) + 0.5 * odd) * spacing_px
        points.append(np.stack([np.full(len(x), y0 + row * step_y), x], -1))
    return np.concatenate(points)
