"""The result object of an alignment: one place where its keys are made."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.lengths import NONE, Lengths
from hyper_matcher.align.metrics import CPC_TILE_PX, chunked_correlation, fresh_residuals

_FAR_PX = 10.0
_WINDOW_PX = 24 * CPC_TILE_PX
_TEMPLATE_PX = 160
_SEARCH_PX = 16  # round a template
_TEMPLATE_ROOM_PX = _TEMPLATE_PX // 2 + _SEARCH_PX
_SPACING_PX = 61
_WIDE_SPACING_PX = 122  # of large sections, which have points enough; templates still overlap


@dataclass(frozen=True, slots=True)
class PairQuality:
    """How well two sections of a rendered stack fit.

    Args:
        source_z: the first.
        target_z: the second.
        cpc: mean correlation of their tiles; None where no tile has tissue in both.
        tiles: how many tiles.
        residuals: lengths of the fresh matches' displacements.
        tried: how many fresh matches were tried.
        coverage: share of the common tissue that their templates cover.
    """

    source_z: int
    target_z: int
    cpc: float | None
    tiles: int
    residuals: Lengths = NONE
    tried: int = 0
    coverage: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "source_z": self.source_z,
            "target_z": self.target_z,
            "cpc": self.cpc,
            "tiles": self.tiles,
            "residuals": self.residuals.to_json(),
            "tried": self.tried,
            "coverage": round(self.coverage, 4),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PairQuality:
        """The way back."""
        return cls(**{**values, "residuals": Lengths.from_json(values["residuals"])})


def measure_pair(
    first: NDArray[Any],
    second: NDArray[Any],
    source_z: int,
    target_z: int,
    *,
    residuals: bool = True,
) -> PairQuality:
    """Score two sections as they are: (H, W) each, 0 where there is no tissue."""
    tiles = chunked_correlation(first, second)
    cpc = float(tiles.mean()) if len(tiles) else None
    fresh: tuple[Lengths, int, float] = NONE, 0, 0.0
    if residuals:
        fresh = _fresh(
            np.pad(first, _SEARCH_PX, "reflect"),
            np.pad(second, _SEARCH_PX, "reflect"),
            np.pad(np.ones(first.shape, bool), _SEARCH_PX),
            _SPACING_PX,
        )
    return PairQuality(source_z, target_z, cpc, len(tiles), *fresh)


def _fresh(
    first: NDArray[Any], second: NDArray[Any], within: NDArray[np.bool_], spacing_px: int
) -> tuple[Lengths, int, float]:
    """Lengths of fresh residuals, points tried, coverage; none where there is no room for them.

    Templates keep a search's width from the edges of what is given, which the sections' own edges
    are mirrored by.
    """
    if min(first.shape) < 1.5 * _TEMPLATE_PX + 2 * _SEARCH_PX:
        return NONE, 0, 0.0
    found = fresh_residuals(
        first, second, template_px=_TEMPLATE_PX, spacing_px=spacing_px, within=within
    )
    return Lengths.of(found.lengths), found.tried, found.coverage


def measure_windows(
    shape: Sequence[int],
    read: Callable[[int, slice, slice], NDArray[Any]],
    source_z: int,
    target_z: int,
    *,
    residuals: bool = True,
    share: tuple[int, int] = (0, 1),
) -> PairQuality:
    """`measure_pair` window by window, so that memory does not grow with the section.

    The tiles that are correlated are those of the whole section. Where there are several windows,
    the grid of fresh matches is twice as wide.

    Args:
        shape: (H, W).
        read: gives (z, rows, columns) of a rendered section.
        source_z: the first.
        target_z: the second.
        residuals: also match afresh.
        share: (k, n): every n-th window from the k-th on; `join_quality` puts all together.
    """
    tiles, correlated = 0, 0.0
    lengths = NONE
    tried, covered, areas = 0, 0.0, 0
    ys, xs = _spans(shape[0]), _spans(shape[1])
    spacing_px = _SPACING_PX if len(ys) * len(xs) == 1 else _WIDE_SPACING_PX
    for number, (y, x) in enumerate(itertools.product(ys, xs)):
        if number % share[1] == share[0]:
            rows, columns = (
                slice(
                    max(-_SEARCH_PX, s.start - _TEMPLATE_ROOM_PX),
                    min(edge + _SEARCH_PX, s.stop + _TEMPLATE_ROOM_PX),
                )
                if residuals
                else s
                for s, edge in zip((y, x), shape, strict=True)
            )
            within = [slice(max(0, s.start), min(edge, s.stop))
                      for s, edge in zip((rows, columns), shape, strict=True)]  # fmt: skip
            around = [(own.start - s.start, s.stop - own.stop)
                      for s, own in zip((rows, columns), within, strict=True)]  # fmt: skip
            views = [np.pad(read(z, *within), around, "reflect") for z in (source_z, target_z)]
            inner = np.s_[
                y.start - rows.start : y.stop - rows.start,
                x.start - columns.start : x.stop - columns.start,
            ]
            found = chunked_correlation(views[0][inner], views[1][inner])
            tiles, correlated = tiles + len(found), correlated + float(found.sum())
            if residuals:
                own = np.pad(np.ones([s.stop - s.start for s in within], bool), around)
                fresh, count, coverage = _fresh(views[0], views[1], own, spacing_px)
                area = int(((views[0] > 0) & (views[1] > 0) & own).sum())
                lengths = Lengths.joined([lengths, fresh])
                tried, covered, areas = tried + count, covered + coverage * area, areas + area
    cpc = correlated / tiles if tiles else None
    return PairQuality(
        source_z, target_z, cpc, tiles, lengths, tried, covered / areas if areas else 0.0
    )


def join_quality(shares: Sequence[PairQuality]) -> PairQuality:
    """One pair's scores out of those of its shares."""
    if len(shares) == 1:
        return shares[0]
    scored = [each for each in shares if each.cpc is not None]
    tiles = sum(each.tiles for each in scored)
    tried = sum(each.tried for each in shares)
    return replace(
        shares[0],
        cpc=sum((each.cpc or 0.0) * each.tiles for each in scored) / tiles if tiles else None,
        tiles=tiles,
        residuals=Lengths.joined(each.residuals for each in shares),
        tried=tried,
        coverage=sum(each.coverage * each.tried for each in shares) / max(1, tried),
    )


def _spans(edge: int) -> list[slice]:
    """Windows along an edge, multiples of a tile but for the last."""
    count = max(1, round(edge / _WINDOW_PX))
    starts = [k * _WINDOW_PX for k in range(count)]
    return [slice(a, b) for a, b in zip(starts, [*starts[1:], edge], strict=True)]


@dataclass(frozen=True, slots=True)
class Facts:
    """What an alignment knows at its end, beside the quality of its pairs.

    Args:
        tissue_kept: share of the sections' tissue that is on the canvas.
        sharpness: mean gradient of the rendered sections against the sources'.
        jacobian_min: smallest area of a triangle over its area in the source.
        jacobian_max: largest.
        matches: accepted ones.
        rejected: {reason: count}.
        flagged: {section: why}.
        seconds: wall clock.
        cpu_seconds: of all processes that took part.
        peak_rss_mb: of the largest of them.
        array: tenant/name/array; empty when nothing was stored.
        array_url: s3://BUCKET/PREFIX.
        report: path of the report.
    """

    tissue_kept: float
    sharpness: float
    jacobian_min: float
    jacobian_max: float
    matches: int
    rejected: Mapping[str, int]
    flagged: Mapping[int, str]
    seconds: float
    cpu_seconds: float
    peak_rss_mb: float
    array: str = ""
    array_url: str = ""
    report: str = ""


def residuals_at(pairs: Sequence[PairQuality], distance: int) -> Lengths:
    """Those of all pairs that are so many sections apart."""
    return Lengths.joined(p.residuals for p in pairs if p.target_z - p.source_z == distance)


def result_object(
    before: Sequence[PairQuality], after: Sequence[PairQuality], facts: Facts
) -> dict[str, Any]:
    """The result object: pairs at distance 1 and 2, before and after; None where not measured."""

    def cpc(pairs: Sequence[PairQuality]) -> float | None:
        values = [p.cpc for p in pairs if p.cpc is not None and p.target_z - p.source_z == 1]
        return round(float(np.mean(values)), 4) if values else None

    residuals = {distance: residuals_at(after, distance) for distance in (1, 2)}

    def at(distance: int, share: float) -> float | None:
        value = residuals[distance].percentile(share)
        return None if value is None else round(value, 3)

    far = Lengths.joined(residuals.values()).share_over(_FAR_PX)
    return {
        "cpc94_before": cpc(before),
        "cpc94": cpc(after),
        "residual_z1_p50": at(1, 50),
        "residual_z1_p95": at(1, 95),
        "residual_z1_p99": at(1, 99),
        "residual_z2_p95": at(2, 95),
        "residual_z2_p99": at(2, 99),
        "residual_over_10px": None if far is None else round(far, 5),
        "tissue_kept": round(facts.tissue_kept, 4),
        "sharpness": round(facts.sharpness, 4),
        "jacobian_min": round(facts.jacobian_min, 4),
        "jacobian_max": round(facts.jacobian_max, 4),
        "matches": facts.matches,
        "rejected": dict(facts.rejected),
        "flagged_sections": sorted(facts.flagged),
        "seconds": round(facts.seconds, 2),
        "cpu_seconds": round(facts.cpu_seconds, 2),
        "peak_rss_mb": round(facts.peak_rss_mb, 1),
        "array": facts.array,
        "array_url": facts.array_url,
        "report": facts.report,
    }
