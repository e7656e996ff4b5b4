"""What a stitching has come to: of a section, or a share of it, and put together of all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyper_matcher.align.lengths import Lengths
from hyper_matcher.stitch.solve import Lens, Montage
from hyper_matcher.stitch.values import Seam

WORST = 20  # overlaps that a report names

Residuals = Mapping[tuple[int, int], tuple[NDArray[np.float64], int]]
"""{(tile, tile): (fresh residuals px, how many were tried)}."""


@dataclass(frozen=True, slots=True)
class MeasuredSeam:
    """How well two tiles meet.

    Args:
        first: name of a tile.
        second: name of the other.
        matches: how many fresh matches.
        p50: of their lengths, px.
        p95: the same.
    """

    first: str
    second: str
    matches: int
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class Summary:
    """As many numbers as there are things that went wrong, however many tiles.

    Args:
        tiles: how many.
        seams: how many overlaps.
        matches: accepted ones.
        rejected: {reason: count}.
        failed: (tile, tile, why) of overlaps of which nothing is known.
        flagged: {tile: why}.
        residuals: lengths of fresh matches.
        tried: how many fresh matches were tried.
        moved: how far tiles lie from their positions.
        affine_px: largest displacement by a tile's own affine map, at its edge.
        gains: smallest and largest brightness of a tile, of the common one.
        worst: overlaps that fit worst, worst first.
    """

    tiles: int
    seams: int
    matches: int
    rejected: Mapping[str, int]
    failed: tuple[tuple[str, str, str], ...]
    flagged: Mapping[str, str]
    residuals: Lengths
    tried: int
    moved: Lengths
    affine_px: float
    gains: tuple[float, float]
    worst: tuple[MeasuredSeam, ...]

    @classmethod
    def of(
        cls, montage: Montage, seams: Sequence[Seam], residuals: Residuals,
        names: Sequence[str] | None = None,
    ) -> Summary:  # fmt: skip
        """Of tiles that were placed together; without names they are called by their numbers."""
        called = names or [str(k) for k in range(len(montage.positions))]
        rejected: Counter[str] = Counter()
        for seam in seams:
            rejected.update(seam.counts())
        gain = np.exp(montage.brightness)
        worst = [
            MeasuredSeam(
                called[a], called[b], len(lengths),
                *(round(float(np.percentile(lengths, share)), 3) for share in (50, 95)),
            )
            for (a, b), (lengths, _) in residuals.items()
            if len(lengths)
        ]  # fmt: skip
        return cls(
            tiles=len(montage.positions),
            seams=len(seams),
            matches=sum(int(s.accepted.sum()) for s in seams),
            rejected=dict(rejected),
            failed=tuple((called[s.first], called[s.second], s.flag) for s in seams if s.flag),
            flagged={called[k]: why for k, why in sorted(montage.flagged.items())},
            residuals=Lengths.joined(Lengths.of(lengths) for lengths, _ in residuals.values()),
            tried=sum(number for _, number in residuals.values()),
            moved=Lengths.of(np.linalg.norm(montage.maps[:, 0], axis=1)),
            affine_px=float(np.abs(montage.maps[:, 1:]).max()),
            gains=(float(gain.min()), float(gain.max())),
            worst=_worst(worst),
        )

    @classmethod
    def joined(cls, parts: Sequence[Summary]) -> Summary:
        """Of all sections."""
        rejected: Counter[str] = Counter()
        for part in parts:
            rejected.update(part.rejected)
        return cls(
            tiles=sum(part.tiles for part in parts),
            seams=sum(part.seams for part in parts),
            matches=sum(part.matches for part in parts),
            rejected=dict(rejected),
            failed=tuple(one for part in parts for one in part.failed),
            flagged={name: why for part in parts for name, why in part.flagged.items()},
            residuals=Lengths.joined(part.residuals for part in parts),
            tried=sum(part.tried for part in parts),
            moved=Lengths.joined(part.moved for part in parts),
            affine_px=max(part.affine_px for part in parts),
            gains=(min(part.gains[0] for part in parts), max(part.gains[1] for part in parts)),
            worst=_worst([one for part in parts for one in part.worst]),
        )

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        lengths = {"residuals": self.residuals.to_json(), "moved": self.moved.to_json()}
        return asdict(self) | lengths

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Summary:
        """The way back."""
        low, high = values["gains"]
        return cls(
            **{
                **values,
                "failed": tuple((a, b, why) for a, b, why in values["failed"]),
                "residuals": Lengths.from_json(values["residuals"]),
                "moved": Lengths.from_json(values["moved"]),
                "gains": (float(low), float(high)),
                "worst": tuple(MeasuredSeam(**one) for one in values["worst"]),
            }
        )


def _worst(seams: Sequence[MeasuredSeam]) -> tuple[MeasuredSeam, ...]:
    return tuple(sorted(seams, key=lambda seam: -seam.p95)[:WORST])


def stitch_result(summary: Summary, lens: Lens, shape: tuple[int, int]) -> dict[str, Any]:
    """The result object of a stitching; None where nothing was measured.

    `seam_residual_*` are px over all fresh matches; `residual_share` the share of the tried ones
    that passed the peak filters; `stage_error_px` the median distance of tiles from their
    positions, `lens_px` the lens's largest displacement.
    """

    def at(lengths: Lengths, share: float) -> float | None:
        value = lengths.percentile(share)
        return None if value is None else round(value, 3)

    edge = np.linspace(-1, 1, 21)
    grid = np.stack(np.meshgrid(edge, edge, indexing="ij"), -1).reshape(-1, 2)
    grid = grid * (np.array(shape) / max(shape))
    tried, found = summary.tried, len(summary.residuals)
    return {
        "tiles": summary.tiles,
        "seams": summary.seams,
        "failed_seams": [{"first": a, "second": b, "why": why} for a, b, why in summary.failed],
        "matches": summary.matches,
        "rejected": dict(sorted(summary.rejected.items())),
        "seam_residual_p50": at(summary.residuals, 50),
        "seam_residual_p95": at(summary.residuals, 95),
        "seam_residual_p99": at(summary.residuals, 99),
        "residual_share": round(found / tried, 4) if tried else None,
        "stage_error_px": at(summary.moved, 50),
        "lens_px": round(float(np.linalg.norm(lens(grid), axis=1).max()), 2),
        "lens_degree": max((i + j for i, j in lens.products), default=0),
        "flagged_tiles": dict(summary.flagged),
    }
