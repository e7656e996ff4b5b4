"""A whole stack in memory: the functions that the jobs run, one after the other."""

from __future__ import annotations

import resource
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.facts import facts_of
from hyper_matcher.align.geometry import PairMatches
from hyper_matcher.align.match import MatchOptions, PreparedSection, match_pair
from hyper_matcher.align.metrics import mean_gradient
from hyper_matcher.align.order import swapped_sections
from hyper_matcher.align.quality import Facts, PairQuality, measure_pair, result_object
from hyper_matcher.align.relax import RelaxedStack, relax
from hyper_matcher.align.render import (
    Canvas,
    choose_canvas,
    jacobians,
    placed_px,
    render_section,
    tissue_kept,
)
from hyper_matcher.align.springs import RelaxOptions
from hyper_matcher.bandpass import bandpass


@dataclass(frozen=True, slots=True)
class AlignOptions:
    """How to align a stack.

    Args:
        sigma_low_px: narrow Gaussian of the band-pass.
        sigma_high_px: wide one.
        neighbours: each section is matched with so many following ones.
        match: of a pair.
        relax: of the stack.
        min_kept: share of each section that the input's frame must keep to be the output's.
    """

    sigma_low_px: float = 2.0
    sigma_high_px: float = 10.0
    neighbours: int = 3
    match: MatchOptions = field(default_factory=MatchOptions)
    relax: RelaxOptions = field(default_factory=RelaxOptions)
    min_kept: float = 0.97


@dataclass(frozen=True, slots=True)
class AlignedStack:
    """An aligned stack and how it came to be.

    Args:
        sections: (Z, height, width) of the source's dtype, 0 where there is no tissue.
        valid: (Z, height, width).
        canvas: the part of the common frame that `sections` shows.
        relaxed: the meshes.
        pairs: all matches.
        before: quality of the neighbours as they came.
        after: quality of the neighbours, and of the next but one, as rendered.
        facts: what the result object is made from.
        stages: seconds of each stage.
    """

    sections: NDArray[Any]
    valid: NDArray[np.bool_]
    canvas: Canvas
    relaxed: RelaxedStack
    pairs: tuple[PairMatches, ...]
    before: tuple[PairQuality, ...]
    after: tuple[PairQuality, ...]
    facts: Facts
    stages: dict[str, float]

    @property
    def result(self) -> dict[str, Any]:
        """The result object."""
        return result_object(self.before, self.after, self.facts)


def pairs_of(depth: int, neighbours: int) -> list[tuple[int, int]]:
    """(z, z + d) for d from 1 to `neighbours`, section by section."""
    return [
        (z, z + d) for z in range(depth) for d in range(1, neighbours + 1) if z + d < depth
    ]  # fmt: skip


def align_stack(
    volume: NDArray[Any], options: AlignOptions | None = None, *, measure: bool = True
) -> AlignedStack:
    """Align (Z, H, W) sections of an integer dtype; at least two.

    Args:
        volume: as scanned.
        options: how.
        measure: False leaves the quality out.
    """
    if volume.ndim != 3 or len(volume) < 2:
        raise ValueError(
            f"an alignment needs (z, y, x) with two sections or more, not {volume.shape}"
        )
    options = options or AlignOptions()
    clock = _Clock()
    depth, shape = len(volume), (volume.shape[1], volume.shape[2])
    pairs = _match(volume, options, clock)
    relaxed = relax(shape, depth, pairs, options.relax)
    relaxed = replace(
        relaxed, flagged=swapped_sections(depth, map(facts_of, pairs)) | relaxed.flagged
    )
    clock.lap("relax")
    canvas = choose_canvas(
        relaxed.positions, relaxed.mesh, options.min_kept, tuple(relaxed.flagged)
    )
    rendered = [
        render_section(volume[z], relaxed.positions[z], relaxed.mesh, canvas) for z in range(depth)
    ]
    sections = np.stack([section for section, _ in rendered])
    valid = np.stack([mask for _, mask in rendered])
    clock.lap("render")
    before, after = _measure(volume, sections, depth) if measure else ((), ())
    clock.lap("measure")
    return AlignedStack(
        sections, valid, canvas, relaxed, pairs, before, after,
        _facts(volume, sections, valid, canvas, relaxed, pairs, clock), clock.stages,
    )  # fmt: skip


def _match(volume: NDArray[Any], options: AlignOptions, clock: _Clock) -> tuple[PairMatches, ...]:
    """All pairs; only the sections that coming pairs need are held prepared."""
    prepared: dict[int, PreparedSection] = {}
    found = []
    for pair in pairs_of(len(volume), options.neighbours):
        for z in set(pair) - set(prepared):
            features = bandpass(volume[z], options.sigma_low_px, options.sigma_high_px)
            prepared[z] = PreparedSection(features, options.match)
        clock.lap("features")
        for z in [z for z in prepared if z < pair[0]]:
            del prepared[z]
        found.append(match_pair(prepared[pair[0]], prepared[pair[1]], *pair))
        clock.lap("match")
    return tuple(found)


def _measure(
    volume: NDArray[Any], sections: NDArray[Any], depth: int
) -> tuple[tuple[PairQuality, ...], tuple[PairQuality, ...]]:
    before = tuple(
        measure_pair(volume[z], volume[z + 1], z, z + 1, residuals=False) for z in range(depth - 1)
    )
    after = tuple(measure_pair(sections[a], sections[b], a, b) for a, b in pairs_of(depth, 2))
    return before, after


def _facts(
    volume: NDArray[Any],
    sections: NDArray[Any],
    valid: NDArray[np.bool_],
    canvas: Canvas,
    relaxed: RelaxedStack,
    pairs: tuple[PairMatches, ...],
    clock: _Clock,
) -> Facts:
    depth = len(volume)
    areas = np.concatenate([jacobians(p, relaxed.mesh) for p in relaxed.positions])
    kept = [
        tissue_kept(int(valid[z].sum()), placed_px(relaxed.positions[z], relaxed.mesh))
        for z in range(depth)
    ]
    source = float(np.mean([mean_gradient(section) for section in volume]))
    output = float(np.mean([mean_gradient(sections[z], valid[z]) for z in range(depth)]))
    rejected: Counter[str] = Counter()
    for pair in pairs:
        rejected.update(pair.counts())
    wall, cpu = clock.totals()
    return Facts(
        tissue_kept=float(np.mean(kept)),
        sharpness=output / source if source > 0 else 0.0,
        jacobian_min=float(areas.min()),
        jacobian_max=float(areas.max()),
        matches=sum(int(pair.accepted.sum()) for pair in pairs),
        rejected=dict(rejected),
        flagged=relaxed.flagged,
        seconds=wall,
        cpu_seconds=cpu,
        peak_rss_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._cpu = time.process_time()
        self.stages: dict[str, float] = {}

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    def totals(self) -> tuple[float, float]:
        return time.perf_counter() - self._start, time.process_time() - self._cpu
