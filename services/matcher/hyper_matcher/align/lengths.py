"""Very many lengths as few numbers: how often each hundredth of a pixel was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_A_PX = 100


@dataclass(frozen=True, slots=True, eq=False)
class Lengths:
    """Lengths to 0.01 px: as large as the span that they have, however many there are.

    A pair of sections of 100,000 px has a million fresh matches, and a stack thousands of pairs.

    Args:
        hundredths: (n,) of a pixel, ascending, each once.
        counts: (n,) how often each was seen.
    """

    hundredths: NDArray[np.int32]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, px: ArrayLike) -> Lengths:
        """From the lengths themselves, px."""
        rounded = np.rint(np.asarray(px, np.float64) * _A_PX).astype(np.int32)
        found, counts = np.unique(rounded, return_counts=True)
        return cls(found, counts.astype(np.int64))

    @classmethod
    def joined(cls, parts: Iterable[Lengths]) -> Lengths:
        """All of them together."""
        sums = np.zeros(0, np.int64)
        for part in parts:
            if len(part.hundredths):
                room = int(part.hundredths[-1]) + 1
                if room > len(sums):
                    sums = np.pad(sums, (0, room - len(sums)))
                sums[part.hundredths] += part.counts
        found = np.flatnonzero(sums)
        return cls(found.astype(np.int32), sums[found])

    def __len__(self) -> int:
        """How many lengths."""
        return int(self.counts.sum())

    @property
    def px(self) -> NDArray[np.float64]:
        """(n,) px: the different ones."""
        return self.hundredths / _A_PX

    def percentile(self, share: float) -> float | None:
        """As `numpy.percentile` of all of them, px; None where there are none."""
        total = len(self)
        if total == 0:
            return None
        place = (total - 1) * share / 100
        ends = np.cumsum(self.counts)
        low, high = (
            float(self.px[np.searchsorted(ends, at, side="right")])
            for at in (np.floor(place), np.ceil(place))
        )
        return float(low + (high - low) * (place - np.floor(place)))

    def share_over(self, px: float) -> float | None:
        """Which part is longer."""
        total = len(self)
        return float(self.counts[self.px > px].sum() / total) if total else None

    def to_json(self) -> Mapping[str, Sequence[int]]:
        """As plain values."""
        return {"hundredths_px": self.hundredths.tolist(), "counts": self.counts.tolist()}

    @classmethod
    def from_json(cls, values: Mapping[str, Sequence[int]]) -> Lengths:
        """The way back."""
        return cls(
            np.array(values["hundredths_px"], np.int32), np.array(values["counts"], np.int64)
        )


NONE = Lengths.of(())
