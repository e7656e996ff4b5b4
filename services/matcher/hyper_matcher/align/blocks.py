"""Sections too large for memory: matched, rendered and measured part by part, without seams.

A part is matched with a margin, and keeps the matches whose source lies in it; all parts' matches
are then one set, so that the relaxation knows nothing of parts. Rendering reads the window of the
source that a part of the canvas shows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.geometry import Affine, PairMatches
from hyper_matcher.align.render import render_maps

Span = tuple[int, int, int, int]  # y0, x0, y1, x1, ends excluded


def grown(core: Span, by_px: int, shape: tuple[int, int]) -> Span:
    """The block with a margin, as far as the section reaches."""
    y0, x0, y1, x1 = core
    return (
        max(0, y0 - by_px), max(0, x0 - by_px),
        min(shape[0], y1 + by_px), min(shape[1], x1 + by_px),
    )  # fmt: skip


def within_block(found: Any, window: Span, core: Span) -> PairMatches:
    """Matches of a window, in px of the section; those whose source lies in the core.

    Args:
        found: matches relative to the window's first pixel.
        window: that was looked at.
        core: of the block.
    """
    corner = np.array(window[:2], np.float64)
    source = found.source + corner
    low, high = np.array(core[:2]) - 0.5, np.array(core[2:]) - 0.5
    kept = ((source >= low) & (source < high)).all(axis=1)
    matrix = np.asarray(found.coarse.matrix, np.float64)
    coarse = Affine(matrix, np.asarray(found.coarse.offset) + corner - matrix @ corner)
    return PairMatches(
        found.source_z, found.target_z, coarse, found.coarse_score, source[kept],
        found.displacement[kept], found.p1[kept], found.p2[kept],
        np.asarray(found.rejection[kept], np.uint8), found.compute_s, found.flag,
    )  # fmt: skip


def join_blocks(parts: Sequence[PairMatches]) -> PairMatches:
    """The matches of all blocks of a pair as one; it is flagged if most of its blocks are."""
    if len(parts) == 1:
        return parts[0]
    best = max(parts, key=lambda part: part.coarse_score)
    flags = Counter(part.flag for part in parts if part.flag)
    flag = ""
    if 2 * flags.total() > len(parts):
        flag = f"{flags.total()} of {len(parts)} blocks: {flags.most_common(1)[0][0]}"
    return replace(
        best,
        source=np.concatenate([part.source for part in parts]),
        displacement=np.concatenate([part.displacement for part in parts]),
        p1=np.concatenate([part.p1 for part in parts]),
        p2=np.concatenate([part.p2 for part in parts]),
        rejection=np.concatenate([part.rejection for part in parts]),
        compute_s=sum(part.compute_s for part in parts),
        flag=flag,
    )


def render_window(
    maps: NDArray[np.float32],
    shape: tuple[int, int],
    dtype: str,
    read: Callable[[slice, slice], NDArray[Any]],
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """A part of the canvas from the window of the source that it shows.

    Args:
        maps: (h, w, 2), where each pixel lies in the section; NaN outside.
        shape: of the section.
        dtype: of the section.
        read: gives rows and columns of the section.
    """
    known = np.isfinite(maps).all(axis=-1)
    if not known.any():
        return np.zeros(maps.shape[:2], dtype), np.zeros(maps.shape[:2], bool)
    places = maps[known]
    low = np.clip(np.floor(places.min(axis=0)).astype(int) - 1, 0, np.array(shape) - 2)
    high = np.clip(np.ceil(places.max(axis=0)).astype(int) + 3, low + 2, np.array(shape))
    window = read(slice(int(low[0]), int(high[0])), slice(int(low[1]), int(high[1])))
    return render_maps(window, maps - low.astype(np.float32))


@dataclass(slots=True)
class Means:
    """A mean that is gathered part by part."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, weight: float) -> None:
        """Take in the mean of a part."""
        self.total += value * weight
        self.weight += weight

    @property
    def mean(self) -> float:
        """Of all parts; 0 where there were none."""
        return self.total / self.weight if self.weight else 0.0
