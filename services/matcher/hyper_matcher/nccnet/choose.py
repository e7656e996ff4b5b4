"""Which features to match with, decided without labels: by how far neighbouring matches agree.

Templates on a lattice are looked for in the next sections. A match that lies where the affine map
of its neighbours' matches puts it is a good one; matches that are wrong lie anywhere. The share of
good ones on sections that no net was trained on ranks the candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.filters import consensus
from hyper_matcher.align.geometry import lattice
from hyper_matcher.bandpass import bandpass
from hyper_matcher.ncc import SearchImage, correlate_windows
from hyper_matcher.peaks import find_peaks

if TYPE_CHECKING:
    from hyper_matcher.nccnet.model import NCCNet

_BANDS = ((0.7, 8.0), (1.0, 16.0), (1.5, 24.0), (2.0, 10.0), (2.0, 16.0), (2.0, 48.0), (4.0, 16.0))
_BATCH = 64
_RESAMPLINGS = 1000


@dataclass(frozen=True, slots=True)
class Candidate:
    """A way to make features.

    Args:
        name: as reports name it.
        make: section (Y, X) -> features (Y // factor, X // factor), float32.
        factor: section pixels a feature.
        order: among equals the lowest wins: the simplest.
    """

    name: str
    make: Callable[[NDArray[Any]], NDArray[np.float32]]
    factor: int = 1
    order: int = 0


@dataclass(frozen=True, slots=True)
class Score:
    """How a candidate did.

    Args:
        name: the candidate's.
        rate: share of the templates whose match agrees with its neighbours'.
        low, high: its 95% interval, from resampled pairs of sections.
        tried: templates.
    """

    name: str
    rate: float
    low: float
    high: float
    tried: int


@dataclass(frozen=True, slots=True)
class Trial:
    """What is matched; lengths in px of the sections.

    Args:
        template_px: edge of a template.
        search_px: radius.
        tolerance_px: distance from the neighbours' affine map that counts as agreement.
        distances: sections z are matched with z + each of these.
    """

    template_px: int = 160
    search_px: int = 100
    tolerance_px: float = 20.0
    distances: tuple[int, ...] = (1, 2)


def candidates(net: NCCNet, sections: Sequence[NDArray[Any]]) -> list[Candidate]:
    """Raw sections, band-passes, the net: the simplest first. Needs torch."""
    from hyper_matcher.nccnet.train import features

    mean = float(np.mean([section.mean() for section in sections]))

    def band(low: float, high: float) -> Callable[[NDArray[Any]], NDArray[np.float32]]:
        return lambda section: bandpass(section, low, high, offset=mean, gain=1.0, bounded=False)

    return [
        Candidate("raw", lambda section: section.astype(np.float32), order=0),
        *(
            Candidate(f"band-pass {low:g}-{high:g} px", band(low, high), order=1)
            for low, high in _BANDS
        ),
        Candidate("net", lambda section: features(net, section), net.config.factor, order=2),
    ]


def why(scores: Sequence[Score]) -> str:
    """One line: what is used, and how it compares."""
    best = scores[0]
    line = f"{best.name}: {best.rate:.1%} of the held-out templates agree with their neighbours"
    other = next((s for s in scores[1:] if (s.name == "net") != (best.name == "net")), None)
    return line if other is None else f"{line}, {other.name} {other.rate:.1%}"


def compare(
    sections: Sequence[NDArray[Any]], candidates: Sequence[Candidate], trial: Trial
) -> list[Score]:
    """Score every candidate on the same templates, the best first.

    Args:
        sections: neighbouring sections (Y, X) that no candidate was trained on; at least two.
        candidates: what to compare.
        trial: what is matched.

    Raises:
        ValueError: too few sections, or too small ones.
    """
    pairs = [(z, z + d) for d in trial.distances for z in range(len(sections) - d)]
    if not pairs:
        raise ValueError(f"{len(sections)} section(s): a comparison needs at least two neighbours")
    shape = sections[0].shape
    points = lattice(
        (shape[0], shape[1]), 0.5 * trial.template_px, trial.template_px / 2 + trial.search_px
    )
    if len(points) < 6:
        raise ValueError(
            f"sections of {shape[0]} x {shape[1]} px have no room for templates of "
            f"{trial.template_px} px searched within {trial.search_px} px"
        )
    rates: list[NDArray[np.float64]] = []
    for candidate in candidates:
        made = [SearchImage(candidate.make(section)) for section in sections]
        rates.append(
            np.array(
                [agreement(made[a], made[b], points, candidate.factor, trial) for a, b in pairs]
            )
        )
    drawn = np.random.default_rng(0).integers(0, len(pairs), (_RESAMPLINGS, len(pairs)))
    scores = []
    for candidate, rate in zip(candidates, rates, strict=True):
        low, high = np.quantile(rate[drawn].mean(axis=1), [0.025, 0.975])
        scores.append(
            (
                candidate.order,
                Score(
                    candidate.name, float(rate.mean()), float(low), float(high),
                    len(pairs) * len(points),
                ),
            )
        )  # fmt: skip
    return [
        score for _, score in sorted(scores, key=lambda item: (-round(item[1].rate, 3), item[0]))
    ]


def agreement(
    source: SearchImage,
    target: SearchImage,
    points: NDArray[np.float64],
    factor: int,
    trial: Trial,
) -> float:
    """Share of the templates round `points` (n, 2), px, that lie where their neighbours say."""
    edge, radius = max(8, trial.template_px // factor), max(3, trial.search_px // factor)
    corners = np.round(points / factor - edge / 2).astype(np.int64)
    limit = np.array(source.shape) - edge
    corners = np.clip(corners, radius, limit - radius)
    found = np.zeros((len(points), 2))
    for first in range(0, len(points), _BATCH):
        part = corners[first : first + _BATCH]
        templates = np.stack([source.values[y : y + edge, x : x + edge] for y, x in part.tolist()])
        peaks = find_peaks(correlate_windows(templates, target, part - radius, radius))
        found[first : first + _BATCH] = peaks.offset - radius
    nothing = np.zeros(len(points), np.uint8)
    reasons = consensus(corners.astype(np.float64), found, nothing, trial.tolerance_px / factor)
    return float((reasons == 0).mean())
