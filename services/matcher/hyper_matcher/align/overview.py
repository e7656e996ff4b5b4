"""Large sections as a whole: shrunk to where any rotation and any shift can be looked for.

The blocks of a large section look round the place where a coarse fit of the whole sections puts
them, so that neighbours may be turned and shifted as far as those of small sections.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.blocks import Span
from hyper_matcher.align.coarse import CoarseImage, CoarseOptions, coarse_fit, from_factor
from hyper_matcher.align.geometry import Affine

EDGE_PX = 1024  # of an overview, at most
_BAND_PX = 2**25  # pixels that are shrunk at a time
_TISSUE = 0.25  # of a pixel of the overview, from which on it shows any
_OPTIONS = CoarseOptions(block_edge_px=512)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A part of a section, shrunk.

    Args:
        origin: (y, x) in the overview.
        grey: (h, w) mean of the pixels with tissue.
        tissue: (h, w) how much of each pixel is tissue, 0..1.
    """

    origin: tuple[int, int]
    grey: NDArray[np.float32]
    tissue: NDArray[np.float32]


def factor_of(shape: Sequence[int]) -> int:
    """By how much a section (H, W) is shrunk: a power of two, so that parts begin at its pixels."""
    return int(2 ** math.ceil(math.log2(max(1.0, max(shape) / EDGE_PX))))


def shrink(read: Callable[[slice, slice], NDArray[Any]], span: Span, factor: int) -> Shrunk:
    """Shrink a part of a section, a band at a time; it begins at multiples of the factor.

    What fills no pixel of the overview at the far edges is left out.
    """
    y0, x0, y1, x1 = span
    height, width = (y1 - y0) // factor, (x1 - x0) // factor
    grey, tissue = (np.zeros((height, width), np.float32) for _ in range(2))
    rows = max(1, _BAND_PX // max(1, width * factor * factor))
    columns = slice(x0, x0 + width * factor)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = read(slice(y0 + top * factor, y0 + bottom * factor), columns)
        boxes = band.reshape(bottom - top, factor, width, factor)
        shown = (boxes > 0).mean(axis=(1, 3), dtype=np.float32)
        mean = boxes.mean(axis=(1, 3), dtype=np.float32)
        grey[top:bottom], tissue[top:bottom] = mean / np.maximum(shown, 1e-6), shown
    return Shrunk((y0 // factor, x0 // factor), grey, tissue)


def joined(parts: Sequence[Shrunk], shape: Sequence[int], factor: int) -> NDArray[np.float32]:
    """The overview (h, w) of a section; where it shows no tissue it has the mean of the rest."""
    found = np.zeros([edge // factor for edge in shape], np.float32)
    shown = np.zeros(found.shape, bool)
    for part in parts:
        y, x = part.origin
        place = np.s_[y : y + part.grey.shape[0], x : x + part.grey.shape[1]]
        found[place], shown[place] = part.grey, part.tissue >= _TISSUE
    found[~shown] = found[shown].mean() if shown.any() else 0.0
    return found


def fit(
    source: NDArray[np.float32], target: NDArray[np.float32], factor: int
) -> tuple[Affine, float]:
    """Where the source's tissue lies in the target, in px of the sections, and how sure that is.

    Args:
        source: (h, w), an overview.
        target: of the same size.
        factor: by which both are shrunk.
    """
    found, share = coarse_fit(CoarseImage(source, _OPTIONS), CoarseImage(target, _OPTIONS))
    return from_factor(found, factor), share
