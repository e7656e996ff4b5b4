"""What is known of a pair without its matches, and its matches thinned out.

A stack of many large sections has more matches than a machine holds. What looks at the whole stack
works from these: the counts of every pair, and one match for each cell of a coarse grid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hyper_matcher.align.geometry import NOTHING_TO_MATCH, PairMatches, Rejection

_ACCEPTED_SHARE = 0.35  # of a cell's points from which its match counts


@dataclass(frozen=True, slots=True)
class PairFacts:
    """Counts of a pair of sections.

    Args:
        source_z: section the templates come from.
        target_z: section searched.
        total: points.
        tried: of them, that had tissue in both sections.
        outside: that the coarse fit puts outside of the other section.
        accepted: matches that count.
        rejected: {reason: count}.
        p1: median first peak of the accepted ones.
        coarse_score: share of the coarse blocks that agree with the fit, 0..1.
        flag: empty, or why the pair as a whole cannot be trusted.
    """

    source_z: int
    target_z: int
    total: int
    tried: int
    outside: int
    accepted: int
    rejected: dict[str, int]
    p1: float
    coarse_score: float
    flag: str = ""


def facts_of(pair: PairMatches) -> PairFacts:
    """The counts of a pair, or of the part of it in a block."""
    ok = pair.accepted
    return PairFacts(
        pair.source_z, pair.target_z, len(pair.rejection), pair.tried,
        int((pair.rejection == Rejection.OUTSIDE).sum()), int(ok.sum()), pair.counts(),
        float(np.median(pair.p1[ok])) if ok.any() else 0.0, float(pair.coarse_score), pair.flag,
    )  # fmt: skip


def join_facts(parts: Sequence[PairFacts]) -> PairFacts:
    """The counts of all blocks of a pair; it is flagged if most of its blocks are."""
    if len(parts) == 1:
        return parts[0]
    flags = Counter(part.flag for part in parts if part.flag)
    flag = ""
    if 2 * flags.total() > len(parts):
        flag = f"{flags.total()} of {len(parts)} blocks: {flags.most_common(1)[0][0]}"
    rejected: Counter[str] = Counter()
    for part in parts:
        rejected.update(part.rejected)
    accepted = sum(part.accepted for part in parts)
    return replace(
        parts[0],
        total=sum(part.total for part in parts),
        tried=sum(part.tried for part in parts),
        outside=sum(part.outside for part in parts),
        accepted=accepted,
        rejected=dict(rejected),
        p1=sum(part.p1 * part.accepted for part in parts) / max(1, accepted),
        coarse_score=max(part.coarse_score for part in parts),
        flag=flag,
    )


def thin(pair: PairMatches, cell_px: float) -> PairMatches:
    """One match for each cell of a grid in the source: what most of the cell's matches say.

    It is accepted where enough of the cell's are; its displacement differs from the coarse fit's by
    the median of theirs.
    """
    cells = np.floor(pair.source / cell_px).astype(np.int64)
    _, group = np.unique(cells, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    ends = np.cumsum(np.bincount(group.ravel()))
    off = pair.displacement - (pair.coarse(pair.source) - pair.source)
    ok, nothing = pair.accepted, np.isin(pair.rejection, NOTHING_TO_MATCH)
    count = len(ends)
    source, moved = np.zeros((count, 2)), np.zeros((count, 2))
    p1, p2 = np.zeros(count), np.zeros(count)
    rejection = np.zeros(count, np.uint8)
    for k, members in enumerate(np.split(order, ends[:-1]) if count else []):
        tried = members[~nothing[members]]
        good = members[ok[members]]
        if len(good) and len(good) >= _ACCEPTED_SHARE * len(tried):
            shown = good
        else:
            shown = tried if len(tried) else members
            reasons = pair.rejection[shown][~ok[shown]]
            rejection[k] = np.bincount(reasons).argmax()
        source[k] = pair.source[shown].mean(axis=0)
        moved[k] = np.median(off[shown], axis=0) + pair.coarse(source[k]) - source[k]
        p1[k], p2[k] = np.median(pair.p1[shown]), np.median(pair.p2[shown])
    return replace(pair, source=source, displacement=moved, p1=p1, p2=p2, rejection=rejection)
