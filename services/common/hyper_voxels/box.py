"""Half-open boxes of N-d arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Box:
    """The indices i with `start[a] <= i[a] < stop[a]` on every axis a; it may be empty.

    Axes are in array order, `(c,) z, y, x`.
    """

    start: tuple[int, ...]
    stop: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"box of {len(self.start)} starts and {len(self.stop)} stops")
        if any(low > high for low, high in zip(self.start, self.stop, strict=True)):
            raise ValueError(f"box stops before it starts: {self}")

    @classmethod
    def of_shape(cls, shape: Sequence[int]) -> Self:
        """The whole of an array of `shape`."""
        return cls((0,) * len(shape), tuple(int(size) for size in shape))

    @classmethod
    def at(cls, start: Sequence[int], shape: Sequence[int]) -> Self:
        """A box of `shape` that begins at `start`."""
        pairs = zip(start, shape, strict=True)
        return cls(tuple(map(int, start)), tuple(int(low) + int(size) for low, size in pairs))

    @classmethod
    def bounding(cls, boxes: Iterable[Box]) -> Self:
        """The smallest box that holds all of `boxes` (at least one)."""
        starts, stops = zip(*((box.start, box.stop) for box in boxes), strict=True)
        return cls(
            tuple(map(min, zip(*starts, strict=True))), tuple(map(max, zip(*stops, strict=True)))
        )

    @property
    def ndim(self) -> int:
        """How many axes there are."""
        return len(self.start)

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along the axes."""
        return tuple(high - low for low, high in zip(self.start, self.stop, strict=True))

    @property
    def voxels(self) -> int:
        """How many indices the box holds."""
        return math.prod(self.shape)

    @property
    def empty(self) -> bool:
        """It holds no index."""
        return 0 in self.shape

    @property
    def slices(self) -> tuple[slice, ...]:
        """What numpy is indexed with."""
        return tuple(slice(low, high) for low, high in zip(self.start, self.stop, strict=True))

    def __contains__(self, index: Sequence[int]) -> bool:
        return len(index) == self.ndim and all(
            low <= i < high for low, i, high in zip(self.start, index, self.stop, strict=True)
        )

    def covers(self, other: Box) -> bool:
        """Every index of `other` is in this box."""
        return other.empty or (
            all(a <= b for a, b in zip(self.start, other.start, strict=True))
            and all(a >= b for a, b in zip(self.stop, other.stop, strict=True))
        )

    def intersect(self, other: Box) -> Box:
        """The indices in both; empty where they do not meet."""
        start = tuple(map(max, zip(self.start, other.start, strict=True)))
        stop = tuple(map(min, zip(self.stop, other.stop, strict=True)))
        return Box(start, tuple(max(low, high) for low, high in zip(start, stop, strict=True)))

    def overlaps(self, other: Box) -> bool:
        """They share at least one index."""
        return not self.intersect(other).empty

    def translate(self, offset: Sequence[int]) -> Box:
        """The box moved by `offset`."""
        return Box(
            tuple(a + b for a, b in zip(self.start, offset, strict=True)),
            tuple(a + b for a, b in zip(self.stop, offset, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Box:
        """The same box counted from `origin`."""
        return self.translate([-i for i in origin])

    def grow(self, before: Sequence[int], after: Sequence[int] | None = None) -> Box:
        """Wider by `before` at the start and `after` (by default as much) at the stop."""
        after = before if after is None else after
        return Box(
            tuple(a - b for a, b in zip(self.start, before, strict=True)),
            tuple(a + b for a, b in zip(self.stop, after, strict=True)),
        )

    def __str__(self) -> str:
        return ", ".join(f"{a}:{b}" for a, b in zip(self.start, self.stop, strict=True))
