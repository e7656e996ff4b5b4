"""How well two segmentations agree: adapted Rand error, variation of information.

Arganda-Carreras et al., "Crowdsourcing the creation of image segmentation algorithms for
connectomics", Frontiers in Neuroanatomy 2015; Meila, "Comparing clusterings", COLT 2003.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of a segmentation with the truth, where the truth is not 0.

    Args:
        rand_error: 1 - F score of pairs of pixels that are together; 0 is perfect.
        split_bits: conditional entropy of the segmentation given the truth: objects cut up.
        merge_bits: conditional entropy of the truth given the segmentation: objects joined.
    """

    rand_error: float
    split_bits: float
    merge_bits: float

    @property
    def information_bits(self) -> float:
        """Variation of information."""
        return self.split_bits + self.merge_bits


def agreement(found: NDArray[np.integer], truth: NDArray[np.integer]) -> Agreement:
    """Compare labels of equal shape; pixels where `truth` is 0 are left out.

    Raises:
        ValueError: shapes differ, or the truth is empty.
    """
    if found.shape != truth.shape:
        raise ValueError(f"shapes differ: {found.shape} and {truth.shape}")
    real = truth > 0
    if not real.any():
        raise ValueError("the truth holds no object")
    _, a = np.unique(found[real], return_inverse=True)
    _, b = np.unique(truth[real], return_inverse=True)
    width = int(b.max()) + 1
    _, counts = np.unique(a.astype(np.int64) * width + b, return_counts=True)
    joint = counts / a.size
    of_found = np.bincount(a) / a.size
    of_truth = np.bincount(b) / b.size
    together = float(np.sum(joint**2))
    precision, recall = together / float(np.sum(of_found**2)), together / float(np.sum(of_truth**2))
    entropy = _entropy(joint)
    return Agreement(
        rand_error=1 - 2 * precision * recall / (precision + recall),
        split_bits=max(entropy - _entropy(of_truth), 0.0),
        merge_bits=max(entropy - _entropy(of_found), 0.0),
    )


def _entropy(shares: NDArray[np.float64]) -> float:
    return float(-np.sum(shares * np.log2(shares)))
